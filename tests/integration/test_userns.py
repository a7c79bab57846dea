"""Pods with user namespaces of their own, asked of the kernel from inside and from outside."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.integration.server import DEBIAN, UPSTREAM, Server, serving
from tests.integration.test_crictl import wait_for
from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go]

FIRST = 231072  # the host's id of root inside
SIZE = 65536
MODE = pb.NamespaceMode


@pytest.fixture
def node() -> Iterator[Server]:
    with serving(UPSTREAM) as started:
        yield started


@pytest.fixture
def bridged_node(own_network: None) -> Iterator[Server]:
    with serving(UPSTREAM, cni=True) as started:
        yield started


def with_userns(config: Any, first: int = FIRST) -> Any:
    """The pod's configuration, with a user namespace."""
    mapping = pb.IDMapping(container_id=0, host_id=first, length=SIZE)
    options = config.linux.security_context.namespace_options
    options.userns_options.CopyFrom(
        pb.UserNamespace(mode=MODE.POD, uids=[mapping], gids=[mapping])
    )
    return config


def run_pod(cri: Any, config: Any) -> str:
    return str(cri.RunPodSandbox(pb.RunPodSandboxRequest(config=config)).pod_sandbox_id)


def security(**fields: Any) -> Any:
    return pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(**fields))


def says(cri: Any, container: str, script: str) -> str:
    """What a script says inside; it must succeed."""
    request = pb.ExecSyncRequest(container_id=container, cmd=["sh", "-c", script], timeout=20)
    done = cri.ExecSync(request)
    assert done.exit_code == 0, done
    return str(done.stdout.decode().strip())


def pid_of(cri: Any, container: str) -> int:
    request = pb.ContainerStatusRequest(container_id=container, verbose=True)
    return int(json.loads(cri.ContainerStatus(request).info["info"])["pid"])


def owner(path: str | Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_uid, found.st_gid


def test_root_inside_is_nobody_outside(node: Server) -> None:
    with node.cri() as cri:
        pod = run_pod(cri, with_userns(node.pod()))
        container = node.run_container(cri, pod)
        for name in ("uid_map", "gid_map"):
            assert says(cri, container, f"cat /proc/self/{name}").split() == ["0", "231072", "65536"]
        assert says(cri, container, "id -u; stat -c %u:%g / /bin/busybox /etc/passwd") == (
            "0\n0:0\n0:0\n0:0"
        )
        pid = pid_of(cri, container)
        assert owner(f"/proc/{pid}") == (FIRST, FIRST)
        inside = Path(f"/proc/{pid}/root")
        assert owner(inside) == (FIRST, FIRST)
        says(cri, container, "echo new > /new; chown 7:8 /new; echo more >> /etc/passwd")
        assert owner(inside / "new") == (FIRST + 7, FIRST + 8)
        upper = node.state / "images/containers" / container / "fs"
        assert owner(upper / "new") == (FIRST + 7, FIRST + 8)
        assert owner(upper / "etc/passwd") == (FIRST, FIRST)
        assert (upper / "etc/passwd").read_text().endswith("more\n")
        for kind in ("user", "ipc"):
            joined = os.stat(f"/proc/{pid}/ns/{kind}").st_ino
            assert joined == os.stat(node.run / "sandboxes" / pod / kind).st_ino
        assert node.crictl("exec", "-s", container, "id", "-u") == "0"
    node.remove_pods()
    assert node.leftovers() == []
