"""Runtime handlers: what their settings do, asked of the kernel; and every runtime at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.integration.server import UPSTREAM, Server, serving
from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go]

SETTINGS = """
[handlers.special]
shim = "{shim}"
runtime = "{runtime}"
pod_annotations = ["pod.example/*"]
container_annotations = ["own.example/*"]
base_spec = "{base}"
snapshot_options = ["nodev"]
unset_seccomp_profile = "runtime/default"
pids_limit = 77
privileged_without_host_devices = true
device_ownership_from_security_context = true
[handlers.special.options]
no_new_keyring = true
[handlers.special.rlimits]
RLIMIT_NOFILE = [321, 654]
[blockio_classes]
slow = [{{ weight = 123 }}]
"""


def says(cri: Any, container: str, script: str) -> str:
    """What a script says inside; it must succeed."""
    request = pb.ExecSyncRequest(container_id=container, cmd=["sh", "-c", script], timeout=20)
    done = cri.ExecSync(request)
    assert done.exit_code == 0, done
    return str(done.stdout.decode().strip())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One with a handler that says everything that one can."""
    directory = tmp_path_factory.mktemp("base")
    (directory / "shown").mkdir()
    (directory / "shown/file").write_text("of the base\n")
    base = {
        "process": {"rlimits": [{"type": "RLIMIT_CORE", "soft": 1, "hard": 2}]},
        "hooks": {
            "createRuntime": [{"path": "/bin/touch", "args": ["touch", str(directory / "hooked")]}]
        },
        "annotations": {"base.example/a": "1"},
        "mounts": [
            {
                "destination": "/shown",
                "type": "bind",
                "source": str(directory / "shown"),
                "options": ["rbind", "ro"],
            }
        ],
    }
    (directory / "base.json").write_text(json.dumps(base))
    extra = SETTINGS.format(
        shim=UPSTREAM.shim, runtime=UPSTREAM.runtime, base=directory / "base.json"
    )
    with serving(UPSTREAM, extra=extra) as started:
        yield started


@pytest.fixture
def node(server: Server) -> Iterator[Server]:
    """The server, which nothing of a test is left on."""
    yield server
    server.remove_pods()
    assert server.leftovers() == []


def privileged(config: pb.PodSandboxConfig) -> pb.PodSandboxConfig:
    config.linux.security_context.privileged = True
    return config


def test_a_handlers_settings_in_the_kernel(node: Server) -> None:
    with node.cri() as cri:
        pod = node.run_pod(
            cri, handler="special", annotations={"pod.example/x": "1", "other.example/x": "1"}
        )
        container = node.run_container(
            cri,
            pod,
            annotations={"own.example/y": "2", "pod.example/z": "2"},
            devices=[pb.Device(container_path="/dev/mine", host_path="/dev/null")],
            linux=pb.LinuxContainerConfig(
                security_context=pb.LinuxContainerSecurityContext(
                    run_as_user=pb.Int64Value(value=1234), run_as_group=pb.Int64Value(value=99)
                )
            ),
        )
        status = says(cri, container, "cat /proc/1/status")
        assert "\nSeccomp:\t2\n" in status
        limits = says(cri, container, "cat /proc/1/limits")
        assert [line.split()[-3:-1] for line in limits.splitlines() if "open files" in line] == [
            ["321", "654"]
        ]
        assert says(cri, container, "cat /shown/file") == "of the base"
        assert ",nodev" in says(cri, container, "grep ' / / ' /proc/self/mountinfo")
        assert says(cri, container, "stat -c %u:%g /dev/mine") == "1234:99"
        pids = Path(f"/sys/fs/cgroup/pids{node.cgroup}/{container}/pids.max")
        if pids.exists():
            assert pids.read_text() == "77\n"
        spec = json.loads((node.run / "bundles" / container / "config.json").read_text())
        annotations = {key: value for key, value in spec["annotations"].items() if "example" in key}
        assert annotations == {"base.example/a": "1", "pod.example/x": "1", "own.example/y": "2"}


def test_rlimits_of_the_handler_replace_the_base_specs(node: Server) -> None:
    with node.cri() as cri:
        plain = node.run_container(cri, node.run_pod(cri, "plain"))
        special = node.run_container(cri, node.run_pod(cri, handler="special"))
        limits = "grep -E 'core|open files' /proc/1/limits"
        assert says(cri, special, limits) != says(cri, plain, limits)
        assert " 321 " in says(cri, special, limits)


def test_privileged_without_the_hosts_devices(node: Server) -> None:
    context = pb.LinuxContainerSecurityContext(privileged=True)
    linux = pb.LinuxContainerConfig(security_context=context)
    config = privileged(node.pod("with"))
    with node.cri() as cri:
        counts = []
        for handler in ("", "special"):
            config.metadata.name = f"pod{handler}"
            request = pb.RunPodSandboxRequest(config=config, runtime_handler=handler)
            pod = cri.RunPodSandbox(request).pod_sandbox_id
            container = node.run_container(cri, pod, linux=linux)
            counts.append(says(cri, container, "test -e /dev/kmsg && echo all || echo few"))
            assert "\nSeccomp:\t0\n" in says(cri, container, "cat /proc/1/status")
        assert counts == ["all", "few"]


def test_a_block_io_class(node: Server) -> None:
    with node.cri() as cri:
        pod = node.run_pod(cri)
        name = "io.kubernetes.cri.blockio-class"
        with pytest.raises(grpc.RpcError) as error:
            node.run_container(cri, pod, annotations={name: "fast"})
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert 'no block I/O class "fast"' in str(error.value.details())
        container = node.run_container(cri, pod, annotations={name: "slow"})
        spec = json.loads((node.run / "bundles" / container / "config.json").read_text())
        assert spec["linux"]["resources"]["blockIO"] == {"weight": 123}
