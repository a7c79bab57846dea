"""`favordynmods`: a kernel that moves processes into cgroups at once.

Without it each move waits for an RCU grace period, 10 to 15 ms, at every container's start and
every exec; with it, fork and exit of every process cost a little more. It is an option of a mount
of cgroups (Linux 6.0), holds for the whole host, and stays on until the host is restarted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from zos_cri.errors import Error, one_line
from zos_cri.linux import blocking, spawn
from zos_cri.linux.mount import all_mounts
from zos_cri.log import get_log

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zos_cri.linux.mount import MountInfo

_log = get_log(__name__)

OPTION: Final = "favordynmods"
MOUNT_TIMEOUT: Final = 10.0  # it waits for one grace period


class Run(Protocol):
    """How a program is run to its end: `spawn.run`."""

    async def __call__(self, argv: Sequence[str], *, timeout: float) -> spawn.Completed: ...


async def favored(mounts: Callable[[], list[MountInfo]] = all_mounts) -> bool:
    """Whether it is on, as any of the host's cgroup mounts says."""
    found = await blocking.call(mounts)
    return any(_is_cgroup(each) and OPTION in each.super_options for each in found)


async def favor(run: Run = spawn.run, mounts: Callable[[], list[MountInfo]] = all_mounts) -> bool:
    """Turns it on where it isn't. A host that can't have it is none the worse: it is only slower.

    Returns:
        Whether it is on now.
    """
    if await favored(mounts):
        return True
    found = [each for each in await blocking.call(mounts) if _is_cgroup(each)]
    # Any hierarchy will do; cgroup2's is there with every mode but the pure v1.
    found.sort(key=lambda each: each.type != "cgroup2")
    if not found:
        _log.warning("no favordynmods", error="no cgroups are mounted")
        return False
    target = found[0].target
    try:
        # mount(8) gives the options that are in force again, which a remount would take away.
        done = await run(("mount", "-o", f"remount,{OPTION}", target), timeout=MOUNT_TIMEOUT)
    except (Error, OSError) as error:
        _log.warning("no favordynmods", mount=target, error=one_line(error))
        return False
    if done.returncode:
        _log.warning("no favordynmods", mount=target, error=done.failure())
        return False
    return await favored(mounts)


def _is_cgroup(mount: MountInfo) -> bool:
    return mount.type in ("cgroup", "cgroup2") and mount.target.startswith("/sys/fs/cgroup")
