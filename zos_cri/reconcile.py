"""What an earlier server left that no record names, and what didn't succeed at the first try.

A kill can fall between a thing and its record's end. `sweep` runs in the recovery, while nothing
else can change: whatever has no record then is a stray, and is removed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from zos_cri.errors import Error, one_line
from zos_cri.linux import blocking
from zos_cri.log import get_log
from zos_cri.shim import bundle as bundles

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from zos_cri.cri.sandboxes import Sandboxes
    from zos_cri.images.store import ImageStore
    from zos_cri.linux.cgroup import Cgroups
    from zos_cri.module.containers import Containers
    from zos_cri.module.execs import Execs
    from zos_cri.module.rootfs import DirectoryRootfs
    from zos_cri.shim.manager import ShimManager
    from zos_cri.shim.pool import WarmShims

_log = get_log(__name__)

RETRY_INTERVAL: Final = 10.0  # seconds; a CNI plugin that failed fails again for a while
# Where containers' cgroups are whose caller names no parent: `zos-cri` for pods, `zos` for the
# module. They are made by the runtime on the way, and nobody removes them.
OUR_CGROUPS: Final = ("/zos-cri", "/zos")


async def sweep(
    *,
    containers: Containers,
    sandboxes: Sandboxes,
    shims: ShimManager,
    warm: WarmShims,
    execs: Execs,
    images: ImageStore,
    rootfs: DirectoryRootfs,
    cgroups: Cgroups,
    damaged: int,
) -> None:
    """Removes strays: shims, root filesystems, execs' FIFOs, empty cgroups of ours.

    Of the shims those stay that were kept warm for pods to come.

    Args:
        damaged: records that are set aside. What they name can't be told from strays: with any,
            no shim and no root filesystem is touched.
    """
    await execs.recover()
    await tidy_cgroups(containers, cgroups)
    if damaged:
        _log.warning("strays are left alone: there are damaged records", records=damaged)
        return
    groups = {record.meta.id for record in sandboxes.table}
    groups |= {record.meta.group for record in containers}
    found = [path.name for path in await blocking.call(bundles.groups, shims.bundles)]
    strays = [group for group in found if group not in groups]
    kept = await warm.adopt(strays)
    for group in strays:
        if group not in kept:
            _log.warning("stray shim", group=group)
            await _quietly("shim", shims.stop(group))
    known = {record.meta.id for record in containers}
    for id_ in {*await images.container_ids(), *await rootfs.container_ids()} - known:
        _log.warning("stray root filesystem", container=id_)
        await _quietly("root filesystem", rootfs.release(id_))


async def tidy_cgroups(containers: Containers, cgroups: Cgroups) -> None:
    """Removes the cgroups above our containers' own when there are no containers."""
    if len(containers.table):
        return
    for path in OUR_CGROUPS:
        await blocking.call(cgroups.remove_empty, path)


async def retry_releases(sandboxes: Sandboxes) -> None:
    """Tries again, for ever, to release what pods that were stopped or removed still hold."""
    while True:
        await asyncio.sleep(RETRY_INTERVAL)
        await sandboxes.retry_releases()


async def _quietly(what: str, work: Awaitable[None]) -> None:
    try:
        await work
    except (Error, OSError) as error:
        _log.error("stray not removed", what=what, error=one_line(error))
