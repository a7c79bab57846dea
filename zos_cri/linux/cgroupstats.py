"""What a cgroup has used, read from its files: structures and parsers, for both versions.

Sources: the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/{memory,cpuacct,
blkio-controller,hugetlb,pids}.rst, accounting/psi.rst, scheduler/sched-bwc.rst. A file that isn't
there (its controller is off, the kernel is older) leaves its values at None or 0; it is no error.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

# What v1 shows where no limit is set: the largest count of pages, in bytes, on any page size.
_V1_UNLIMITED: Final = 0x7FFF_FFFF_FFFF_0000
_READ_MAX: Final = 1 << 20  # memory.stat has 2 KiB; io.stat a line for each device
_NS_A_TICK: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class Files(Protocol):
    """A cgroup directory that reads its files in its own way (`cgroupfiles` keeps them open)."""

    @property
    def directory(self) -> str: ...

    def read(self, name: str) -> str | None:
        """As `read_text`."""


class CpuStats(msgspec.Struct, frozen=True):
    """Processor time in nanoseconds; the periods are those of the quota (CFS bandwidth)."""

    usage_ns: int = 0
    user_ns: int = 0
    system_ns: int = 0
    periods: int = 0
    throttled_periods: int = 0
    throttled_ns: int = 0


class MemoryStats(msgspec.Struct, frozen=True):
    """Memory in bytes.

    Attributes:
        limit: None where there is none; likewise `swap_limit`.
        working_set: usage less the file pages that are inactive: what the kubelet evicts by.
        rss: anonymous pages, huge ones too.
        file: page cache, tmpfs too; `mapped_file` of it is mapped by processes.
        swap_limit: of swap alone.
        peak: the most ever used; None where the kernel doesn't tell (v2 before 5.19).
        failures: how often the limit was hit.
    """

    usage: int = 0
    working_set: int = 0
    limit: int | None = None
    rss: int = 0
    file: int = 0
    mapped_file: int = 0
    kernel: int = 0
    page_faults: int = 0
    major_page_faults: int = 0
    swap: int = 0
    swap_limit: int | None = None
    peak: int | None = None
    failures: int = 0


class IoStats(msgspec.Struct, frozen=True):
    """What was read from and written to a block device."""

    major: int
    minor: int
    read_bytes: int = 0
    write_bytes: int = 0
    reads: int = 0
    writes: int = 0


class HugetlbStats(msgspec.Struct, frozen=True):
    """Huge pages of one size, in bytes."""

    page_size: str
    usage: int = 0
    peak: int | None = None
    limit: int | None = None
    failures: int = 0


class Stall(msgspec.Struct, frozen=True):
    """Shares of time (0 to 100) lost waiting over 10, 60 and 300 s, and the total in ns."""

    avg10: float = 0.0
    avg60: float = 0.0
    avg300: float = 0.0
    total_ns: int = 0


class Pressure(msgspec.Struct, frozen=True):
    """Pressure stall information: when some, and when all of the tasks were waiting."""

    some: Stall
    full: Stall


class CgroupStats(msgspec.Struct, frozen=True):
    """One reading. A part is None where its controller isn't there for this cgroup.

    Attributes:
        timestamp_ns: when it was read, nanoseconds since the epoch.
        pressure: by resource: `cpu`, `memory`, `io`.
    """

    timestamp_ns: int
    cpu: CpuStats | None = None
    memory: MemoryStats | None = None
    pids: int | None = None
    pids_limit: int | None = None
    io: tuple[IoStats, ...] | None = None
    hugetlb: tuple[HugetlbStats, ...] = ()
    pressure: Mapping[str, Pressure] = {}
    oom_kills: int = 0


def read_text(directory: str | Files, name: str) -> str | None:
    """A cgroup file's content; None where it isn't there or its feature is switched off."""
    if not isinstance(directory, str):
        return directory.read(name)
    try:
        fd = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return os.read(fd, _READ_MAX).decode()
    except OSError as error:
        # ENODEV: the cgroup was removed; EOPNOTSUPP: pressure is off, or a threaded cgroup
        if error.errno in (errno.ENODEV, errno.EOPNOTSUPP):
            return None
        raise
    finally:
        os.close(fd)


def read_int(directory: str | Files, name: str) -> int | None:
    """A file with one number; None where it is missing, or `max`."""
    text = read_text(directory, name)
    return None if text is None else _number(text.strip())


def read_keyed(directory: str | Files, name: str) -> dict[str, int]:
    """A file of `key value` lines; empty where it is missing."""
    found = {}
    for line in (read_text(directory, name) or "").splitlines():
        key, _, value = line.partition(" ")
        if value.isdigit():
            found[key] = int(value)
    return found


def cpu_v2(directory: str | Files) -> CpuStats:
    stat = read_keyed(directory, "cpu.stat")
    return CpuStats(
        usage_ns=stat.get("usage_usec", 0) * 1000,
        user_ns=stat.get("user_usec", 0) * 1000,
        system_ns=stat.get("system_usec", 0) * 1000,
        periods=stat.get("nr_periods", 0),
        throttled_periods=stat.get("nr_throttled", 0),
        throttled_ns=stat.get("throttled_usec", 0) * 1000,
    )


def cpu_v1(cpu: str | Files | None, cpuacct: str | Files | None) -> CpuStats:
    """Of the directories in the cpu and the cpuacct hierarchy, which may be one and the same."""
    used = read_keyed(cpuacct, "cpuacct.stat") if cpuacct else {}
    throttled = read_keyed(cpu, "cpu.stat") if cpu else {}
    return CpuStats(
        usage_ns=(read_int(cpuacct, "cpuacct.usage") or 0) if cpuacct else 0,
        user_ns=used.get("user", 0) * _NS_A_TICK,
        system_ns=used.get("system", 0) * _NS_A_TICK,
        periods=throttled.get("nr_periods", 0),
        throttled_periods=throttled.get("nr_throttled", 0),
        throttled_ns=throttled.get("throttled_time", 0),
    )


def memory_v2(directory: str | Files) -> MemoryStats:
    stat = read_keyed(directory, "memory.stat")
    usage = read_int(directory, "memory.current")
    if usage is None:  # the root cgroup has no memory.current
        usage = stat.get("anon", 0) + stat.get("file", 0)
    return MemoryStats(
        usage=usage,
        working_set=max(0, usage - stat.get("inactive_file", 0)),
        limit=read_int(directory, "memory.max"),
        rss=stat.get("anon", 0),
        file=stat.get("file", 0),
        mapped_file=stat.get("file_mapped", 0),
        kernel=stat.get("kernel", stat.get("slab", 0) + stat.get("kernel_stack", 0)),
        page_faults=stat.get("pgfault", 0),
        major_page_faults=stat.get("pgmajfault", 0),
        swap=read_int(directory, "memory.swap.current") or 0,
        swap_limit=read_int(directory, "memory.swap.max"),
        peak=read_int(directory, "memory.peak"),
        failures=read_keyed(directory, "memory.events").get("max", 0),
    )


def memory_v1(directory: str | Files) -> MemoryStats:
    stat = read_keyed(directory, "memory.stat")
    usage = read_int(directory, "memory.usage_in_bytes") or 0
    limit = _v1_limit(read_int(directory, "memory.limit_in_bytes"))
    both = _v1_limit(read_int(directory, "memory.memsw.limit_in_bytes"))
    return MemoryStats(
        usage=usage,
        working_set=max(0, usage - stat.get("total_inactive_file", 0)),
        limit=limit,
        rss=stat.get("total_rss", 0),
        file=stat.get("total_cache", 0),
        mapped_file=stat.get("total_mapped_file", 0),
        kernel=read_int(directory, "memory.kmem.usage_in_bytes") or 0,
        page_faults=stat.get("total_pgfault", 0),
        major_page_faults=stat.get("total_pgmajfault", 0),
        swap=stat.get("total_swap", 0),
        swap_limit=max(0, both - limit) if both is not None and limit is not None else None,
        peak=read_int(directory, "memory.max_usage_in_bytes"),
        failures=read_int(directory, "memory.failcnt") or 0,
    )


def io_v2(directory: str | Files) -> tuple[IoStats, ...]:
    """io.stat: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`."""
    found = []
    for line in (read_text(directory, "io.stat") or "").splitlines():
        device, *pairs = line.split()
        major, colon, minor = device.partition(":")
        values = dict(pair.partition("=")[::2] for pair in pairs)
        if colon and values:
            found.append(
                IoStats(
                    major=int(major),
                    minor=int(minor),
                    read_bytes=int(values.get("rbytes", 0)),
                    write_bytes=int(values.get("wbytes", 0)),
                    reads=int(values.get("rios", 0)),
                    writes=int(values.get("wios", 0)),
                )
            )
    return tuple(found)


def io_v1(directory: str | Files) -> tuple[IoStats, ...]:
    """The throttling layer's counters: the only ones that every scheduler fills."""
    sizes = _blkio(directory, "blkio.throttle.io_service_bytes")
    counts = _blkio(directory, "blkio.throttle.io_serviced")
    return tuple(
        IoStats(
            major=device[0],
            minor=device[1],
            read_bytes=sizes.get(device, {}).get("Read", 0),
            write_bytes=sizes.get(device, {}).get("Write", 0),
            reads=counts.get(device, {}).get("Read", 0),
            writes=counts.get(device, {}).get("Write", 0),
        )
        for device in sorted({*sizes, *counts})
    )


def _blkio(directory: str | Files, name: str) -> dict[tuple[int, int], dict[str, int]]:
    """`8:0 Read 4096` lines by device; with the cgroups below where the kernel sums them."""
    text = read_text(directory, name + "_recursive")
    if text is None:
        text = read_text(directory, name) or ""
    found: dict[tuple[int, int], dict[str, int]] = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 3:  # the last line is `Total 4096`
            major, _, minor = fields[0].partition(":")
            found.setdefault((int(major), int(minor)), {})[fields[1]] = int(fields[2])
    return found


def hugetlb_v2(directory: str | Files) -> tuple[HugetlbStats, ...]:
    return _hugetlb(
        directory,
        ".current",
        lambda size: HugetlbStats(
            page_size=size,
            usage=read_int(directory, f"hugetlb.{size}.current") or 0,
            limit=read_int(directory, f"hugetlb.{size}.max"),
            failures=read_keyed(directory, f"hugetlb.{size}.events").get("max", 0),
        ),
    )


def hugetlb_v1(directory: str | Files) -> tuple[HugetlbStats, ...]:
    return _hugetlb(
        directory,
        ".usage_in_bytes",
        lambda size: HugetlbStats(
            page_size=size,
            usage=read_int(directory, f"hugetlb.{size}.usage_in_bytes") or 0,
            peak=read_int(directory, f"hugetlb.{size}.max_usage_in_bytes"),
            limit=_v1_limit(read_int(directory, f"hugetlb.{size}.limit_in_bytes")),
            failures=read_int(directory, f"hugetlb.{size}.failcnt") or 0,
        ),
    )


def _hugetlb(
    directory: str | Files, suffix: str, read: Callable[[str], HugetlbStats]
) -> tuple[HugetlbStats, ...]:
    sizes = sorted(
        name.removeprefix("hugetlb.").removesuffix(suffix)
        for name in os.listdir(directory if isinstance(directory, str) else directory.directory)
        if name.startswith("hugetlb.") and name.endswith(suffix) and ".rsvd." not in name
    )
    return tuple(read(size) for size in sizes)


def pressure(directory: str | Files) -> dict[str, Pressure]:
    """By resource, as far as the kernel keeps it."""
    found = {}
    for resource in ("cpu", "memory", "io"):
        text = read_text(directory, f"{resource}.pressure")
        if text:
            found[resource] = parse_pressure(text)
    return found


def parse_pressure(text: str) -> Pressure:
    """`some avg10=0.00 avg60=0.00 avg300=0.00 total=0` and a line `full …`."""
    stalls = {"some": Stall(), "full": Stall()}  # before 5.13 there is no `full` for the cpu
    for line in text.splitlines():
        name, *pairs = line.split()
        values = dict(pair.partition("=")[::2] for pair in pairs)
        stalls[name] = Stall(
            avg10=float(values["avg10"]),
            avg60=float(values["avg60"]),
            avg300=float(values["avg300"]),
            total_ns=int(values["total"]) * 1000,
        )
    return Pressure(some=stalls["some"], full=stalls["full"])


def oom_kills_v2(directory: str | Files) -> int:
    """Of this cgroup and those below it."""
    return read_keyed(directory, "memory.events").get("oom_kill", 0)


def oom_kills_v1(directory: str | Files) -> int:
    """Of this cgroup alone: v1 doesn't sum them."""
    return read_keyed(directory, "memory.oom_control").get("oom_kill", 0)


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _v1_limit(value: int | None) -> int | None:
    return None if value is None or value >= _V1_UNLIMITED else value
