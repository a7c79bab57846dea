"""What the processes of a container hold open (proc_pid_fd(5), proc_pid_limits(5))."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

# Links read for one container; each takes 2 µs. One with more descriptors has its sockets counted
# among so many of them only.
MAX_LINKS: Final = 4096
_LIMITS_MAX: Final = 8192  # bytes; /proc/<pid>/limits has 1,400


def descriptors(pids: Iterable[int]) -> tuple[int, int]:
    """Open descriptors, and how many of them are sockets. Processes that end meanwhile count 0."""
    total = sockets = links = 0
    for pid in pids:
        directory = f"/proc/{pid}/fd"
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        total += len(names)
        for name in names[: MAX_LINKS - links]:
            links += 1
            try:
                sockets += os.readlink(f"{directory}/{name}").startswith("socket:")
            except OSError:
                continue
    return total, sockets


def file_limit(pid: int) -> int | None:
    """A process's soft limit of open files; None where there is none, or it is gone."""
    try:
        fd = os.open(f"/proc/{pid}/limits", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.read(fd, _LIMITS_MAX).decode()
    except OSError:
        return None
    finally:
        os.close(fd)
    for line in text.splitlines():
        name, found, values = line.partition("Max open files")
        if found and not name:
            soft = values.split()[0]
            return int(soft) if soft.isdigit() else None
    return None
