"""What shims tell of cgroups, as samples: of what runs where this kernel can't see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from zos_cri._pb import cgroups_v1_pb2 as v1
from zos_cri._pb import cgroups_v2_pb2 as v2
from zos_cri.errors import Internal, Unimplemented
from zos_cri.linux.cgroupstats import CgroupStats, CpuStats, MemoryStats

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as AnyMessage

# A limit as large as this is none: v1 says the largest multiple of a page, v2's readers 2^64 - 1.
_NONE: Final = 1 << 62
_MOST: Final = (1 << 64) - 1  # that our own answers can hold


def cgroup_stats(told: AnyMessage, timestamp: int) -> CgroupStats:
    """What a cgroup uses; `cpu` and `memory` are always there.

    Args:
        told: io.containerd.cgroups.v1.Metrics or v2's.
        timestamp: when they were told, ns since the epoch.

    Raises:
        Unimplemented: it is another message.
        Internal: it isn't what it says.
    """
    name = told.type_url.rpartition("/")[2]
    try:
        if name == v2.Metrics.DESCRIPTOR.full_name:
            return _of_v2(v2.Metrics.FromString(told.value), timestamp)
        if name == v1.Metrics.DESCRIPTOR.full_name:
            return _of_v1(v1.Metrics.FromString(told.value), timestamp)
    except DecodeError as error:
        raise Internal(f"metrics: not a {name}") from error
    raise Unimplemented(f"metrics: {name or 'no message'} isn't read here, only cgroups' are")


def _of_v2(metrics: v2.Metrics, timestamp: int) -> CgroupStats:
    cpu, memory = metrics.cpu, metrics.memory
    return CgroupStats(
        timestamp_ns=timestamp,
        cpu=CpuStats(
            usage_ns=_ns(cpu.usage_usec),
            user_ns=_ns(cpu.user_usec),
            system_ns=_ns(cpu.system_usec),
            periods=cpu.nr_periods,
            throttled_periods=cpu.nr_throttled,
            throttled_ns=_ns(cpu.throttled_usec),
        ),
        memory=MemoryStats(
            usage=memory.usage,
            working_set=max(0, memory.usage - memory.inactive_file),
            limit=_limit(memory.usage_limit),
            rss=memory.anon,
            file=memory.file,
            mapped_file=memory.file_mapped,
            page_faults=memory.pgfault,
            major_page_faults=memory.pgmajfault,
            swap=memory.swap_usage,
            swap_limit=_limit(memory.swap_limit),
        ),
        pids=metrics.pids.current,
    )


def _of_v1(metrics: v1.Metrics, timestamp: int) -> CgroupStats:
    cpu, memory = metrics.cpu, metrics.memory
    usage, swap = memory.usage, memory.swap  # `swap` is both together
    return CgroupStats(
        timestamp_ns=timestamp,
        cpu=CpuStats(
            usage_ns=cpu.usage.total,
            user_ns=cpu.usage.user,
            system_ns=cpu.usage.kernel,
            periods=cpu.throttling.periods,
            throttled_periods=cpu.throttling.throttled_periods,
            throttled_ns=cpu.throttling.throttled_time,
        ),
        memory=MemoryStats(
            usage=usage.usage,
            working_set=max(0, usage.usage - memory.total_inactive_file),
            limit=_limit(usage.limit),
            rss=memory.total_rss,
            file=memory.total_cache,
            mapped_file=memory.total_mapped_file,
            kernel=memory.kernel.usage,
            page_faults=memory.total_pg_fault,
            major_page_faults=memory.total_pg_maj_fault,
            swap=max(0, swap.usage - usage.usage),
        ),
        pids=metrics.pids.current,
    )


def _ns(microseconds: int) -> int:
    return min(microseconds * 1000, _MOST)


def _limit(value: int) -> int | None:
    """A limit that is set; a shim that tells none leaves the field 0."""
    return value if 0 < value < _NONE else None
