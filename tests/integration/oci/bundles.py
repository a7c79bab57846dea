"""Bundles for a runtime, and specs of ours that fit them."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.conftest import TOOLS
from zos_cri._pb import cri_pb2
from zos_cri.oci import container, mounts, namespaces, process
from zos_cri.oci.host import CAPABILITIES, HostFacts, Spec
from zos_cri.oci.module import ModuleContainer

if TYPE_CHECKING:
    from collections.abc import Iterator


TIMEOUT = 60.0
# Built by hack/tools: user namespaces with id-mapped mounts need runc 1.2.
RUNC = TOOLS / "runc"
Paths = namespaces.NamespacePaths
APPLETS = [
    "sh",
    "cat",
    "grep",
    "id",
    "ls",
    "mount",
    "hostname",
    "sleep",
    "stat",
    "touch",
    "pwd",
    "env",
    "umask",
    "true",
    "readlink",
    "head",
]


class Bundle(NamedTuple):
    """A bundle whose root filesystem is a busybox, and where its runtime keeps its state."""

    path: Path
    state: Path
    id: str

    def run(self, spec: Spec, check: bool = True, runc: str = "runc") -> str:
        """Runs the container to its end; its output, errors among it."""
        (self.path / "config.json").write_text(json.dumps(spec))
        argv = [runc, "--root", str(self.state), "run", "-b", str(self.path), self.id]
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT,
            check=False,
        )
        text = done.stdout.decode()
        assert not check or done.returncode == 0, text
        return text


def made_in(top: Path) -> Iterator[Bundle]:
    made = Bundle(top / "bundle", top / "runc", f"zos-oci-{uuid.uuid4().hex[:12]}")
    binaries = made.path / "rootfs" / "bin"
    binaries.mkdir(parents=True)
    for name in ("etc", "tmp", "proc", "sys", "dev"):
        (made.path / "rootfs" / name).mkdir()
    busybox = shutil.which("busybox")
    assert busybox, "busybox is not installed"
    shutil.copy(busybox, binaries / "busybox")
    for name in APPLETS:
        (binaries / name).symlink_to("busybox")
    yield made
    subprocess.run(
        ["runc", "--root", str(made.state), "delete", "-f", made.id],
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )


def facts() -> HostFacts:
    """This host's facts, as far as runc asks for them."""
    status = Path("/proc/self/status").read_text()
    held = int(
        next(line for line in status.splitlines() if line.startswith("CapPrm")).split()[1], 16
    )
    names = frozenset(name for bit, name in enumerate(CAPABILITIES) if held >> bit & 1)
    major, minor = platform.release().split(".")[:2]
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    swap = Path("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists() or unified
    resource = "CAP_SYS_RESOURCE" in names
    return HostFacts(
        architecture=platform.machine(),
        kernel=(int(major), int(minor)),
        capabilities=names,
        last_capability=int(Path("/proc/sys/kernel/cap_last_cap").read_text()),
        cgroup_mode="v2" if unified else "v1",
        swap_accounting=swap,
        oom_score_adj_min=-1000 if resource else int(Path("/proc/self/oom_score_adj").read_text()),
        rlimits_raisable=resource,
    )


def module(bundle: Bundle, paths: Paths, script: str, **kw: Any) -> ModuleContainer:
    return ModuleContainer(
        id=bundle.id,
        args=("/bin/sh", "-c", script),
        network_namespace=paths.network,
        cgroups_path=f"/{bundle.id}",
        **kw,
    )


def cri(
    bundle: Bundle,
    paths: Paths,
    host: HostFacts,
    script: str,
    *,
    context: cri_pb2.LinuxContainerSecurityContext | None = None,
    resources: cri_pb2.LinuxContainerResources | None = None,
    handler: container.HandlerSettings | None = None,
    given: list[tuple[cri_pb2.Mount, mounts.MountFacts]] | None = None,
    **inputs: Any,
) -> Spec:
    context = context or cri_pb2.LinuxContainerSecurityContext()
    if context.namespace_options.pid == cri_pb2.NamespaceMode.POD:
        context.namespace_options.pid = cri_pb2.NamespaceMode.CONTAINER
    given = given or []
    config = cri_pb2.ContainerConfig(
        metadata=cri_pb2.ContainerMetadata(name="c"),
        command=["/bin/sh", "-c", script],
        mounts=[mount for mount, _ in given],
        linux=cri_pb2.LinuxContainerConfig(security_context=context, resources=resources),
    )
    pod = cri_pb2.PodSandboxConfig(
        linux=cri_pb2.LinuxPodSandboxConfig(
            cgroup_parent="/",
            security_context=cri_pb2.LinuxSandboxSecurityContext(privileged=context.privileged),
        )
    )
    return container.container_spec(
        container.ContainerInputs(
            id=bundle.id,
            sandbox_id="pod",
            image_name="busybox",
            hostname="pod-1",
            namespaces=paths,
            mount_facts=tuple(fact for _, fact in given),
            **inputs,
        ),
        sandbox=pod,
        config=config,
        image=process.ImageConfig(),
        handler=handler or container.HandlerSettings(),
        host=host,
    )


def status(output: str) -> dict[str, str]:
    """/proc/self/status as its fields."""
    return {
        name: value.strip()
        for name, _, value in (line.partition(":") for line in output.splitlines())
        if value
    }


def bits(names: frozenset[str] | set[str]) -> str:
    return f"{sum(1 << CAPABILITIES.index(name) for name in names):016x}"
