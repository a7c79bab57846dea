"""The OOM killer's preference of processes that run already (proc(5), oom_score_adj)."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from zos_cri.errors import PermissionDenied, ResourceExhausted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_BATCH: Final = 256  # descriptors held at once
_PASSES: Final = 1024  # a container that forks without end is given up at 256 Ki processes


def set_oom_score_adj(pids: Callable[[], Iterable[int]], value: int) -> None:
    """Gives processes another oom_score_adj, those too that they fork meanwhile.

    Args:
        pids: lists the processes that are meant, as of now; called several times.
        value: from -1000 to 1000.

    Raises:
        PermissionDenied: it is lower than the kernel lets us go.
        ResourceExhausted: they fork faster than we write.
    """
    done: set[int] = set()
    for _ in range(_PASSES):
        new = sorted(set(pids()) - done)[:_BATCH]
        if not new:
            return
        _write(new, pids, value)
        done.update(new)
    raise ResourceExhausted(f"oom_score_adj: {len(done)} processes, and they still become more")


def follow_oom_score_adj(pid: int, value: int) -> None:
    """Gives a process and its descendants an oom_score_adj where the process has another one.

    Reading /proc of a process that has just begun takes some 20 µs.

    Raises:
        PermissionDenied, ResourceExhausted: as `set_oom_score_adj`.
    """
    try:
        with open(f"/proc/{pid}/oom_score_adj", "rb") as file:
            if int(file.read(16)) == value:
                return
    except (FileNotFoundError, ProcessLookupError):
        return  # it has ended
    set_oom_score_adj(lambda: _family(pid), value)


def _family(pid: int) -> set[int]:
    """A process and all that descend from it and haven't lost their parents."""
    found, pending = set(), [pid]
    while pending:
        parent = pending.pop()
        found.add(parent)
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{thread}/children", "rb") as file:
                    pending += map(int, file.read().split())
    return found


def _write(chosen: Iterable[int], pids: Callable[[], Iterable[int]], value: int) -> None:
    with contextlib.ExitStack() as stack:
        files: dict[int, int] = {}
        for pid in chosen:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                path = f"/proc/{pid}/oom_score_adj"
                files[pid] = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                stack.callback(os.close, files[pid])
        # A descriptor stays with its process. Who isn't listed any more may have got the pid of
        # one that has ended, and be anybody.
        for pid in set(pids()) & files.keys():
            try:
                os.write(files[pid], b"%d" % value)
            except ProcessLookupError:
                continue
            except PermissionError:
                raise PermissionDenied(
                    f"oom_score_adj: {value} is lower than this host lets us set for a process"
                    f" that runs (pid {pid})"
                ) from None
