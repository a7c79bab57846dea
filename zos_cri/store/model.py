"""What is stored of sandboxes and containers.

Metadata is frozen when the thing is created. Status is frozen too and changes only as a whole:
copy, change, persist, swap (`Table.update`). Both carry the version of their format; a newer one
than `VERSION` is refused, an older one is read by the defaults of the fields it lacks.
"""

from __future__ import annotations

from typing import Final

import msgspec

from zos_cri.linux.mount import Mount
from zos_cri.store.lifecycle import ContainerState, SandboxState

# 2: pods have their shims elsewhere (`SandboxMeta.shim`); who doesn't know would end them.
VERSION: Final = 2

EXIT_CODE_START_FAILED: Final = 128  # as containerd reports it: reason StartError
EXIT_CODE_KILLED: Final = 137  # 128 + SIGKILL
EXIT_CODE_UNKNOWN: Final = 255


class Stdio(msgspec.Struct, frozen=True, kw_only=True):
    """Where a task's streams go, in the shim's terms: "", a FIFO's path, or `file://…`."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class ContainerMeta(msgspec.Struct, frozen=True, kw_only=True):
    """What doesn't change in a container's life."""

    id: str
    ns: str
    name: str
    group: str  # whose shim holds it: its pod's, or its own
    handler: str
    created_at: int  # ns since the epoch
    bundle: str
    cgroup: str  # logical cgroup path, "" where the runtime chooses
    rootfs: tuple[Mount, ...] = ()  # what the shim mounts at <bundle>/rootfs
    stdio: Stdio = Stdio()
    stop_signal: int = 15
    stop_timeout: float = 5.0  # seconds between the stop signal and SIGKILL
    kill_all: bool = False  # no pid namespace of its own: the end of init ends nothing else
    tags: dict[str, str] = {}
    root_uid: int = 0  # on the host, of root in its user namespace; 0 where it has the host's
    root_gid: int = 0
    owner: str = ""  # the layer above that made it ("cri"), "" for the module's own callers
    extra: bytes = b""  # that layer's own metadata, opaque here
    checkpoint: str = ""  # CRIU's images that it is started from, "" for a new process
    version: int = VERSION


class NotedExit(msgspec.Struct, frozen=True):
    """How a container's init ended: the exit code, when (ns since the epoch), its OOM kills."""

    code: int
    at: int
    oom_kills: int = 0


class ContainerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What changes. Times are ns since the epoch, 0 = not yet."""

    state: ContainerState = ContainerState.CREATING
    pid: int = 0
    started_at: int = 0
    finished_at: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    resources: bytes = b""  # the last applied update, in the layer above's own encoding
    # Written before the shim is made to forget the task: from then on only we know it.
    noted_exit: NotedExit | None = None
    version: int = VERSION


class SandboxMeta(msgspec.Struct, frozen=True, kw_only=True):
    """What doesn't change in a pod sandbox's life."""

    id: str
    name: str  # the pod's unique key: name_namespace_uid_attempt
    config: bytes  # runtime.v1.PodSandboxConfig
    handler: str
    created_at: int  # ns since the epoch
    netns: str = ""  # "" on the host network
    ipcns: str = ""
    utsns: str = ""
    userns: str = ""  # "" where its root is the host's
    shared_pid: bool = False  # an init container holds the pod's pid namespace
    cgroup: str = ""  # logical path of the pod's cgroup, "" where none was asked for
    sandboxer: str = "podsandbox"  # or "shim": see `shim.handler`
    shim: str = ""  # the group of its shim where that isn't named for the pod
    version: int = VERSION

    @property
    def group(self) -> str:
        """Whose shim holds the pod's containers."""
        return self.shim or self.id


class SandboxStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What changes in a pod sandbox's life.

    Attributes:
        network_released: CNI DEL has succeeded, or was never needed.
        pid: of the sandbox that a shim has made, as the host numbers it; 0 where there is none.
        overhead, resources: runtime.v1.LinuxContainerResources, of the last update; empty where
            what the sandbox was made with still holds.
    """

    state: SandboxState = SandboxState.CREATING
    ips: tuple[str, ...] = ()
    network_released: bool = False
    pid: int = 0
    overhead: bytes = b""
    resources: bytes = b""
    version: int = VERSION

    @property
    def released(self) -> bool:
        """Whether it was stopped: all that it held was given back, its shim too."""
        return self.state is SandboxState.NOT_READY and self.network_released
