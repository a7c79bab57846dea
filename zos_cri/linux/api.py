"""The seam between us and the kernel: what higher packages are given by their constructors.

Each Protocol is satisfied by a module as it is (`mount: api.Mounts = zos_cri.linux.mount`) or, for
cgroups, by an object of `zos_cri.linux.cgroup.Cgroups`. The fakes are in tests/fakes/kernel.py.
What the methods do and raise is said where they are implemented.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from zos_cri.linux import cgroup, mount, namespaces, spawn

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from zos_cri.linux.cgroup import CgroupPaths, Mode
    from zos_cri.linux.cgrouplimits import Limits
    from zos_cri.linux.cgroupstats import CgroupStats
    from zos_cri.linux.mount import Mount, MountInfo
    from zos_cri.linux.namespaces import IdMap
    from zos_cri.linux.spawn import Completed

T = TypeVar("T")


class Mounts(Protocol):
    """`zos_cri.linux.mount`. Everything blocks."""

    def mount(self, m: Mount, target: str, *, userns: int | None = None) -> None: ...
    def unmount(self, target: str, *, lazy: bool = False) -> None: ...
    def unmount_tree(self, path: str, *, lazy: bool = False) -> None: ...
    def set_propagation(self, target: str, mode: str) -> None: ...
    def make_private_dir(self, path: str) -> None: ...
    def mounts_below(self, path: str) -> list[MountInfo]: ...
    def mount_of(self, path: str) -> MountInfo: ...


class Namespaces(Protocol):
    """`zos_cri.linux.namespaces`."""

    async def pin(
        self,
        paths: Mapping[str, str],
        *,
        hostname: str | None = None,
        sysctls: Mapping[str, str] | None = None,
        timeout: float,
    ) -> None: ...
    async def pin_user(
        self,
        paths: Mapping[str, str],
        *,
        uid_mappings: Sequence[IdMap],
        gid_mappings: Sequence[IdMap],
        hostname: str | None = None,
        sysctls: Mapping[str, str] | None = None,
        timeout: float,
    ) -> None: ...
    async def unpin(self, path: str) -> None: ...
    async def in_network(
        self, path: str, fn: Callable[..., T], *args: Any, timeout: float
    ) -> T: ...
    def is_pinned(self, path: str) -> bool: ...
    def kind_of(self, path: str) -> str | None: ...
    def inode(self, path: str) -> int: ...


class Cgroups(Protocol):
    """`zos_cri.linux.cgroup.Cgroups`."""

    mode: Mode

    @property
    def controllers(self) -> frozenset[str]: ...
    def paths(self, path: str) -> CgroupPaths: ...
    def exists(self, path: str) -> bool: ...
    def create(self, path: str) -> None: ...
    async def remove(self, path: str, *, timeout: float, kill: bool = False) -> None: ...
    def pids(self, path: str) -> list[int]: ...
    async def kill_all(self, path: str, *, timeout: float) -> None: ...
    def stats(self, path: str) -> CgroupStats: ...
    def oom_kills(self, path: str) -> int: ...
    def oom_counts(self, path: str) -> dict[str, int]: ...
    def apply(self, path: str, limits: Limits) -> None: ...


class Held(Protocol):
    """A process held by pidfd, ours or not: `zos_cri.linux.pidfd.PidFd`."""

    pid: int

    @property
    def alive(self) -> bool: ...
    def send_signal(self, sig: int) -> None: ...
    async def wait(self, timeout: float | None = None) -> bool: ...
    def close(self) -> None: ...


class Child(Protocol):
    """A child of ours: `zos_cri.linux.spawn.Process`."""

    argv: tuple[str, ...]
    pid: int

    @property
    def returncode(self) -> int | None: ...
    async def wait(self, timeout: float | None = None) -> int: ...
    def kill(self, sig: int = 9, *, group: bool = False) -> None: ...
    def release(self) -> None: ...


class Processes(Protocol):
    """`zos_cri.linux.spawn`."""

    async def run(
        self,
        argv: Sequence[str],
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout: float,
        max_output: int = spawn.MAX_OUTPUT,
        linger: float = spawn.LINGER,
    ) -> Completed: ...
    async def start(
        self,
        argv: Sequence[str],
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        new_session: bool = False,
    ) -> Child: ...
    def open_pid(self, pid: int, start_time: int | None = None) -> Held | None: ...
    def start_time(self, pid: int) -> int: ...


class Kernel:
    """The real ones, together, for whoever wires objects.

    Args:
        cgroup_root: where the cgroups are mounted.
    """

    def __init__(self, *, cgroup_root: str = "/sys/fs/cgroup") -> None:
        self.mounts: Mounts = mount
        self.namespaces: Namespaces = namespaces
        self.processes: Processes = spawn
        self.cgroups: Cgroups = cgroup.Cgroups(cgroup_root)
