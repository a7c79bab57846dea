"""Which descriptors this process has: a test compares what is open before and after it."""

from __future__ import annotations

import os


def open_descriptors() -> set[tuple[str, str]]:
    """Each open descriptor as its number and what it leads to (proc_pid_fd(5)).

    A test that leaves nothing ends with no pair that wasn't there: ``after <= before``. Fewer is
    no fault of its own: garbage of an earlier test may be collected, and so closed, meanwhile.
    """
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
        except FileNotFoundError:  # the listing's own, or one closed by a thread
            continue
    return found
