"""Runtime handlers: what their settings do, asked of the kernel; and every runtime at hand."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.conftest import TOOLS
from tests.integration.server import DEBIAN, UPSTREAM, Server, serving
from tests.integration.test_containers import ended, says
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


# Every runtime at hand, under both shims


@dataclass(frozen=True)
class Pair:
    """A shim and a runtime that it is to run, as a handler."""

    shim: str
    runtime: str
    path: str

    @property
    def name(self) -> str:
        return f"{self.runtime}-{self.shim}"

    @property
    def is_built(self) -> bool:
        """Whether it is there: those in Rust are built only when asked for."""
        return Path(self.path).exists() and Path(SHIMS[self.shim]).exists()


SHIMS = {
    "debian": DEBIAN.shim,
    "upstream": UPSTREAM.shim,
    "rust": str(TOOLS / "containerd-shim-runc-v2-rs"),
}
YOUKI = TOOLS / "youki"
RUNTIMES = {
    "runc1.1": DEBIAN.runtime,
    "runc1.5": UPSTREAM.runtime,
    "crun": "/usr/bin/crun",
    "youki": str(YOUKI),
}
PAIRS = [Pair(shim, runtime, path) for runtime, path in RUNTIMES.items() for shim in SHIMS]
# crun before 1.9 refuses the hybrid mode, so cgroup v2 goes out of its sight, and of nobody else's:
# all else stays shared, for what the server mounts is to be seen from here.
CGROUP_V1 = (
    "unshare",
    "--mount",
    "--propagation",
    "unchanged",
    "sh",
    "-c",
    "mount --make-private /sys/fs/cgroup; umount /sys/fs/cgroup/unified 2>/dev/null && "
    'mount -t tmpfs tmpfs /sys/fs/cgroup/unified; exec "$@"',
    "sh",
)


@pytest.fixture(scope="module")
def everything() -> Iterator[Server]:
    """A server with a handler for each pair."""
    extra = "".join(
        f'[handlers."{pair.name}"]\nshim = "{SHIMS[pair.shim]}"\nruntime = "{pair.path}"\n'
        for pair in PAIRS
        if pair.is_built
    )
    with serving(UPSTREAM, extra=extra, before=CGROUP_V1) as started:
        yield started


SCRIPT = "trap 'exit 7' TERM; echo hello; while :; do sleep 0.1; done"


def linux_of() -> pb.LinuxContainerConfig:
    default = pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault)
    return pb.LinuxContainerConfig(
        resources=pb.LinuxContainerResources(memory_limit_in_bytes=64 << 20, cpu_shares=128),
        security_context=pb.LinuxContainerSecurityContext(
            capabilities=pb.Capability(drop_capabilities=["ALL"], add_capabilities=["KILL"]),
            readonly_rootfs=True,
            no_new_privs=True,
            seccomp=default,
            masked_paths=["/proc/keys"],
            readonly_paths=["/proc/sys"],
        ),
    )


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_a_containers_life_under_every_runtime(everything: Server, pair: Pair) -> None:
    if not pair.is_built:
        pytest.skip("hack/tools/build youki shim-rs")
    node = everything
    # youki 0.7 can't mount cgroup v1 in a pid namespace that isn't its own: it looks for its own
    # process in /proc by the wrong number.
    shared = pair.runtime != "youki"
    pids = pb.NamespaceMode.POD if shared else pb.NamespaceMode.CONTAINER
    with node.cri() as cri:
        pod = node.run_pod(cri, handler=pair.name, pid=pids)
        container = node.run_container(cri, pod, "sh", "-c", SCRIPT, linux=linux_of())
        facts = says(cri, container, "cat /proc/1/comm /proc/self/status")
        assert facts.startswith("catatonit\n" if shared else "sh\n")
        for line in ("CapEff:\t0000000000000020", "NoNewPrivs:\t1", "Seccomp:\t2"):
            assert f"\n{line}\n" in facts
        says(cri, container, '! touch /x && [ -z "$(cat /proc/keys)" ]')
        says(cri, container, "! echo 1 > /proc/sys/vm/drop_caches")
        limit = Path(f"/sys/fs/cgroup/memory{node.cgroup}/{container}/memory.limit_in_bytes")
        assert limit.read_text() == f"{64 << 20}\n"
        update = pb.LinuxContainerResources(memory_limit_in_bytes=96 << 20)
        cri.UpdateContainerResources(
            pb.UpdateContainerResourcesRequest(container_id=container, linux=update)
        )
        assert limit.read_text() == f"{96 << 20}\n"
    node.restart()
    with node.cri() as cri:
        assert says(cri, container, "echo $((1+1))") == "2"
        short = node.run_container(cri, pod, "sh", "-c", "exit 3", name="short")
        assert ended(cri, short).exit_code == 3
        cri.StopContainer(pb.StopContainerRequest(container_id=container, timeout=10))
        assert ended(cri, container).exit_code == 7
        assert " hello\n" in (node.logs / "pod/main.log").read_text()
    node.remove_pods()
    assert node.leftovers() == []


def test_a_handlers_settings_change_under_a_pod(tmp_path: Path) -> None:
    """The pod goes on with the runtime that it was made with; a new pod has the new one."""
    calls = tmp_path / "calls"
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nexec {UPSTREAM.runtime} "$@"\n')
    wrapper.chmod(0o755)
    with serving(UPSTREAM, extra=OTHER) as node:
        with node.cri() as cri:
            pod = node.run_pod(cri)
            gone = node.run_pod(cri, "gone", handler="other")
        text = node.config.read_text().replace(OTHER, "")
        node.config.write_text(text.replace(UPSTREAM.runtime, str(wrapper)))
        node.restart()
        with node.cri() as cri:
            node.run_container(cri, pod)
            assert not [line for line in calls.read_text().splitlines() if " create " in line]
            new = node.run_container(cri, node.run_pod(cri, "new"))
            assert [line for line in calls.read_text().splitlines() if line.endswith(new)]
            with pytest.raises(grpc.RpcError) as error:
                node.run_container(cri, gone)
            assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert '"other" is not configured any more' in str(error.value.details())
        node.remove_pods()
        assert node.leftovers() == []


OTHER = f"""
[handlers.other]
shim = "{UPSTREAM.shim}"
runtime = "{UPSTREAM.runtime}"
"""


@pytest.mark.parametrize("before", [(), CGROUP_V1], ids=["host", "v1"])
def test_the_default_handler_runs_what_works_here(before: tuple[str, ...]) -> None:
    with serving(replace(UPSTREAM, runtime=""), before=before) as node, node.cri() as cri:
        info = cri.Status(pb.StatusRequest(verbose=True)).info
        chosen = json.loads(info["defaultRuntime"])
        assert chosen["why"]
        name = Path(chosen["runtime"]).name
        if before and Path(RUNTIMES["crun"]).exists():
            assert name == "crun", chosen
        assert json.loads(info["config"])["handlers"]["runc"]["runtime"] == chosen["runtime"]
        container = node.run_container(cri, node.run_pod(cri), "sleep", "1000")
        assert says(cri, container, "echo works") == "works"
        # Each runtime keeps a container's state in a file of its own name.
        kept = {"crun": "status", "runc": "state.json"}[name]
        assert (node.run / "runtime" / "zos" / container / kept).exists()
        node.restart()
        assert json.loads(cri.Status(pb.StatusRequest(verbose=True)).info["defaultRuntime"]) == (
            chosen
        )
        assert says(cri, container, "echo still") == "still"
        node.remove_pods()
