from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from tests.fakes.stats import container, pod, sample
from zos_cri._pb import cri_pb2 as pb
from zos_cri.linux.cgroupstats import (
    CgroupStats,
    CpuStats,
    HugetlbStats,
    IoStats,
    MemoryStats,
    Pressure,
    Stall,
)
from zos_cri.linux.netdev import Interface
from zos_cri.stats import metrics
from zos_cri.stats.descriptors import BASE_LABELS, DESCRIPTORS
from zos_cri.stats.metrics import Devices, Disk, Encoder
from zos_cri.stats.model import Limits, PodSample

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

DISK = Disk(253, 0, size=1000, inodes=50, inodes_free=40)
SECOND = 1_000_000_000
Labels = tuple[str, ...]


def by_name(found: Iterable[pb.Metric]) -> dict[str, dict[Labels, int]]:
    """Values by name without `container_`, and by the labels beside the common ones."""
    values: dict[str, dict[Labels, int]] = {}
    for metric in found:
        labels = tuple(metric.label_values)[len(BASE_LABELS) :]
        name = metric.name.removeprefix("container_")
        assert labels not in values.setdefault(name, {})
        values[name][labels] = metric.value.value
    return values


def encoded(
    tmp_path: Path, *, limits: Limits | None = None, **fields: object
) -> pb.ContainerMetrics:
    one = sample(7 * SECOND, detail=True)
    assert one.detail is not None
    detail = msgspec.structs.replace(one.detail, **fields.pop("detail", {}))  # type: ignore[arg-type]
    one = msgspec.structs.replace(one, detail=detail, **fields)
    target = msgspec.structs.replace(container("c"), limits=limits or Limits())
    encoder = Encoder(Devices(str(tmp_path)), page_sizes=("2MB",))
    return pb.ContainerMetrics.FromString(encoder.container(target, one, layer=99, disk=DISK))


def test_every_name_with_as_many_values_as_keys(tmp_path: Path) -> None:
    message = encoded(tmp_path)
    network = pb.PodSandboxMetrics.FromString(
        metrics.pod_metrics(pod("p"), PodSample(timestamp=1, interfaces=(Interface("eth0"),)))
    )
    assert (message.container_id, network.pod_sandbox_id) == ("c", "p")
    for metric in (*message.metrics, *network.metrics):
        descriptor = DESCRIPTORS[metric.name]
        assert len(metric.label_values) == len(BASE_LABELS) + len(descriptor.labels)
        assert metric.metric_type == descriptor.type
        assert metric.HasField("value")
    assert {m.name for m in (*message.metrics, *network.metrics)} == set(DESCRIPTORS)
    assert all(m.timestamp == 7 * SECOND for m in message.metrics)
    assert list(message.metrics[0].label_values) == ["pod", "ns", "c", "c", "image"]


def test_seconds_are_whole(tmp_path: Path) -> None:
    cpu = CpuStats(3 * SECOND - 1, 2 * SECOND, SECOND, 10, 4, 5 * SECOND)
    stall = Pressure(some=Stall(total_ns=8 * SECOND), full=Stall(total_ns=6 * SECOND))
    detail = {"stats": CgroupStats(timestamp_ns=0, cpu=cpu, oom_kills=2, pids_limit=30)}
    values = by_name(encoded(tmp_path, detail=detail, pressure={"io": stall}).metrics)
    assert values["cpu_usage_seconds_total"] == {(): 2}
    assert values["cpu_user_seconds_total"] == {(): 2}
    assert values["cpu_cfs_throttled_seconds_total"] == {(): 5}
    assert values["pressure_io_waiting_seconds_total"] == {(): 8}
    assert values["pressure_io_stalled_seconds_total"] == {(): 6}
    assert values["pressure_cpu_stalled_seconds_total"] == {(): 0}
    assert values["start_time_seconds"] == {(): 5}
    assert values["last_seen"] == {(): 7}
    assert values["oom_events_total"] == {(): 2}
    assert values["threads_max"] == {(): 30}


def test_memory_and_its_failures(tmp_path: Path) -> None:
    memory = MemoryStats(usage=9, rss=8, file=7, page_faults=6, major_page_faults=5)
    values = by_name(encoded(tmp_path, memory=memory).metrics)
    assert values["memory_max_usage_bytes"] == {(): 9}  # the kernel doesn't keep it
    assert values["memory_failures_total"] == {
        ("pgfault", "container"): 6,
        ("pgmajfault", "container"): 5,
        ("pgfault", "hierarchy"): 6,
        ("pgmajfault", "hierarchy"): 5,
    }
    peak = MemoryStats(usage=9, peak=20)
    values = by_name(encoded(tmp_path, memory=peak).metrics)
    assert values["memory_max_usage_bytes"] == {(): 20}
    assert "memory_rss" not in by_name(encoded(tmp_path, memory=None).metrics)


def test_disks_by_name(tmp_path: Path) -> None:
    (tmp_path / "8:0").symlink_to("../../devices/pci/block/sda")
    io = (IoStats(8, 0, 10, 20, 1, 2), IoStats(9, 1))
    detail = {"stats": CgroupStats(timestamp_ns=0, io=io)}
    values = by_name(encoded(tmp_path, detail=detail).metrics)
    assert values["fs_reads_bytes_total"] == {("/dev/sda",): 10, ("9:1",): 0}
    assert values["fs_writes_total"] == {("/dev/sda",): 2, ("9:1",): 0}
    assert values["blkio_device_usage_total"][("/dev/sda", "8", "0", "Write")] == 20
    assert values["fs_usage_bytes"] == {("253:0",): 99}
    assert values["fs_limit_bytes"] == {("253:0",): 1000}
    assert values["fs_inodes_free"] == {("253:0",): 40}


def test_huge_pages(tmp_path: Path) -> None:
    pages = (HugetlbStats("2MB", usage=4, peak=6), HugetlbStats("1GB", usage=8))
    detail = {"stats": CgroupStats(timestamp_ns=0, hugetlb=pages)}
    values = by_name(encoded(tmp_path, detail=detail).metrics)
    assert values["hugetlb_usage_bytes"] == {("2MB",): 4, ("1GB",): 8}
    assert values["hugetlb_max_usage_bytes"] == {("2MB",): 6, ("1GB",): 8}


def test_limits(tmp_path: Path) -> None:
    values = by_name(encoded(tmp_path).metrics)
    assert values["spec_cpu_period"] == {(): 100_000}
    assert values["spec_cpu_shares"] == {(): 1024}
    assert values["spec_cpu_quota"] == values["spec_memory_limit_bytes"] == {(): 0}
    given = Limits(cpu_period=1, cpu_quota=-1, cpu_shares=3, memory=4, memory_swap=5)
    values = by_name(encoded(tmp_path, limits=given).metrics)
    assert values["spec_cpu_period"] == {(): 1}
    assert values["spec_cpu_quota"] == {(): 0}  # -1 is none
    assert values["spec_memory_swap_limit_bytes"] == {(): 5}


def test_without_detail_there_are_none() -> None:
    message = Encoder().container(container("c"), sample(), layer=0, disk=DISK)
    assert pb.ContainerMetrics.FromString(message) == pb.ContainerMetrics(container_id="c")


def test_a_process_without_a_limit_has_no_value_for_it(tmp_path: Path) -> None:
    message = encoded(tmp_path, detail={"file_limit": None})
    assert "ulimits_soft" not in by_name(message.metrics)


def test_a_pod_on_the_hosts_network_has_no_metrics_of_its_own() -> None:
    message = metrics.pod_metrics(pod("p"), PodSample(timestamp=1))
    assert pb.PodSandboxMetrics.FromString(message) == pb.PodSandboxMetrics(pod_sandbox_id="p")


def test_the_disk_of_a_path(tmp_path: Path) -> None:
    disk = Disk.of(str(tmp_path))
    assert disk.size > 0
    assert os.makedev(disk.major, disk.minor) == tmp_path.stat().st_dev


def test_page_sizes_as_cgroups_name_them(tmp_path: Path) -> None:
    for name in ("hugepages-1048576kB", "hugepages-2048kB", "hugepages-64kB"):
        (tmp_path / name).mkdir()
    assert metrics.huge_page_sizes(str(tmp_path)) == ("64KB", "2MB", "1GB")
    assert metrics.huge_page_sizes(str(tmp_path / "missing")) == ()
