"""Reads containers and pods, in a worker thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from zos_cri.errors import NotFound
from zos_cri.linux.cgroupfiles import Budget, CgroupReader
from zos_cri.linux.netdev import interfaces
from zos_cri.stats import processes
from zos_cri.stats.clock import Clock, Rate
from zos_cri.stats.model import ContainerSample, Detail, PodSample

if TYPE_CHECKING:
    from zos_cri.linux.cgroup import Cgroups
    from zos_cri.stats.model import ContainerTarget, PodTarget


class ContainerReader(Protocol):
    """Reads one container again and again. Blocks; not for two threads at once."""

    def read(self, target: ContainerTarget, *, detail: bool) -> ContainerSample:
        """
        Raises:
            NotFound: its cgroup is gone.
            OSError: the kernel refused.
        """

    def close(self) -> None:
        """Closes its files. Idempotent."""


class PodReader(Protocol):
    """Reads one pod again and again. Blocks; not for two threads at once."""

    def read(self, target: PodTarget) -> PodSample:
        """
        Raises:
            NotFound: its network namespace is gone.
            OSError: the kernel refused.
        """

    def close(self) -> None:
        """Closes its files. Idempotent."""


class Collector(Protocol):
    """Where readers come from."""

    def container(self, target: ContainerTarget) -> ContainerReader: ...

    def pod(self, target: PodTarget) -> PodReader: ...


class KernelCollector:
    """Reads cgroups, namespaces and /proc."""

    def __init__(self, cgroups: Cgroups, *, open_files: int) -> None:
        """
        Args:
            open_files: how many cgroup files are kept open at most.
        """
        self._cgroups = cgroups
        self._budget = Budget.of_process(open_files)
        self._clock = Clock()

    def container(self, target: ContainerTarget) -> ContainerReader:
        return _Container(self._cgroups, target, self._budget, self._clock)

    def pod(self, target: PodTarget) -> PodReader:
        return _Pod(self._cgroups, target, self._budget, self._clock)


class _Container:
    def __init__(
        self, cgroups: Cgroups, target: ContainerTarget, budget: Budget, clock: Clock
    ) -> None:
        self._cgroups = cgroups
        self._files = CgroupReader(cgroups.paths(target.cgroup), budget)
        self._clock = clock
        self._rate = Rate()

    def read(self, target: ContainerTarget, *, detail: bool) -> ContainerSample:
        now = self._clock.now()
        stats = self._files.read()
        assert stats.cpu is not None  # `CgroupReader.read` says so
        count = self._files.processes()
        threads = stats.pids or count
        if count == 0 and threads:  # they are all in cgroups that it made itself
            count = len(self._cgroups.pids(target.cgroup))
        return ContainerSample(
            timestamp=now,
            cpu=stats.cpu,
            nano_cores=self._rate.update(now, stats.cpu.usage_ns),
            memory=stats.memory,
            pressure=dict(stats.pressure),
            processes=count,
            threads=threads,
            detail=self._detail(target) if detail else None,
        )

    def _detail(self, target: ContainerTarget) -> Detail:
        held, sockets = processes.descriptors(self._cgroups.pids(target.cgroup))
        return Detail(
            stats=self._cgroups.stats(target.cgroup),
            descriptors=held,
            sockets=sockets,
            file_limit=processes.file_limit(target.pid),
        )

    def close(self) -> None:
        self._files.close()


class _Pod:
    def __init__(self, cgroups: Cgroups, target: PodTarget, budget: Budget, clock: Clock) -> None:
        path = target.cgroup
        self._files = CgroupReader(cgroups.paths(path), budget) if path else None
        self._clock = clock
        self._rate = Rate()

    def read(self, target: PodTarget) -> PodSample:
        now = self._clock.now()
        found = interfaces(target.netns) if target.netns else None
        try:
            stats = None if self._files is None else self._files.read()
        except NotFound:  # the runtime makes it with the pod's first container
            stats = None
        if stats is None:
            return PodSample(timestamp=now, interfaces=found)
        assert stats.cpu is not None  # `CgroupReader.read` says so
        return PodSample(
            timestamp=now,
            cpu=stats.cpu,
            nano_cores=self._rate.update(now, stats.cpu.usage_ns),
            memory=stats.memory,
            pressure=dict(stats.pressure),
            interfaces=found,
        )

    def close(self) -> None:
        if self._files is not None:
            self._files.close()
