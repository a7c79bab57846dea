"""Has the kernel ready to move processes into cgroups, while a runtime is about to.

A move waits for an RCU grace period, 10 to 15 ms, in which every fork and exit on the host leaves
its fast path (cgroup_threadgroup_rwsem, a percpu-rwsem); a further move within the next grace
period finds them off it still, and takes microseconds. Runtimes move a process at each container's
start and each exec, some milliseconds after they were called. So here a thread moves this very
process to where it is anyway, from the moment on when a start is known of, and again and again
until it is over: the grace period goes by beside what comes before the runtime's own move.

`favordynmods` has the same effect for the whole host and for good; with it there is nothing to do.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from typing import TYPE_CHECKING, Final

from zos_cri.errors import InvalidArgument
from zos_cri.log import get_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from zos_cri.linux.cgroup import Cgroups

_log = get_log(__name__)

# Well within the shortest grace period (a few jiffies), and seldom enough to cost 1% of a CPU.
PERIOD: Final = 0.005
LONGEST: Final = 2.0  # seconds; in a start that hangs no move is about to come
SOON: Final = 0.05  # seconds; a kubelet goes on within a few milliseconds
_GROUPS_MAX: Final = 1 << 16  # bytes; a line for each hierarchy, of which there are a dozen
_ANNOUNCED: Final = object()  # the starts to come, in the place of one


class Moves:
    """Safe for one event loop and its threads. `close` ends the thread.

    Args:
        move: one move that changes nothing; blocks. None where moves don't wait.
        longest: seconds until a start counts as one that hangs.
    """

    def __init__(self, move: Callable[[], None] | None, *, longest: float = LONGEST) -> None:
        self._move = move
        self._longest = longest
        self._lock = threading.Lock()
        self._ends: dict[object, float] = {}  # of what moves are expected for
        self._wanted = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def soon(self) -> None:
        """A pod or a container was made, so one will be started at once, or not for long."""
        if self._move is None:
            return
        with self._lock:
            self._ends[_ANNOUNCED] = time.monotonic() + SOON
        self._want()

    @contextlib.contextmanager
    def expected(self) -> Iterator[None]:
        """Inside, the runtime moves a process sooner or later."""
        if self._move is None:
            yield
            return
        key = object()
        with self._lock:
            self._ends.pop(_ANNOUNCED, None)
            self._ends[key] = time.monotonic() + self._longest
        self._want()
        try:
            yield
        finally:
            with self._lock:
                self._ends.pop(key, None)

    def _want(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="cgroup moves", daemon=True)
            self._thread.start()
        self._wanted.set()

    def __len__(self) -> int:
        """For how many starts moves are expected now."""
        return len(self._ends)

    def close(self) -> None:
        """Ends it; a move under way ends within a grace period."""
        self._closed = True
        self._wanted.set()

    def _run(self) -> None:
        assert self._move is not None  # else there is no thread
        while True:
            self._wanted.wait()
            if self._closed:
                return
            if not self._any():
                continue
            try:
                self._move()
            except OSError as error:
                _log.warning("cgroup moves are not prepared", error=error)
                return
            time.sleep(PERIOD)

    def _any(self) -> bool:
        with self._lock:
            now = time.monotonic()
            for key in [key for key, end in self._ends.items() if end < now]:
                del self._ends[key]
            if not self._ends and not self._closed:
                self._wanted.clear()
            return bool(self._ends)


def stay(cgroups: Cgroups) -> Callable[[], None]:
    """A move of this process to the cgroup that it is in. Raises OSError where there is none."""
    known, procs = b"", ""

    def move() -> None:
        nonlocal known, procs
        # Asked anew each time: it must never take back what somebody else has moved.
        groups = _groups()
        if groups != known:
            known, procs = groups, f"{_own(cgroups, groups.decode())}/cgroup.procs"
        fd = os.open(procs, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"0")  # cgroups(7): the process that writes
        finally:
            os.close(fd)

    return move


def _groups() -> bytes:
    """What the kernel says of this process' cgroups, by few calls: each wants Python's lock."""
    fd = os.open("/proc/self/cgroup", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _GROUPS_MAX)
    finally:
        os.close(fd)


def _own(cgroups: Cgroups, text: str) -> str:
    """The directory of this process' cgroup, in whichever hierarchy; any will do."""
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        try:
            where = cgroups.paths(path)
        except InvalidArgument:
            continue  # above the root that this process sees
        name = names.split(",")[0].removeprefix("name=")
        directory = where.v1.get(name) if name else where.v2
        if directory is not None and os.path.isdir(directory):
            return directory
    raise FileNotFoundError(errno.ENOENT, "no cgroup of this process", "/proc/self/cgroup")
