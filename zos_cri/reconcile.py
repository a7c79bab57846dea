"""What an earlier server left that no record names, and what didn't succeed at the first try.

A kill can fall between a thing and its record's end. `sweep` runs in the recovery, while nothing
else can change: whatever has no record then is a stray, and is removed. `Reconciler.watch` looks
again now and then, for what goes astray while the server runs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from zos_cri.audit import check
from zos_cri.audit.expected import OUR_CGROUPS, Records
from zos_cri.errors import Error, one_line
from zos_cri.linux import blocking
from zos_cri.log import get_log
from zos_cri.network.pod import PodNetwork
from zos_cri.shim import bundle as bundles
from zos_cri.store.lifecycle import ContainerState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from zos_cri.audit.model import Finding
    from zos_cri.audit.present import Look
    from zos_cri.cri.output import Output
    from zos_cri.cri.sandboxes import Sandboxes
    from zos_cri.images.store import ImageStore
    from zos_cri.linux.cgroup import Cgroups
    from zos_cri.metrics import Metrics
    from zos_cri.module.containers import Containers
    from zos_cri.module.execs import Execs
    from zos_cri.module.rootfs import DirectoryRootfs
    from zos_cri.network.cni import Network
    from zos_cri.shim.manager import ShimManager
    from zos_cri.shim.pool import WarmShims
    from zos_cri.store.model import ContainerMeta, ContainerStatus

_log = get_log(__name__)

RETRY_INTERVAL: Final = 10.0  # seconds; a CNI plugin that failed fails again for a while
AUDIT_INTERVAL: Final = 300.0  # seconds; a look takes about 10 ms of a thread with 100 pods


class Reconciler:
    """Finds strays and removes them."""

    def __init__(
        self,
        *,
        containers: Containers,
        sandboxes: Sandboxes,
        shims: ShimManager,
        warm: WarmShims,
        execs: Execs,
        images: ImageStore,
        rootfs: DirectoryRootfs,
        network: Network,
        output: Output,
        cgroups: Cgroups,
        metrics: Metrics,
        look: Look,
        damaged: Iterable[str],
    ) -> None:
        """
        Args:
            damaged: ids of records that are set aside: nothing of theirs is touched.
        """
        self._containers = containers
        self._sandboxes = sandboxes
        self._shims = shims
        self._warm = warm
        self._execs = execs
        self._images = images
        self._rootfs = rootfs
        self._network = network
        self._output = output
        self._cgroups = cgroups
        self._metrics = metrics
        self._look = look
        self._damaged = tuple(damaged)

    async def records(self) -> Records:
        """The records as they are now."""
        return Records(
            tuple((record.meta, record.status) for record in self._sandboxes.table),
            tuple((record.meta, record.status) for record in self._containers),
            self._damaged,
        )

    async def sweep(self) -> None:
        """Removes strays at start, while nothing else can change: shims with all they hold, too.

        Of the shims those stay that were kept warm for pods to come.
        """
        await self._execs.recover()
        await tidy_cgroups(self._containers, self._cgroups)
        if self._damaged:
            _log.warning("of damaged records nothing is removed", records=len(self._damaged))
        await self._end_shims()
        # What the images know of a container may be more than its directory.
        known = {record.meta.id for record in self._containers} | set(self._damaged)
        for id_ in set(await self._images.container_ids()) - known:
            _log.warning("stray root filesystem", container=id_)
            await _quietly("root filesystem", self._rootfs.release(id_))
        await _quietly("what the audit finds", self._fix_orphans())

    async def _fix_orphans(self) -> None:
        await check.fix(await self._orphans(), self, self._cgroups)

    async def _end_shims(self) -> None:
        records = await self.records()
        wanted = {meta.group for meta, status in records.sandboxes if not status.released}
        wanted |= {meta.group for meta, status in records.containers if _needs_shim(meta, status)}
        damaged = set(records.damaged)
        held = await blocking.call(bundles.containers, self._shims.bundles)
        wanted |= damaged | {group for group, ids in held.items() if damaged.intersection(ids)}
        found = [path.name for path in await blocking.call(bundles.groups, self._shims.bundles)]
        strays = [group for group in found if group not in wanted]
        kept = await self._warm.adopt(strays)
        for group in strays:
            if group not in kept:
                _log.warning("stray shim", group=group)
                await _quietly("shim", self._shims.stop(group))

    async def _orphans(self) -> list[Finding]:
        return [f for f in await check.once(self._look, self.records) if f.orphan]

    async def watch(self) -> None:
        """Audits for ever: removes strays that are dead, and tells of the other differences."""
        while True:
            await asyncio.sleep(AUDIT_INTERVAL)
            try:
                await self.audit()
            except Exception:
                _log.exception("audit failed")

    async def collect(self) -> None:
        """Has the CNI plugins that can (1.1) give back what no pod of ours has any more."""
        await _quietly("addresses", self._network.gc(self._pods))

    def _pods(self) -> set[str]:
        return {record.meta.id for record in self._sandboxes.table} | set(self._damaged)

    async def audit(self, *, settle: float = check.SETTLE) -> list[Finding]:
        """One audit; returns what differs still."""
        findings = await check.audit(self._look, self.records, settle=settle)
        done = await check.fix(findings, self, self._cgroups)
        left = [finding for finding in findings if finding not in done.removed]
        self._metrics.audited(finding.verdict for finding in left)
        for f in left:
            _log.warning("difference", verdict=f.verdict, kind=f.kind, id=f.id, where=f.where)
        return left

    # ---- Hands: called by `check.fix`

    async def detach(self, pod_id: str) -> None:
        await self._network.delete(PodNetwork(id=pod_id))

    async def release(self, container_id: str) -> None:
        await self._rootfs.release(container_id)

    async def forget(self, container_id: str) -> None:
        await self._output.detach(container_id)


def _needs_shim(meta: ContainerMeta, status: ContainerStatus) -> bool:
    """One of a pod that has ended doesn't: when the pod was stopped, others may have taken it."""
    return meta.group == meta.id or status.state is not ContainerState.EXITED


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
