"""How many files a process may have open: ours raised to the most, our children's left as it was.

The soft limit is 1024 by default, and a server of many containers needs more. What it starts must
not inherit the larger one: containers would, and there are programs that go through all numbers up
to their limit, or that use select(2).
"""

from __future__ import annotations

import contextlib
import resource

_inherited: tuple[int, int] | None = None  # what the kernel keeps for a process, we do too


def raise_limit() -> None:
    """Raises our soft limit to the hard one."""
    global _inherited  # noqa: PLW0603
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        _inherited = _inherited or (soft, hard)


def inherited_limit() -> int:
    """The soft limit that we were started with, which a child should have."""
    return (_inherited or resource.getrlimit(resource.RLIMIT_NOFILE))[0]


def restore_limit(pid: int) -> None:
    """Gives a child that has just been started the limit that we were started with.

    It takes microseconds after the exec; a shim needs milliseconds to start what it starts.
    """
    if _inherited is not None:
        with contextlib.suppress(OSError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, _inherited)
