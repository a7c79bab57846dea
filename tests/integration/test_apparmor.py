"""AppArmor's profiles, asked of the kernel from inside: hack/vm has one that knows them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.integration.server import UPSTREAM, serving
from zos_cri._pb import cri_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.server import Server

ENABLED = Path("/sys/module/apparmor/parameters/enabled")

pytestmark = [
    pytest.mark.root,
    pytest.mark.runtime,
    pytest.mark.go,
    pytest.mark.skipif(
        not ENABLED.exists() or not ENABLED.read_text().startswith("Y"),
        reason="the kernel has no AppArmor",
    ),
]

Type = cri_pb2.SecurityProfile


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(UPSTREAM) as running:
        yield running


def run_with(server: Server, name: str, command: str, **context: Any) -> tuple[str, str, str]:
    """A command in a container with a security context: exit code, stdout, stderr; its profile."""
    context = {"capabilities": cri_pb2.Capability(add_capabilities=["SYS_ADMIN"]), **context}
    linux = cri_pb2.LinuxContainerConfig(
        security_context=cri_pb2.LinuxContainerSecurityContext(**context)
    )
    with server.cri() as cri:
        pod = server.run_pod(cri, name)
        id_ = server.run_container(cri, pod, linux=linux)
        profile = Path(f"/proc/{pid_of(server, id_)}/attr/current").read_text().strip()
        done = cri.ExecSync(
            cri_pb2.ExecSyncRequest(container_id=id_, cmd=["sh", "-c", command], timeout=60)
        )
        cri.RemovePodSandbox(cri_pb2.RemovePodSandboxRequest(pod_sandbox_id=pod))
    return profile, str(done.exit_code), (done.stdout + done.stderr).decode()


def pid_of(server: Server, container: str) -> int:
    pids = [pid for pid, line in server.processes() if line.startswith("sleep ")]
    assert len(pids) == 1, container
    return pids[0]


def test_the_default_profile(server: Server) -> None:
    """Without a profile, and with RuntimeDefault: mounting is denied although it has SYS_ADMIN."""
    for name, context in (
        ("none", {}),
        ("default", {"apparmor": Type(profile_type=Type.RuntimeDefault)}),
    ):
        mount = "mkdir /mnt; mount -t tmpfs none /mnt"
        profile, code, said = run_with(server, name, mount, **context)
        assert profile == "zos-cri-default (enforce)"
        assert code != "0"
        assert "ermission denied" in said
    _, code, said = run_with(server, "files", "echo x >/file; cat /file; kill -0 $$; ls /proc/self")
    assert code == "0", said


def test_unconfined(server: Server) -> None:
    mount = "mkdir /mnt; mount -t tmpfs none /mnt"
    for name, context in (
        ("unconfined", {"apparmor": Type(profile_type=Type.Unconfined)}),
        ("privileged", {"privileged": True}),
    ):
        profile, code, said = run_with(server, name, mount, **context)
        assert profile == "unconfined"
        assert code == "0", said


def test_a_profile_that_is_not_loaded(server: Server) -> None:
    absent = Type(profile_type=Type.Localhost, localhost_ref="zos-cri-no-such")
    with pytest.raises(grpc.RpcError, match="no AppArmor profile") as caught:
        run_with(server, "absent", "true", apparmor=absent)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
