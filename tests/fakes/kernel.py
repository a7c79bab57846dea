"""Fakes of `zos_cri.linux.api`: they keep state in memory, record calls, and fail when told to.

    mounts = FakeMounts()
    mounts.fail("unmount", Busy("…"), times=1)
    …
    assert mounts.calls == [("mount", "/run/pod/shm"), …]

What is recorded is the method's name and its first argument; more is in the fake's own state.
"""

from __future__ import annotations

import dataclasses
import itertools
import signal
from typing import TYPE_CHECKING, Any, TypeVar

from zos_cri.errors import AlreadyExists, DeadlineExceeded, FailedPrecondition, NotFound
from zos_cri.linux.cgroup import CgroupPaths
from zos_cri.linux.cgroupstats import CgroupStats
from zos_cri.linux.mount import MountInfo
from zos_cri.linux.spawn import Completed

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from zos_cri.linux.cgroup import Mode
    from zos_cri.linux.cgrouplimits import Limits
    from zos_cri.linux.mount import Mount
    from zos_cri.linux.namespaces import IdMap

T = TypeVar("T")


class Recorder:
    """Calls in order, and the errors to raise in them."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self._failures: dict[str, list[BaseException]] = {}

    def fail(self, method: str, error: BaseException, *, times: int = 1) -> None:
        """The next `times` calls of a method raise this, before they do anything."""
        self._failures.setdefault(method, []).extend([error] * times)

    def record(self, method: str, what: object) -> None:
        self.calls.append((method, what))
        if self._failures.get(method):
            raise self._failures[method].pop(0)

    def count(self, method: str) -> int:
        return sum(name == method for name, _ in self.calls)


class FakeMounts(Recorder):
    """`mounted` holds what is mounted, by target, the topmost last."""

    def __init__(self) -> None:
        super().__init__()
        self.mounted: list[tuple[str, Mount]] = []
        self.propagation: dict[str, str] = {}
        self.private_dirs: set[str] = set()
        self.root_shared: int | None = None

    def mount(self, m: Mount, target: str, *, userns: int | None = None) -> None:
        del userns
        self.record("mount", target)
        self.mounted.append((target, m))

    def unmount(self, target: str, *, lazy: bool = False) -> None:
        del lazy
        self.record("unmount", target)
        for index in reversed(range(len(self.mounted))):
            if self.mounted[index][0] == target:
                del self.mounted[index]
                return

    def unmount_tree(self, path: str, *, lazy: bool = False) -> None:
        del lazy
        self.record("unmount_tree", path)
        self.mounted = [entry for entry in self.mounted if not _below(entry[0], path)]

    def set_propagation(self, target: str, mode: str) -> None:
        self.record("set_propagation", target)
        self.propagation[target] = mode

    def make_private_dir(self, path: str) -> None:
        self.record("make_private_dir", path)
        self.private_dirs.add(path)

    def mounts_below(self, path: str) -> list[MountInfo]:
        self.record("mounts_below", path)
        return [self._info(n, *e) for n, e in enumerate(self.mounted) if _below(e[0], path)]

    def mount_of(self, path: str) -> MountInfo:
        self.record("mount_of", path)
        over = [(n, e) for n, e in enumerate(self.mounted) if _below(path, e[0])]
        if not over:
            return MountInfo(
                1, 0, "/", "/", ("rw",), "ext4", "/dev/root", ("rw",), self.root_shared
            )
        number, entry = max(over, key=lambda found: len(found[1][0]))
        return self._info(number, *entry)

    def _info(self, number: int, target: str, m: Mount) -> MountInfo:
        mode = self.propagation.get(target, "")
        return MountInfo(
            id=number + 2,
            parent=1,
            root="/",
            target=target,
            options=m.options,
            type=m.type,
            source=m.source,
            super_options=(),
            shared=number + 2 if mode.endswith("shared") else None,
            master=number + 2 if mode.endswith("slave") else None,
        )


def _below(path: str, top: str) -> bool:
    return path == top or path.startswith(top.rstrip("/") + "/")


@dataclasses.dataclass
class Pin:
    """What a fake namespace was made with."""

    kind: str
    inode: int
    hostname: str | None
    sysctls: dict[str, str]
    uid_mappings: tuple[IdMap, ...] = ()
    gid_mappings: tuple[IdMap, ...] = ()


class FakeNamespaces(Recorder):
    """`pins` holds them by path. `in_network` runs the function right where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.pins: dict[str, Pin] = {}
        self._inodes = itertools.count(4026532000)

    async def pin(
        self,
        paths: Mapping[str, str],
        *,
        hostname: str | None = None,
        sysctls: Mapping[str, str] | None = None,
        timeout: float,
    ) -> None:
        del timeout
        self.record("pin", dict(paths))
        self._pin(paths, hostname, sysctls)

    async def pin_user(
        self,
        paths: Mapping[str, str],
        *,
        uid_mappings: Sequence[IdMap],
        gid_mappings: Sequence[IdMap],
        hostname: str | None = None,
        sysctls: Mapping[str, str] | None = None,
        timeout: float,
    ) -> None:
        del timeout
        self.record("pin_user", dict(paths))
        self._pin(paths, hostname, sysctls)
        for path in paths.values():
            self.pins[path].uid_mappings = tuple(uid_mappings)
            self.pins[path].gid_mappings = tuple(gid_mappings)

    def _pin(
        self, paths: Mapping[str, str], hostname: str | None, sysctls: Mapping[str, str] | None
    ) -> None:
        for path in paths.values():
            if path in self.pins:
                raise AlreadyExists(f"pin namespace at {path}: the file is there already")
        for kind, path in paths.items():
            self.pins[path] = Pin(kind, next(self._inodes), hostname, dict(sysctls or {}))

    async def unpin(self, path: str) -> None:
        self.record("unpin", path)
        self.pins.pop(path, None)

    async def in_network(self, path: str, fn: Callable[..., T], *args: Any, timeout: float) -> T:
        del timeout
        self.record("in_network", path)
        if self.kind_of(path) != "net":
            raise NotFound(f"no net namespace is pinned at {path}")
        return fn(*args)

    def is_pinned(self, path: str) -> bool:
        return path in self.pins

    def kind_of(self, path: str) -> str | None:
        return self.pins[path].kind if path in self.pins else None

    def inode(self, path: str) -> int:
        if path not in self.pins:
            raise NotFound(f"no namespace is pinned at {path}")
        return self.pins[path].inode


class FakeCgroups(Recorder):
    """`groups` holds the pids in each; set `readings` and `kills` to what shall be reported."""

    def __init__(self, *, mode: Mode = "v2") -> None:
        super().__init__()
        self.mode: Mode = mode
        self.groups: dict[str, set[int]] = {}
        self.limits: dict[str, list[Limits]] = {}
        self.readings: dict[str, CgroupStats] = {}
        self.kills: dict[str, int] = {}

    @property
    def controllers(self) -> frozenset[str]:
        return frozenset({"cpu", "cpuset", "memory", "pids", "io", "hugetlb"})

    def paths(self, path: str) -> CgroupPaths:
        return CgroupPaths(path, {}, f"/fake/cgroup{path}", self.controllers)

    def exists(self, path: str) -> bool:
        return path in self.groups

    def create(self, path: str) -> None:
        self.record("create", path)
        parts = path.split("/")
        for end in range(2, len(parts) + 1):
            self.groups.setdefault("/".join(parts[:end]), set())

    async def remove(self, path: str, *, timeout: float, kill: bool = False) -> None:
        self.record("remove", path)
        if kill:
            await self.kill_all(path, timeout=timeout)
        if self.pids(path):
            raise DeadlineExceeded(f"cgroup {path}: pids {self.pids(path)} in it")
        self.groups = {k: v for k, v in self.groups.items() if not _below(k, path)}

    def pids(self, path: str) -> list[int]:
        return sorted(set().union(*(v for k, v in self.groups.items() if _below(k, path))))

    async def kill_all(self, path: str, *, timeout: float) -> None:
        del timeout
        self.record("kill_all", path)
        for name, pids in self.groups.items():
            if _below(name, path):
                pids.clear()

    def stats(self, path: str) -> CgroupStats:
        self.record("stats", path)
        if path not in self.groups:
            raise NotFound(f"cgroup {path}: not there")
        return self.readings.get(path, CgroupStats(timestamp_ns=1))

    def oom_kills(self, path: str) -> int:
        return self.kills.get(path, 0)

    def oom_counts(self, path: str) -> dict[str, int]:
        return {path: self.kills.get(path, 0)}

    def apply(self, path: str, limits: Limits) -> None:
        self.record("apply", path)
        if path not in self.groups:
            raise NotFound(f"cgroup {path}: not there")
        self.limits.setdefault(path, []).append(limits)


class FakeHeld:
    """A process held by pidfd; it ends by `FakeProcesses.end`, or by SIGKILL and SIGTERM."""

    def __init__(self, processes: FakeProcesses, pid: int) -> None:
        self.pid = pid
        self._processes = processes
        self.signals: list[int] = []
        self.closed = False

    @property
    def alive(self) -> bool:
        return self.pid in self._processes.alive

    def send_signal(self, sig: int) -> None:
        if not self.alive:
            raise ProcessLookupError(3, "no such process")
        self.signals.append(sig)
        if sig in (signal.SIGKILL, signal.SIGTERM):
            self._processes.end(self.pid)

    async def wait(self, timeout: float | None = None) -> bool:
        del timeout  # what will end has ended: nothing happens by itself here
        return not self.alive

    def close(self) -> None:
        self.closed = True


class FakeChild(FakeHeld):
    """A child of ours."""

    def __init__(self, processes: FakeProcesses, pid: int, argv: tuple[str, ...]) -> None:
        super().__init__(processes, pid)
        self.argv = argv
        self.released = False

    @property
    def returncode(self) -> int | None:
        return self._processes.ended.get(self.pid)

    async def wait(self, timeout: float | None = None) -> int:  # type: ignore[override]
        if self.returncode is None:
            raise DeadlineExceeded(f"{self.argv[0]}: pid {self.pid} still runs after {timeout} s")
        return self.returncode

    def kill(self, sig: int = signal.SIGKILL, *, group: bool = False) -> None:
        del group
        if self.alive:
            self.signals.append(sig)
            self._processes.end(self.pid, -sig)

    def release(self) -> None:
        self.released = True


@dataclasses.dataclass
class Ran:
    """One call of `run` or `start`."""

    argv: tuple[str, ...]
    cwd: str | None
    env: dict[str, str] | None
    stdin: bytes | int | None


class FakeProcesses(Recorder):
    """`answer` says what a program does; `alive` holds the pids that run, with their start time."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[Ran] = []
        self.children: list[FakeChild] = []
        self.alive: dict[int, int] = {}
        self.ended: dict[int, int] = {}
        self._answers: dict[str, Completed | Callable[[Ran], Completed | Awaitable[Completed]]] = {}
        self._pids = itertools.count(1000)

    def answer(
        self,
        program: str,
        stdout: bytes = b"",
        *,
        stderr: bytes = b"",
        returncode: int = 0,
        call: Callable[[Ran], Completed | Awaitable[Completed]] | None = None,
    ) -> None:
        """What running a program (the whole argv[0]) gives from now on."""
        self._answers[program] = call or Completed((program,), returncode, stdout, stderr)

    async def run(
        self,
        argv: Sequence[str],
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout: float,
        max_output: int = 0,
        linger: float = 0,
    ) -> Completed:
        del timeout, max_output, linger
        self.record("run", tuple(argv))
        ran = self._note(argv, cwd, env, stdin)
        answer = self._answers.get(argv[0])
        if answer is None:
            raise FileNotFoundError(2, "No such file or directory", argv[0])
        if isinstance(answer, Completed):
            return answer
        result = answer(ran)
        return result if isinstance(result, Completed) else await result

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
    ) -> FakeChild:
        del stdout, stderr, new_session
        self.record("start", tuple(argv))
        self._note(argv, cwd, env, stdin)
        child = FakeChild(self, self.begin(), tuple(argv))
        self.children.append(child)
        return child

    def begin(self, pid: int | None = None, *, start_time: int = 1) -> int:
        """A process begins to run, not a child of ours; its pid."""
        pid = next(self._pids) if pid is None else pid
        self.alive[pid] = start_time
        return pid

    def end(self, pid: int, returncode: int = -signal.SIGKILL) -> None:
        """A process ends."""
        if self.alive.pop(pid, None) is None:
            raise FailedPrecondition(f"fake process {pid} doesn't run")
        self.ended[pid] = returncode

    def open_pid(self, pid: int, start_time: int | None = None) -> FakeHeld | None:
        self.record("open_pid", pid)
        same = start_time is None or self.alive.get(pid) == start_time
        return FakeHeld(self, pid) if pid in self.alive and same else None

    def start_time(self, pid: int) -> int:
        if pid not in self.alive:
            raise ProcessLookupError(3, "no such process")
        return self.alive[pid]

    def _note(
        self,
        argv: Sequence[str],
        cwd: str | os.PathLike[str] | None,
        env: Mapping[str, str] | None,
        stdin: bytes | int | None,
    ) -> Ran:
        ran = Ran(
            argv=tuple(argv),
            cwd=None if cwd is None else str(cwd),
            env=None if env is None else dict(env),
            stdin=stdin,
        )
        self.ran.append(ran)
        return ran
