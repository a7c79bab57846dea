"""What shims tell of pods and containers that this kernel has no cgroups of: of virtual machines.

A pod's is SandboxMetrics, a container's is Stats. Shims are asked in the background, each for one
thing at a time; answers are given from what they have said last.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

from zos_cri.errors import Error, one_line
from zos_cri.log import get_log
from zos_cri.shim.handler import SHIM
from zos_cri.stats.clock import Clock, Rate
from zos_cri.stats.model import ContainerSample, PodSample
from zos_cri.stats.told import cgroup_stats
from zos_cri.store.lifecycle import SandboxState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.any_pb2 import Any as AnyMessage

    from zos_cri.linux.cgroupstats import CgroupStats, CpuStats
    from zos_cri.module.containers import Containers
    from zos_cri.shim.manager import ShimManager
    from zos_cri.store.db import Table
    from zos_cri.store.model import SandboxMeta, SandboxStatus

_log = get_log(__name__)

ASK_TIMEOUT: Final = 5.0  # a machine's agent is asked in turn
WAIT_TIMEOUT: Final = 2.0  # of whoever waits for the first numbers


class _Known:
    """What was told of a pod or a container, and how fast it uses up CPU time."""

    def __init__(self) -> None:
        self.stats: CgroupStats | None = None
        self.nano_cores: int | None = None
        self._rate = Rate()

    def update(self, stats: CgroupStats, cpu: CpuStats) -> None:
        self.stats = stats
        self.nano_cores = self._rate.update(stats.timestamp_ns, cpu.usage_ns)


class ShimStats:
    """Implements `stats.sampler.Told`."""

    def __init__(
        self,
        *,
        table: Table[SandboxMeta, SandboxStatus],
        containers: Containers,
        shims: ShimManager,
    ) -> None:
        self._table = table
        self._containers = containers
        self._shims = shims
        self._known: dict[str, _Known] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._clock = Clock()

    def ask(self, containers: Iterable[str]) -> None:
        """Has newer numbers come: of the pods whose shims made them, and of these containers."""
        pods = [r.meta.id for r in self._table if self._made_by_shim(r.meta.id)]
        groups = {id_: self._group(id_) for id_ in containers}
        wanted = {**{id_: id_ for id_ in pods}, **{i: g for i, g in groups.items() if g}}
        for id_ in self._known.keys() - wanted.keys():
            del self._known[id_]
        for id_, group in wanted.items():
            self._ask(id_, group)

    async def measured(self, id_: str) -> None:
        """Waits for the first numbers of a pod or a container; not for those that have some."""
        group = id_ if self._made_by_shim(id_) else self._group(id_)
        if not group or id_ in self._known:
            return
        await asyncio.wait([self._ask(id_, group)], timeout=WAIT_TIMEOUT)

    def pod(self, id_: str) -> PodSample | None:
        known = self._known.get(id_)
        if known is None or known.stats is None:
            return None
        stats = known.stats
        return PodSample(
            timestamp=stats.timestamp_ns,
            cpu=stats.cpu,
            nano_cores=known.nano_cores,
            memory=stats.memory,
        )

    def container(self, id_: str) -> ContainerSample | None:
        known = self._known.get(id_)
        if known is None or known.stats is None:
            return None
        stats, threads = known.stats, known.stats.pids or 0
        assert stats.cpu is not None  # `cgroup_stats` says so
        return ContainerSample(
            timestamp=stats.timestamp_ns,
            cpu=stats.cpu,
            nano_cores=known.nano_cores,
            memory=stats.memory,
            pressure={},
            processes=threads,  # nobody tells them apart
            threads=threads,
        )

    def _made_by_shim(self, pod: str) -> bool:
        record = self._table.get(pod)
        if record is None or record.status.state is not SandboxState.READY:
            return False
        return record.meta.sandboxer == SHIM

    def _group(self, container: str) -> str:
        """The pod of a container, where its shim made it; else ""."""
        record = self._containers.get(container)
        return record.meta.ns if record is not None and self._made_by_shim(record.meta.ns) else ""

    def _ask(self, id_: str, group: str) -> asyncio.Task[None]:
        task = self._asking.get(id_)
        if task is None:
            task = asyncio.create_task(self._measure(id_, group), name=f"numbers of {id_}")
            self._asking[id_] = task
            task.add_done_callback(partial(self._asked, id_))
        return task

    def _asked(self, id_: str, done: asyncio.Task[None]) -> None:
        del self._asking[id_]
        if not done.cancelled() and (error := done.exception()) is not None:
            _log.error("numbers not asked for", of=id_, error=one_line(error))

    async def _measure(self, id_: str, group: str) -> None:
        try:
            told = await self._told(id_, group)
            if told is None:
                return
            stats = cgroup_stats(told, self._clock.now())
        except Error as error:
            _log.debug("shim tells no numbers", of=id_, error=one_line(error))
            return
        assert stats.cpu is not None  # `cgroup_stats` says so
        self._known.setdefault(id_, _Known()).update(stats, stats.cpu)

    async def _told(self, id_: str, group: str) -> AnyMessage | None:
        shim = self._shims.get(group)
        if shim is None or shim.sandbox is None:
            return None
        if id_ == group:
            return await shim.sandbox.metrics(id_, timeout=ASK_TIMEOUT)
        return await shim.task.stats(id_, timeout=ASK_TIMEOUT)

    async def aclose(self) -> None:
        """Asks no more."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
