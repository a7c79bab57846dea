"""Samples as CRI's metrics, encoded: values in whole seconds and bytes, for CRI has only integers.

Every descriptor's name is among a container's or its pod's metrics; what isn't limited is 0.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

from zos_cri._pb import cri_pb2 as pb
from zos_cri.linux.cgroupstats import HugetlbStats, IoStats
from zos_cri.stats.descriptors import DESCRIPTORS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zos_cri.stats.model import ContainerSample, ContainerTarget, Detail, PodSample, PodTarget

_SECOND: Final = 1_000_000_000  # ns
# The kernel's defaults, where the container was given none.
_CPU_PERIOD: Final = 100_000  # µs
_CPU_SHARES: Final = 1024
_HUGE_PAGES: Final = "/sys/kernel/mm/hugepages"

Value = tuple[str, int, tuple[str, ...]]  # name without `container_`, value, further labels


class Disk(NamedTuple):
    """The filesystem that the writable layers are on; sizes in bytes."""

    major: int
    minor: int
    size: int
    inodes: int
    inodes_free: int

    @classmethod
    def of(cls, path: str) -> Disk:
        """
        Raises:
            OSError: there is no such path.
        """
        number = os.stat(path).st_dev
        found = os.statvfs(path)
        size = found.f_frsize * found.f_blocks
        return cls(os.major(number), os.minor(number), size, found.f_files, found.f_ffree)


class Devices:
    """Names of block devices."""

    def __init__(self, root: str = "/sys/dev/block") -> None:
        self._root = root
        self._names: dict[tuple[int, int], str] = {}

    def name(self, major: int, minor: int) -> str:
        """`/dev/sda`, or `8:0` where it has no name (that of a filesystem without a device)."""
        name = self._names.get((major, minor))
        if name is None:
            try:
                target = os.readlink(f"{self._root}/{major}:{minor}")
                name = f"/dev/{os.path.basename(target)}"
            except OSError:
                name = f"{major}:{minor}"
            self._names[(major, minor)] = name
        return name


class Encoder:
    """Makes metrics of samples. Blocks for a few microseconds, for the names of new devices."""

    def __init__(self, devices: Devices | None = None, page_sizes: tuple[str, ...] = ()) -> None:
        """
        Args:
            page_sizes: the sizes of huge pages, for containers whose cgroup doesn't tell.
        """
        self._devices = devices or Devices()
        self._page_sizes = page_sizes or huge_page_sizes()

    def container(
        self, target: ContainerTarget, sample: ContainerSample, *, layer: int, disk: Disk
    ) -> bytes:
        """A ContainerMetrics; of nothing but its id where the sample has no detail.

        Args:
            layer: bytes that its writable layer takes.
        """
        message = pb.ContainerMetrics(container_id=target.id)
        if sample.detail is not None:
            values = [
                *_cpu(sample, sample.detail),
                *_memory(sample, sample.detail),
                *_pressure(sample),
                *_processes(sample, sample.detail),
                *_limits(target),
                *self._disk(sample.detail, layer, disk),
                *self._huge_pages(sample.detail),
                ("last_seen", sample.timestamp // _SECOND, ()),
                ("start_time_seconds", target.started_at // _SECOND, ()),
            ]
            message.metrics.extend(
                _metric(value, sample.timestamp, target.labels) for value in values
            )
        return message.SerializeToString()

    def _disk(self, detail: Detail, layer: int, disk: Disk) -> Iterator[Value]:
        device = (self._devices.name(disk.major, disk.minor),)
        yield "fs_inodes_free", disk.inodes_free, device
        yield "fs_inodes_total", disk.inodes, device
        yield "fs_limit_bytes", disk.size, device
        yield "fs_usage_bytes", layer, device
        for io in detail.stats.io or (IoStats(disk.major, disk.minor),):
            device = (self._devices.name(io.major, io.minor),)
            yield "fs_reads_bytes_total", io.read_bytes, device
            yield "fs_reads_total", io.reads, device
            yield "fs_writes_bytes_total", io.write_bytes, device
            yield "fs_writes_total", io.writes, device
            numbers = (*device, str(io.major), str(io.minor))
            yield "blkio_device_usage_total", io.read_bytes, (*numbers, "Read")
            yield "blkio_device_usage_total", io.write_bytes, (*numbers, "Write")

    def _huge_pages(self, detail: Detail) -> Iterator[Value]:
        none = tuple(HugetlbStats(size) for size in self._page_sizes)
        for pages in detail.stats.hugetlb or none:
            yield "hugetlb_usage_bytes", pages.usage, (pages.page_size,)
            # Version 2 doesn't keep it: what is used now is the most that is known.
            peak = pages.usage if pages.peak is None else pages.peak
            yield "hugetlb_max_usage_bytes", peak, (pages.page_size,)


def pod_metrics(target: PodTarget, sample: PodSample) -> bytes:
    """A PodSandboxMetrics without its containers': the network's, which they share."""
    message = pb.PodSandboxMetrics(pod_sandbox_id=target.id)
    for found in sample.interfaces or ():
        name = (found.name,)
        for value in (
            ("network_receive_bytes_total", found.rx_bytes, name),
            ("network_receive_packets_total", found.rx_packets, name),
            ("network_receive_packets_dropped_total", found.rx_dropped, name),
            ("network_receive_errors_total", found.rx_errors, name),
            ("network_transmit_bytes_total", found.tx_bytes, name),
            ("network_transmit_packets_total", found.tx_packets, name),
            ("network_transmit_packets_dropped_total", found.tx_dropped, name),
            ("network_transmit_errors_total", found.tx_errors, name),
        ):
            message.metrics.append(_metric(value, sample.timestamp, target.labels))
    return message.SerializeToString()


def huge_page_sizes(root: str = _HUGE_PAGES) -> tuple[str, ...]:
    """The host's, as cgroups name them: `2MB`, `1GB`."""
    try:
        names = os.listdir(root)
    except OSError:
        return ()
    sizes = sorted(int(n.removeprefix("hugepages-").removesuffix("kB")) for n in names)
    return tuple(_page_size(kib) for kib in sizes)


def _page_size(kib: int) -> str:
    for unit, shift in (("GB", 20), ("MB", 10)):
        if kib >> shift:
            return f"{kib >> shift}{unit}"
    return f"{kib}KB"


def _metric(value: Value, timestamp: int, labels: tuple[str, ...]) -> pb.Metric:
    name = f"container_{value[0]}"
    return pb.Metric(
        name=name,
        timestamp=timestamp,
        metric_type=DESCRIPTORS[name].type,
        label_values=(*labels, *value[2]),
        value=pb.UInt64Value(value=value[1]),
    )


def _cpu(sample: ContainerSample, detail: Detail) -> Iterator[Value]:
    cpu = detail.stats.cpu or sample.cpu
    yield "cpu_usage_seconds_total", cpu.usage_ns // _SECOND, ()
    yield "cpu_user_seconds_total", cpu.user_ns // _SECOND, ()
    yield "cpu_system_seconds_total", cpu.system_ns // _SECOND, ()
    yield "cpu_cfs_periods_total", cpu.periods, ()
    yield "cpu_cfs_throttled_periods_total", cpu.throttled_periods, ()
    yield "cpu_cfs_throttled_seconds_total", cpu.throttled_ns // _SECOND, ()


def _memory(sample: ContainerSample, detail: Detail) -> Iterator[Value]:
    yield "oom_events_total", detail.stats.oom_kills, ()
    memory = sample.memory
    if memory is None:
        return
    yield "memory_cache", memory.file, ()
    yield "memory_rss", memory.rss, ()
    yield "memory_kernel_usage", memory.kernel, ()
    yield "memory_mapped_file", memory.mapped_file, ()
    yield "memory_swap", memory.swap, ()
    yield "memory_failcnt", memory.failures, ()
    yield "memory_usage_bytes", memory.usage, ()
    # Version 2 keeps it since Linux 5.19.
    yield "memory_max_usage_bytes", memory.usage if memory.peak is None else memory.peak, ()
    yield "memory_working_set_bytes", memory.working_set, ()
    # A container's cgroup counts with all below it, so both scopes are the same.
    for scope in ("container", "hierarchy"):
        yield "memory_failures_total", memory.page_faults, ("pgfault", scope)
        yield "memory_failures_total", memory.major_page_faults, ("pgmajfault", scope)


def _pressure(sample: ContainerSample) -> Iterator[Value]:
    for resource in ("cpu", "memory", "io"):
        found = sample.pressure.get(resource)
        waiting, stalled = (found.some.total_ns, found.full.total_ns) if found else (0, 0)
        yield f"pressure_{resource}_waiting_seconds_total", waiting // _SECOND, ()
        yield f"pressure_{resource}_stalled_seconds_total", stalled // _SECOND, ()


def _processes(sample: ContainerSample, detail: Detail) -> Iterator[Value]:
    yield "processes", sample.processes, ()
    yield "threads", sample.threads, ()
    yield "threads_max", detail.stats.pids_limit or 0, ()
    yield "sockets", detail.sockets, ()
    yield "file_descriptors", detail.descriptors, ()
    if detail.file_limit is not None:
        yield "ulimits_soft", detail.file_limit, ("max_open_files",)


def _limits(target: ContainerTarget) -> Iterator[Value]:
    limits = target.limits
    yield "spec_cpu_period", limits.cpu_period or _CPU_PERIOD, ()
    yield "spec_cpu_quota", max(0, limits.cpu_quota), ()
    yield "spec_cpu_shares", limits.cpu_shares or _CPU_SHARES, ()
    yield "spec_memory_limit_bytes", max(0, limits.memory), ()
    yield "spec_memory_reservation_limit_bytes", max(0, limits.memory_reservation), ()
    yield "spec_memory_swap_limit_bytes", max(0, limits.memory_swap), ()
