"""CRI's metrics: names, meanings and labels. The names are cAdvisor's: dashboards work with them.

https://github.com/google/cadvisor/blob/master/docs/storage/prometheus.md
"""

from __future__ import annotations

from typing import Final, NamedTuple

from zos_cri._pb import cri_pb2 as pb

BASE_LABELS: Final = ("pod", "namespace", "container", "id", "image")
COUNTER: Final = pb.MetricType.COUNTER
GAUGE: Final = pb.MetricType.GAUGE


class Descriptor(NamedTuple):
    """
    Attributes:
        labels: those that it has beside `BASE_LABELS`.
    """

    type: pb.MetricType.ValueType
    help: str
    labels: tuple[str, ...] = ()


_INTERFACE: Final = ("interface",)
_DEVICE: Final = ("device",)
_PAGES: Final = ("pagesize",)

DESCRIPTORS: Final[dict[str, Descriptor]] = {
    f"container_{name}": Descriptor(kind, text, *labels)
    for name, kind, text, *labels in (
        ("cpu_usage_seconds_total", COUNTER, "CPU time used."),
        ("cpu_user_seconds_total", COUNTER, "CPU time used in user mode."),
        ("cpu_system_seconds_total", COUNTER, "CPU time used in the kernel."),
        ("cpu_cfs_periods_total", COUNTER, "Periods of the CPU quota that have passed."),
        ("cpu_cfs_throttled_periods_total", COUNTER, "Periods in which the quota was used up."),
        ("cpu_cfs_throttled_seconds_total", COUNTER, "Time spent waiting for the next period."),
        ("memory_cache", GAUGE, "Bytes of page cache, tmpfs included."),
        ("memory_rss", GAUGE, "Bytes of anonymous memory."),
        ("memory_kernel_usage", GAUGE, "Bytes of kernel memory."),
        ("memory_mapped_file", GAUGE, "Bytes of files mapped into memory."),
        ("memory_swap", GAUGE, "Bytes of swap used."),
        ("memory_failcnt", COUNTER, "How often the memory limit was hit."),
        ("memory_usage_bytes", GAUGE, "Bytes of memory used, caches included."),
        ("memory_max_usage_bytes", GAUGE, "The most bytes of memory ever used."),
        ("memory_working_set_bytes", GAUGE, "Bytes of memory used, inactive files left out."),
        ("memory_failures_total", COUNTER, "Page faults.", ("failure_type", "scope")),
        ("network_receive_bytes_total", COUNTER, "Bytes received.", _INTERFACE),
        ("network_receive_packets_total", COUNTER, "Packets received.", _INTERFACE),
        ("network_receive_packets_dropped_total", COUNTER, "Received, dropped.", _INTERFACE),
        ("network_receive_errors_total", COUNTER, "Errors while receiving.", _INTERFACE),
        ("network_transmit_bytes_total", COUNTER, "Bytes sent.", _INTERFACE),
        ("network_transmit_packets_total", COUNTER, "Packets sent.", _INTERFACE),
        ("network_transmit_packets_dropped_total", COUNTER, "Dropped, not sent.", _INTERFACE),
        ("network_transmit_errors_total", COUNTER, "Errors while sending.", _INTERFACE),
        ("fs_inodes_free", GAUGE, "Free inodes of the disk of writable layers.", _DEVICE),
        ("fs_inodes_total", GAUGE, "Inodes of the disk of writable layers.", _DEVICE),
        ("fs_limit_bytes", GAUGE, "Size of the disk of writable layers.", _DEVICE),
        ("fs_usage_bytes", GAUGE, "Bytes that the writable layer takes.", _DEVICE),
        ("fs_reads_bytes_total", COUNTER, "Bytes read from a device.", _DEVICE),
        ("fs_reads_total", COUNTER, "Reads from a device.", _DEVICE),
        ("fs_writes_bytes_total", COUNTER, "Bytes written to a device.", _DEVICE),
        ("fs_writes_total", COUNTER, "Writes to a device.", _DEVICE),
        (
            *("blkio_device_usage_total", COUNTER, "Bytes read from and written to a device."),
            ("device", "major", "minor", "operation"),
        ),
        ("hugetlb_usage_bytes", GAUGE, "Bytes of huge pages used.", _PAGES),
        ("hugetlb_max_usage_bytes", GAUGE, "The most bytes of huge pages ever used.", _PAGES),
        ("pressure_cpu_waiting_seconds_total", COUNTER, "Time that some waited for a CPU."),
        ("pressure_cpu_stalled_seconds_total", COUNTER, "Time that all waited for a CPU."),
        ("pressure_memory_waiting_seconds_total", COUNTER, "Time that some waited for memory."),
        ("pressure_memory_stalled_seconds_total", COUNTER, "Time that all waited for memory."),
        ("pressure_io_waiting_seconds_total", COUNTER, "Time that some waited for a disk."),
        ("pressure_io_stalled_seconds_total", COUNTER, "Time that all waited for a disk."),
        ("spec_cpu_period", GAUGE, "Period of the CPU quota, in microseconds."),
        ("spec_cpu_quota", GAUGE, "CPU time allowed in a period, in microseconds; 0: no limit."),
        ("spec_cpu_shares", GAUGE, "Share of the CPUs when they are wanted by others."),
        ("spec_memory_limit_bytes", GAUGE, "Memory limit in bytes; 0: none."),
        ("spec_memory_reservation_limit_bytes", GAUGE, "Memory protected, in bytes; 0: none."),
        ("spec_memory_swap_limit_bytes", GAUGE, "Limit of memory and swap; 0: none."),
        ("processes", GAUGE, "Processes."),
        ("threads", GAUGE, "Threads."),
        ("threads_max", GAUGE, "Threads allowed; 0: no limit."),
        ("sockets", GAUGE, "Open sockets."),
        ("file_descriptors", GAUGE, "Open file descriptors."),
        ("ulimits_soft", GAUGE, "Soft limits of the first process.", ("ulimit",)),
        ("oom_events_total", COUNTER, "Processes killed for want of memory."),
        ("last_seen", GAUGE, "When it was last seen, in seconds since the epoch."),
        ("start_time_seconds", GAUGE, "When it was started, in seconds since the epoch."),
    )
}


def messages() -> list[pb.MetricDescriptor]:
    """All of them, as CRI has them."""
    return [
        pb.MetricDescriptor(
            name=name, help=descriptor.help, label_keys=(*BASE_LABELS, *descriptor.labels)
        )
        for name, descriptor in DESCRIPTORS.items()
    ]
