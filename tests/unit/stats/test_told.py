from __future__ import annotations

import pytest
from google.protobuf import any_pb2

from zos_cri._pb import cgroups_v1_pb2, cgroups_v2_pb2
from zos_cri.errors import Internal, Unimplemented
from zos_cri.shim.handler import pack
from zos_cri.stats.told import cgroup_stats


def test_version_2() -> None:
    metrics = cgroups_v2_pb2.Metrics()
    metrics.cpu.usage_usec, metrics.cpu.user_usec, metrics.cpu.system_usec = 9, 5, 4
    metrics.memory.usage, metrics.memory.inactive_file, metrics.memory.anon = 100, 30, 60
    metrics.memory.usage_limit, metrics.memory.swap_limit = 2**64 - 1, 50
    metrics.memory.pgfault, metrics.memory.pgmajfault, metrics.memory.swap_usage = 3, 2, 1
    metrics.pids.current = 6
    sample = cgroup_stats(pack(metrics), 77)
    assert sample.timestamp_ns == 77
    assert sample.cpu is not None
    assert (sample.cpu.usage_ns, sample.cpu.user_ns, sample.cpu.system_ns) == (9000, 5000, 4000)
    memory = sample.memory
    assert memory is not None
    assert (memory.usage, memory.working_set, memory.rss) == (100, 70, 60)
    assert (memory.limit, memory.swap_limit, memory.swap) == (None, 50, 1)
    assert (memory.page_faults, memory.major_page_faults) == (3, 2)
    assert sample.pids == 6


def test_version_1() -> None:
    metrics = cgroups_v1_pb2.Metrics()
    metrics.cpu.usage.total, metrics.cpu.usage.user, metrics.cpu.usage.kernel = 9, 5, 4
    metrics.cpu.throttling.periods = 8
    memory = metrics.memory
    memory.usage.usage, memory.usage.limit, memory.swap.usage = 100, 200, 130
    memory.total_inactive_file, memory.total_rss, memory.total_cache = 120, 60, 40
    sample = cgroup_stats(pack(metrics), 77)
    assert sample.cpu is not None
    assert (sample.cpu.usage_ns, sample.cpu.user_ns, sample.cpu.periods) == (9, 5, 8)
    assert sample.memory is not None
    assert (sample.memory.usage, sample.memory.working_set, sample.memory.limit) == (100, 0, 200)
    assert (sample.memory.rss, sample.memory.file, sample.memory.swap) == (60, 40, 30)


def test_what_is_not_told_is_no_limit() -> None:
    sample = cgroup_stats(pack(cgroups_v2_pb2.Metrics()), 1)
    assert sample.memory is not None
    assert (sample.memory.limit, sample.memory.swap_limit) == (None, None)


@pytest.mark.parametrize(
    ("told", "error", "says"),
    [
        (any_pb2.Any(), Unimplemented, "no message"),
        (any_pb2.Any(type_url="a.machine.Metrics"), Unimplemented, "a.machine.Metrics"),
        (
            any_pb2.Any(type_url="io.containerd.cgroups.v2.Metrics", value=b"\xff"),
            Internal,
            "not a io.containerd.cgroups.v2.Metrics",
        ),
    ],
)
def test_something_else_is_named(told: any_pb2.Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        cgroup_stats(told, 1)


def test_protobufs_own_type_urls_are_read_too() -> None:
    metrics = any_pb2.Any()
    metrics.Pack(cgroups_v2_pb2.Metrics())
    assert cgroup_stats(metrics, 1).cpu is not None
