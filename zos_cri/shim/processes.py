"""Which process is a shim, proved from /proc. All functions block for some reads of it."""

from __future__ import annotations

import os
import select
import signal
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A `start` that is killed may have started a server just before, that one no further.
_ROUNDS: Final = 8
# For how long a process may have no command line because it is in the midst of an exec.
_EXEC_TIME: Final = 0.2
_LISTENING: Final = 0x10000  # __SO_ACCEPTCON in /proc/net/unix


def of_bundle(bundle: Path, group: str) -> list[int]:
    """The shim's processes in a bundle: it is their working directory, and the group their -id.

    Both, so that an administrator's shell in the bundle is never taken for one.
    """
    return [pid for pid in _pids() if is_shim(pid, bundle, group)]


def is_shim(pid: int, bundle: Path, group: str) -> bool:
    """Whether a process is a shim of that group, started in that bundle."""
    try:
        if os.readlink(f"/proc/{pid}/cwd") != os.fspath(bundle):
            return False
        return group.encode() in _arguments(pid)
    except OSError:
        return False


def _arguments(pid: int) -> list[bytes]:
    """A process's command line. In the midst of an exec it is empty: then it is asked again."""
    deadline = time.monotonic() + _EXEC_TIME
    while True:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            arguments = file.read(65536)
        if arguments or time.monotonic() > deadline:
            return arguments.split(b"\0")
        time.sleep(0.001)


def runs_for(shim: int, container: str) -> list[int]:
    """The OCI runtime's processes that a shim has started for a container and that still run."""
    return [pid for pid in _pids() if _parent(pid) == shim and _names(pid, container)]


def _names(pid: int, word: str) -> bool:
    try:
        return word.encode() in _arguments(pid)
    except OSError:
        return False


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def listens_on(pid: int, path: str) -> bool:
    """Whether a process holds the listening socket of a path.

    SO_PEERCRED wouldn't tell: it names who called listen(2), for Go's shims the `start` that is
    gone and left the socket to its child.
    """
    inodes = set()
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as file:
        next(file, None)
        for line in file:
            fields = line.split(maxsplit=7)
            named = len(fields) == 8 and fields[7].rstrip("\n") == path.replace("\0", "@", 1)
            if named and int(fields[3], 16) & _LISTENING:
                inodes.add(f"socket:[{fields[6]}]")
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    return any(_link(f"/proc/{pid}/fd/{descriptor}") in inodes for descriptor in descriptors)


def kill_of_bundle(bundle: Path, group: str, *, timeout: float = 5.0) -> list[int]:
    """Kills a bundle's shim processes: starts that went wrong or that nobody waited for.

    Returns:
        The pids that were killed, all gone unless `timeout` seconds ran out.
    """
    killed: list[int] = []
    deadline = time.monotonic() + timeout
    empty = 0
    for _ in range(_ROUNDS):
        pids = of_bundle(bundle, group)
        for pid in pids:
            _kill(pid, bundle, group, deadline)
        killed += pids
        # Twice: one look through /proc can miss a child whose pid was passed before it was born,
        # when its parent ends before its own is reached.
        empty = 0 if pids else empty + 1
        if empty == 2:
            break
    return killed


def _kill(pid: int, bundle: Path, group: str, deadline: float) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if not is_shim(pid, bundle, group):  # asked again, now that the pid can't change hands
            return
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll(max(0, deadline - time.monotonic()) * 1000)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)


def has_begun(pid: int) -> bool:
    """Whether a container's first process has become its program.

    Until then it is the runtime's, and waits at a FIFO of the runtime's state, of which it holds a
    descriptor that goes with execve: runc and crun alike. False where there is no such process.
    """
    directory = f"/proc/{pid}/fd"
    try:
        links = [_link(f"{directory}/{name}") for name in os.listdir(directory)]
    except OSError:
        return False
    return bool(_link(f"/proc/{pid}/exe")) and not any(x.endswith("/exec.fifo") for x in links)


def _pids() -> Iterator[int]:
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdigit():
                yield int(entry.name)


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
