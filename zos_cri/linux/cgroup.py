"""Control groups by their logical path, the same in every hierarchy; versions 1, 2 and hybrid.

Hybrid is version 1 with an extra, mostly controller-less version 2 tree at `unified`, which
systemd and runc keep in step with the others: there pressure can be read and all be killed at once.
A controller lives in one hierarchy, and is read and written as that hierarchy's version says.

Rules: the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/*.rst.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from zos_cri.errors import DeadlineExceeded, InvalidArgument, NotFound
from zos_cri.linux import blocking, cgrouplimits
from zos_cri.linux import cgroupstats as stats
from zos_cri.linux.cgrouplimits import CgroupError, Limits, write_file
from zos_cri.linux.pidfd import PidFd
from zos_cri.log import get_log

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_log = get_log(__name__)

Mode = Literal["v1", "hybrid", "v2"]

# A process that has ended leaves its cgroup a moment later, and version 1 tells nobody when.
_POLL_MIN: Final = 0.001
_POLL_MAX: Final = 0.05
# So many pids stand in an error's message; so many are waited for at once.
_NAMED_PIDS: Final = 8
_WATCHED_PIDS: Final = 64
_PATH_MAX: Final = 4096


class CgroupPaths(msgspec.Struct, frozen=True):
    """Where a logical path lies.

    Attributes:
        path: the logical one, `/kubepods/pod1`.
        v1: directory by controller, and `systemd` and other named hierarchies by their name.
        v2: its directory in the version 2 tree; None where there is none.
        v2_controllers: what that tree has.
    """

    path: str
    v1: Mapping[str, str]
    v2: str | None
    v2_controllers: frozenset[str] = frozenset()

    def of(self, controller: str) -> str | None:
        """The directory with a controller's files, whichever version's; None where it is off."""
        if self.v2 is not None and controller in self.v2_controllers:
            return self.v2
        return self.v1.get(controller)

    @property
    def directories(self) -> tuple[str, ...]:
        """All of them, each once."""
        both = [*self.v1.values(), *([self.v2] if self.v2 else [])]
        return tuple(dict.fromkeys(both))


class Cgroups:
    """The cgroups of the host. What blocks for long is a coroutine; the rest takes microseconds."""

    def __init__(self, root: str = "/sys/fs/cgroup") -> None:
        self._root = root.rstrip("/")
        self._v1: dict[str, str] = {}
        self._v2: str | None = None
        self._v2_controllers: frozenset[str] = frozenset()
        if os.path.exists(f"{root}/cgroup.controllers"):
            self._v2 = self._root
            self.mode: Mode = "v2"
        else:
            self._find_v1()
            hybrid = f"{self._root}/unified"
            self._v2 = hybrid if os.path.exists(f"{hybrid}/cgroup.controllers") else None
            self.mode = "v1" if self._v2 is None else "hybrid"
        if self._v2:
            named = stats.read_text(self._v2, "cgroup.controllers") or ""
            self._v2_controllers = frozenset(named.split())

    def _find_v1(self) -> None:
        """Controllers by the usual layout: `memory`, or `cpu,cpuacct` for two mounted together."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self._root) as entries:
            for entry in entries:
                is_one = entry.is_dir(follow_symlinks=False) and entry.name != "unified"
                if is_one and os.path.exists(f"{entry.path}/cgroup.procs"):
                    self._v1.update(dict.fromkeys(entry.name.split(","), entry.path))

    @property
    def controllers(self) -> frozenset[str]:
        """The controllers of all hierarchies."""
        return self._v2_controllers | frozenset(self._v1) - {"systemd"}

    def paths(self, path: str) -> CgroupPaths:
        """Where a logical path lies, be it there or not.

        Raises:
            InvalidArgument: it isn't absolute, or has `.`, `..`, empty or unprintable parts.
        """
        _check(path)
        below = "" if path == "/" else path
        return CgroupPaths(
            path=path,
            v1={name: root + below for name, root in self._v1.items()},
            v2=None if self._v2 is None else self._v2 + below,
            v2_controllers=self._v2_controllers,
        )

    def exists(self, path: str) -> bool:
        """Whether it is there in any hierarchy."""
        return any(os.path.isdir(directory) for directory in self.paths(path).directories)

    def create(self, path: str) -> None:
        """Makes a cgroup in every hierarchy, with those above it and, in version 2, controllers on.

        In hybrid mode version 2's controllers stay as they are: there a cgroup with others below it
        may hold processes, which version 2 allows only without controllers.

        Nothing to do where it is there. On failure what was made is removed.

        Raises:
            CgroupError: the kernel refused.
        """
        where = self.paths(path)
        with contextlib.ExitStack() as undo:
            for directory in where.directories:
                root = directory.removesuffix("" if path == "/" else path)
                for parent, child in _steps(root, path):
                    if self.mode == "v2":
                        _enable_controllers(parent)
                    _make(child, undo)
                    if directory == where.v1.get("cpuset"):
                        _inherit_cpuset(parent, child)
            undo.pop_all()

    def remove_empty(self, path: str) -> None:
        """Removes a cgroup and those below it wherever no process is in them; the others stay."""
        _remove_trees(self.paths(path).directories)

    async def remove(self, path: str, *, timeout: float, kill: bool = False) -> None:
        """Removes a cgroup and those below it from every hierarchy; nothing where it is gone.

        Processes in it are waited for, and with `kill` killed first.

        Raises:
            DeadlineExceeded: after `timeout` seconds there are still processes in it; the message
                names them.
            InvalidArgument: it is the root.
        """
        where = self.paths(path)
        if path == "/":
            raise InvalidArgument("cgroup /: the root can't be removed")
        deadline = time.monotonic() + timeout
        if kill:
            await self.kill_all(path, timeout=timeout)
        pause = _POLL_MIN
        while await blocking.call(_remove_trees, where.directories):
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeadlineExceeded(
                    f"cgroup {path}: can't be removed within {timeout:g} s, "
                    f"{_describe(self.pids(path))}"
                )
            if not await _ended(self.pids(path), left):
                await asyncio.sleep(min(pause, left))
                pause = min(pause * 2, _POLL_MAX)

    def pids(self, path: str) -> list[int]:
        """The processes in a cgroup and those below it, sorted; none where it is gone."""
        found: set[int] = set()
        for directory in self.paths(path).directories:
            for below in _tree(directory):
                found.update(_procs(below))
        return sorted(found)

    async def kill_all(self, path: str, *, timeout: float) -> None:
        """Kills the processes in a cgroup and those below it, and waits until they are gone.

        Raises:
            DeadlineExceeded: after `timeout` seconds there are still some; the message names them.
        """
        where = self.paths(path)
        if path == "/":
            raise InvalidArgument("cgroup /: nobody wants all the host's processes killed")
        deadline = time.monotonic() + timeout
        pause = _POLL_MIN
        while self.pids(path):
            self._kill_once(where)
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeadlineExceeded(
                    f"cgroup {path}: not empty {timeout:g} s after SIGKILL, "
                    f"{_describe(self.pids(path))}"
                )
            if not await _ended(self.pids(path), left):
                await asyncio.sleep(min(pause, left))
                pause = min(pause * 2, _POLL_MAX)

    def _kill_once(self, where: CgroupPaths) -> None:
        """One round: by the kernel in one go (5.14), and what that didn't reach one by one."""
        if where.v2 and os.path.isdir(where.v2):
            with contextlib.suppress(OSError):  # no cgroup.kill, or a threaded cgroup
                write_file(f"{where.v2}/cgroup.kill", "1")
            if self.mode == "v2" and _has_kill(where.v2):
                return
        freezer = where.v1.get("freezer")
        try:
            # frozen, they can't fork faster than we read the list
            _try_write(freezer, "freezer.state", "FROZEN")
            for held in _held(self.pids(where.path)):
                with held:
                    # still listed after it was opened: the pid is surely the one in the cgroup
                    if held.alive and held.pid in self.pids(where.path):
                        with contextlib.suppress(ProcessLookupError):
                            held.send_signal(signal.SIGKILL)
        finally:
            for directory in _tree(freezer) if freezer else ():
                _try_write(directory, "freezer.state", "THAWED")  # or the signal isn't taken

    def stats(self, path: str) -> stats.CgroupStats:
        """What the cgroup has used so far.

        Raises:
            NotFound: no such cgroup.
        """
        where = self.paths(path)
        if not self.exists(path):
            raise NotFound(f"cgroup {path}: not there")
        pids = where.of("pids")
        return stats.CgroupStats(
            timestamp_ns=time.time_ns(),
            cpu=_cpu(where),
            memory=_memory(where),
            pids=stats.read_int(pids, "pids.current") if pids else None,
            pids_limit=stats.read_int(pids, "pids.max") if pids else None,
            io=_io(where),
            hugetlb=_hugetlb(where),
            pressure=stats.pressure(where.v2) if where.v2 else {},
            oom_kills=_oom_kills(where),
        )

    def oom_kills(self, path: str) -> int:
        """How many processes in it, and below it, the kernel killed for want of memory."""
        return _oom_kills(self.paths(path))

    def oom_counts(self, path: str) -> dict[str, int]:
        """`oom_kills` of a cgroup by its path, and of a systemd scope, which goes with its last
        process, also of what outlives it: the slices above (version 2), and "" for the whole host.
        What isn't there has no entry.
        """
        found = {}
        if (memory := self.paths(path).of("memory")) and os.path.isdir(memory):
            found[path] = self.oom_kills(path)
        if not path.endswith(".scope"):
            return found
        above = path
        while above := above.rpartition("/")[0]:
            where = self.paths(above)
            # Version 1 counts for each cgroup alone, and those that are gone don't count.
            if where.v2 and where.of("memory") == where.v2 and os.path.isdir(where.v2):
                found[above] = stats.oom_kills_v2(where.v2)
        found[""] = stats.read_keyed("/proc", "vmstat").get("oom_kill", 0)
        return found

    def apply(self, path: str, limits: Limits) -> None:
        """Writes limits; what is None in them is left as it is.

        Raises:
            NotFound: no such cgroup.
            FailedPrecondition: a controller that a limit needs isn't there.
            InvalidArgument: the kernel refuses a value; the message names the file.
        """
        where = self.paths(path)
        if not self.exists(path):
            raise NotFound(f"cgroup {path}: not there")
        writes = cgrouplimits.plan(path, where.v1, where.v2, on=where.v2_controllers, limits=limits)
        cgrouplimits.carry_out(writes)


def _cpu(where: CgroupPaths) -> stats.CpuStats | None:
    if "cpuacct" in where.v1:
        return stats.cpu_v1(where.v1.get("cpu"), where.v1["cpuacct"])
    return stats.cpu_v2(where.v2) if where.v2 else None  # version 2 counts without a controller


def _memory(where: CgroupPaths) -> stats.MemoryStats | None:
    directory = where.of("memory")
    if directory is None:
        return None
    return stats.memory_v2(directory) if directory == where.v2 else stats.memory_v1(directory)


def _io(where: CgroupPaths) -> tuple[stats.IoStats, ...] | None:
    if where.v2 and "io" in where.v2_controllers:
        return stats.io_v2(where.v2)
    return stats.io_v1(where.v1["blkio"]) if "blkio" in where.v1 else None


def _hugetlb(where: CgroupPaths) -> tuple[stats.HugetlbStats, ...]:
    directory = where.of("hugetlb")
    if directory is None or not os.path.isdir(directory):
        return ()
    return stats.hugetlb_v2(directory) if directory == where.v2 else stats.hugetlb_v1(directory)


def _oom_kills(where: CgroupPaths) -> int:
    directory = where.of("memory")
    if directory is None:
        return 0
    if directory == where.v2:
        return stats.oom_kills_v2(directory)
    return sum(stats.oom_kills_v1(below) for below in _tree(directory))


def _check(path: str) -> None:
    parts = path.split("/")[1:]
    if not path.startswith("/") or len(path) > _PATH_MAX:
        raise InvalidArgument(f"cgroup {path!r}: its path must be absolute")
    if path == "/":
        return
    if any(part in ("", ".", "..") or not part.isprintable() for part in parts):
        raise InvalidArgument(f"cgroup {path!r}: a part of its path is empty, '.' or '..'")


def _steps(root: str, path: str) -> Iterator[tuple[str, str]]:
    """(parent, child) directories from the root of a hierarchy down to the path."""
    parent = root
    for part in path.split("/")[1:]:
        if part:
            yield parent, f"{parent}/{part}"
            parent = f"{parent}/{part}"


def _make(directory: str, undo: contextlib.ExitStack) -> None:
    try:
        os.mkdir(directory, 0o755)
    except FileExistsError:
        return
    except OSError as error:
        raise CgroupError(f"cgroup {directory}: can't be made: {error.strerror}") from error
    undo.callback(_remove_tree, directory)


def _enable_controllers(directory: str) -> None:
    """Gives the cgroups below a version 2 directory all the controllers that it has itself.

    One that can't be given (the cpu controller with realtime processes about) isn't an error here:
    a limit that needs it will be, and will name it.
    """
    have = set((stats.read_text(directory, "cgroup.controllers") or "").split())
    given = set((stats.read_text(directory, "cgroup.subtree_control") or "").split())
    missing = sorted(have - given)
    if not missing:
        return
    name = f"{directory}/cgroup.subtree_control"
    try:
        write_file(name, " ".join(f"+{controller}" for controller in missing))
    except OSError:
        for controller in missing:
            try:
                write_file(name, f"+{controller}")
            except OSError as error:
                _log.warning(
                    "cgroup controller not enabled",
                    cgroup=directory,
                    controller=controller,
                    error=error.strerror,
                )


def _inherit_cpuset(parent: str, child: str) -> None:
    """A new version 1 cpuset is empty, and no process may enter it so: it gets its parent's."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not (stats.read_text(child, name) or "").strip():
            value = (stats.read_text(parent, name) or "").strip()
            if value:
                with contextlib.suppress(FileNotFoundError):
                    write_file(f"{child}/{name}", value)


def _tree(directory: str) -> list[str]:
    """A directory and all below it, parents first; none where it is gone."""
    found = [directory] if os.path.isdir(directory) else []
    for current in found:
        with contextlib.suppress(OSError), os.scandir(current) as entries:
            found.extend(e.path for e in entries if e.is_dir(follow_symlinks=False))
    return found


def _procs(directory: str) -> Iterator[int]:
    for line in (stats.read_text(directory, "cgroup.procs") or "").split():
        if line != "0":  # a process that our pid namespace doesn't see
            yield int(line)


def _remove_trees(directories: Sequence[str]) -> bool:
    """Removes what can be removed; whether something is left."""
    left = False
    for directory in directories:
        left = not _remove_tree(directory) or left
    return left


def _remove_tree(directory: str) -> bool:
    gone = True
    for current in reversed(_tree(directory)):
        try:
            os.rmdir(current)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise
            gone = False
    return gone


def _has_kill(directory: str) -> bool:
    return os.path.exists(f"{directory}/cgroup.kill")


def _held(pids: Iterable[int]) -> Iterator[PidFd]:
    for pid in pids:
        held = PidFd.open(pid)
        if held is not None:
            yield held


async def _ended(pids: Sequence[int], timeout: float) -> bool:
    """Waits until some of the processes have ended; False where none of them runs any more."""
    running = []
    for held in _held(pids[:_WATCHED_PIDS]):
        if held.alive:
            running.append(held)
        else:
            held.close()
    if not running:
        return False
    waits = [asyncio.ensure_future(held.wait(timeout)) for held in running]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        for held in running:
            held.close()
    return True


def _describe(pids: Sequence[int]) -> str:
    """`pids 12 (sleep, S), 13 (dd, D)`: D is waiting in the kernel, Z isn't reaped."""
    if not pids:
        return "though no process is in it"
    named = []
    for pid in pids[:_NAMED_PIDS]:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                before, _, after = file.read().decode(errors="replace").rpartition(")")
            named.append(f"{pid} ({before.partition('(')[2]}, {after.split()[0]})")
        except OSError:
            named.append(f"{pid} (gone)")
    more = f" and {len(pids) - _NAMED_PIDS} more" if len(pids) > _NAMED_PIDS else ""
    return f"pids {', '.join(named)}{more} in it"


def _try_write(directory: str | None, name: str, text: str) -> None:
    if directory is not None:
        with contextlib.suppress(OSError):
            write_file(f"{directory}/{name}", text)
