"""libc's allocator, told to keep what it was given."""

from __future__ import annotations

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def keep_freed_memory(largest: int, kept: int) -> bool:
    """Keeps freed memory for the next allocation instead of giving it back to the kernel.

    For a process that makes and drops the same large buffers all the time: without this glibc may
    unmap each and fault it in again, page by page (measured in the logger: 800,000 faults and
    three times the CPU a GB).

    Args:
        largest: bytes; larger allocations are still mapped and unmapped, each by itself.
        kept: bytes of free memory above which some is given back.

    Returns:
        Whether libc has such settings (glibc has, musl doesn't need them).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, largest) and mallopt(_M_TRIM_THRESHOLD, kept))
