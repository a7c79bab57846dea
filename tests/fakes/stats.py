"""Containers, pods and their readings for the sampler, without a kernel."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from zos_cri.images.model import Usage
from zos_cri.linux.cgroupstats import CgroupStats, CpuStats, MemoryStats
from zos_cri.linux.netdev import Interface
from zos_cri.stats.model import (
    ContainerSample,
    ContainerTarget,
    Detail,
    PodSample,
    PodTarget,
)

if TYPE_CHECKING:
    from zos_cri.stats.collector import ContainerReader, PodReader


def container(id_: str, *, cgroup: str = "") -> ContainerTarget:
    return ContainerTarget(
        id=id_,
        cgroup=cgroup or f"/pod/{id_}",
        pid=1,
        started_at=5_000_000_000,
        attributes=b"",
        labels=("pod", "ns", id_, id_, "image"),
    )


def pod(id_: str, *, cgroup: str = "/pod") -> PodTarget:
    return PodTarget(
        id=id_, cgroup=cgroup, netns="/net", attributes=b"", labels=("pod", "ns", "", id_, "")
    )


def sample(
    timestamp: int = 1, *, cpu: int = 0, usage: int = 0, detail: bool = False
) -> ContainerSample:
    stats = CgroupStats(timestamp_ns=0, cpu=CpuStats(usage_ns=cpu))
    more = Detail(stats=stats, descriptors=4, sockets=1, file_limit=1024)
    return ContainerSample(
        timestamp=timestamp,
        cpu=CpuStats(usage_ns=cpu),
        nano_cores=None,
        memory=MemoryStats(usage=usage, working_set=usage),
        pressure={},
        processes=2,
        threads=3,
        detail=more if detail else None,
    )


class FakeTargets:
    """What is there is what a test puts in."""

    def __init__(self) -> None:
        self.running: dict[str, ContainerTarget] = {}
        self.ready: dict[str, PodTarget] = {}
        self.written: dict[str, bool] = {}

    def containers(self) -> list[ContainerTarget]:
        return list(self.running.values())

    def container(self, id_: str) -> ContainerTarget | None:
        return self.running.get(id_)

    def pods(self) -> list[PodTarget]:
        return list(self.ready.values())

    def layers(self) -> dict[str, bool]:
        return dict(self.written)


class FakeCollector:
    """Counts the readings of each id.

    Attributes:
        errors: what reading an id raises.
        opened: readers by id, less those that were closed.
        threads: the threads that read.
        gate: readings wait until it is set.
    """

    def __init__(self) -> None:
        self.reads: dict[str, int] = {}
        self.detailed: list[str] = []
        self.errors: dict[str, Exception] = {}
        self.opened: dict[str, int] = {}
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()

    def container(self, target: ContainerTarget) -> ContainerReader:
        return _Reader(self, target.id)

    def pod(self, target: PodTarget) -> PodReader:
        return _PodReader(self, target.id)

    def read(self, id_: str) -> int:
        self.gate.wait(10)
        self.threads.add(threading.current_thread().name)
        if id_ in self.errors:
            raise self.errors[id_]
        self.reads[id_] = self.reads.get(id_, 0) + 1
        return self.reads[id_]


class _Opened:
    def __init__(self, collector: FakeCollector, id_: str) -> None:
        self._collector = collector
        self._id = id_
        collector.opened[id_] = collector.opened.get(id_, 0) + 1

    def close(self) -> None:
        self._collector.opened[self._id] -= 1


class _Reader(_Opened):
    def read(self, target: ContainerTarget, *, detail: bool) -> ContainerSample:
        if detail:
            self._collector.detailed.append(target.id)
        count = self._collector.read(target.id)
        return sample(count, cpu=count * 1000, usage=4096, detail=detail)


class _PodReader(_Opened):
    def read(self, target: PodTarget) -> PodSample:
        count = self._collector.read(target.id)
        cpu = CpuStats(usage_ns=count * 1000) if target.cgroup == "/own" else None
        interfaces = (Interface("eth0", rx_bytes=count),)
        return PodSample(timestamp=count, cpu=cpu, interfaces=interfaces)


class FakeLayers:
    """Measures writable layers."""

    def __init__(self) -> None:
        self.measured: list[str] = []
        self.sizes: dict[str, Usage] = {}
        self.errors: dict[str, Exception] = {}

    async def __call__(self, id_: str) -> Usage:
        self.measured.append(id_)
        if id_ in self.errors:
            raise self.errors[id_]
        return self.sizes.get(id_, Usage(100, 2))
