"""Limits of a cgroup as OCI states them (version 1's terms), and the writes that set them.

`plan` is pure but for reading the present limits, of which the order of writes depends.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri.errors import FailedPrecondition, Internal, InvalidArgument
from zos_cri.linux import cgroupstats as stats

if TYPE_CHECKING:
    from collections.abc import Sequence, Set

# (directory, file, value): puts down one write
Add = Callable[[str, str, "int | str"], None]
_DEFAULT_PERIOD_US: Final = 100_000


class CgroupError(Internal):
    """The kernel refused something that it should not have."""


class Limits(msgspec.Struct, frozen=True):
    """What to set; None leaves as it is. -1 means no limit where there is one.

    Attributes:
        cpu_shares: relative weight in version 1's terms, 2 to 262144; 1024 is the default.
        cpu_quota_us: processor time in microseconds for each `cpu_period_us`.
        memory_swap_limit: of memory and swap together, in bytes, as OCI has it.
        hugepage_limits: bytes by page size (`2MB`).
        unified: version 2 files to write as they are.
    """

    cpu_shares: int | None = None
    cpu_quota_us: int | None = None
    cpu_period_us: int | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    memory_limit: int | None = None
    memory_swap_limit: int | None = None
    pids_limit: int | None = None
    hugepage_limits: Mapping[str, int] = {}
    unified: Mapping[str, str] = {}


class Write(msgspec.Struct, frozen=True):
    """One value for one file.

    Attributes:
        what: how an error names it.
    """

    directory: str
    name: str
    value: str
    what: str


def cpu_weight(shares: int) -> int:
    """Version 2's weight (1 to 10000) for version 1's shares (2 to 262144).

    The curve that runc since 1.3.2, crun and the kubelet agree on: quadratic between the
    logarithms, so that the least, the default (1024 to 100) and the most meet.
    """
    if shares <= 2:
        return 1
    if shares >= 262_144:
        return 10_000
    log = math.log2(shares)
    return math.ceil(10 ** ((log * log + 125 * log) / 612 - 7 / 34))


def plan(
    path: str, v1: Mapping[str, str], v2: str | None, *, on: Set[str], limits: Limits
) -> list[Write]:
    """The writes for a cgroup, in the order in which the kernel takes them.

    Args:
        v1: directory by controller; `v2`: the directory in version 2; `on`: its controllers.

    Raises:
        FailedPrecondition: no hierarchy has a controller that is needed.
        InvalidArgument: an entry of `unified` that is no file's name.
    """
    writes: list[Write] = []

    def directory(controller: str) -> tuple[str, bool]:
        """Where a controller's files are, and whether they are version 2's."""
        if v2 is not None and controller in on:
            return v2, True
        if controller not in v1:
            raise FailedPrecondition(f"cgroup {path}: this host has no {controller} controller")
        return v1[controller], False

    def add(where: str, name: str, value: str | int) -> None:
        writes.append(Write(where, name, str(value), f"cgroup {path}: {name}"))

    if limits.cpu_shares or limits.cpu_quota_us is not None or limits.cpu_period_us:
        _plan_cpu(*directory("cpu"), limits, add)
    for name, text in (("cpus", limits.cpuset_cpus), ("mems", limits.cpuset_mems)):
        if text:
            add(directory("cpuset")[0], f"cpuset.{name}", text)
    if limits.memory_limit is not None or limits.memory_swap_limit is not None:
        _plan_memory(*directory("memory"), limits, add)
    if limits.pids_limit is not None:
        value = limits.pids_limit if limits.pids_limit > 0 else "max"
        add(directory("pids")[0], "pids.max", value)
    for size, limit in limits.hugepage_limits.items():
        where, second = directory("hugetlb")
        add(where, f"hugetlb.{size}.{'max' if second else 'limit_in_bytes'}", limit)
    for name, text in limits.unified.items():
        add(_unified_directory(path, name, v2, on), name, text)
    return writes


def _unified_directory(path: str, name: str, v2: str | None, on: Set[str]) -> str:
    controller, dot, _ = name.partition(".")
    if "/" in name or controller == "cgroup" or not dot:
        raise InvalidArgument(f"cgroup {path}: unified resource {name!r} isn't a limit's name")
    if v2 is None or controller not in on:
        raise FailedPrecondition(f"cgroup {path}: {name} needs cgroup version 2")
    return v2


def _plan_cpu(where: str, second: bool, limits: Limits, add: Add) -> None:
    quota, period = limits.cpu_quota_us, limits.cpu_period_us
    if limits.cpu_shares:
        if second:
            add(where, "cpu.weight", cpu_weight(limits.cpu_shares))
        else:
            add(where, "cpu.shares", limits.cpu_shares)
    if not second:
        # A period alone may break the rule that no child gets a larger share than its parent, while
        # with its quota it doesn't: `carry_out` then writes it again after the quota.
        if period:
            add(where, "cpu.cfs_period_us", period)
        if quota is not None:
            add(where, "cpu.cfs_quota_us", quota if quota > 0 else -1)
    elif quota is not None or period:
        now = (stats.read_text(where, "cpu.max") or f"max {_DEFAULT_PERIOD_US}").split()
        if quota is not None:
            now[0] = str(quota) if quota > 0 else "max"
        add(where, "cpu.max", f"{now[0]} {period or now[1]}")


def _plan_memory(where: str, second: bool, limits: Limits, add: Add) -> None:
    memory, both = limits.memory_limit, limits.memory_swap_limit or None
    if memory == -1 and both is None:
        both = -1  # version 1 can't have more memory than memory and swap together
    if second:
        if memory is not None:
            add(where, "memory.max", memory if memory >= 0 else "max")
        if both is not None:
            base = memory if memory is not None else stats.read_int(where, "memory.max")
            add(where, "memory.swap.max", _swap_alone(both, base))
        return
    writes = []
    if memory is not None:
        writes.append(("memory.limit_in_bytes", memory))
    if both is not None:
        writes.append(("memory.memsw.limit_in_bytes", both))
    # The limit of both may never be below the limit of memory: raise it first, lower it last.
    now = stats.read_int(where, "memory.memsw.limit_in_bytes")
    if len(writes) == 2 and (both == -1 or (now is not None and (memory or 0) > now)):
        writes.reverse()
    for name, value in writes:
        add(where, name, value)


def _swap_alone(both: int, memory: int | None) -> int | str:
    """Version 2's limit of swap, from the limit of both."""
    if both == -1:
        return "max"
    if memory is None or memory < 0:
        raise InvalidArgument("memory and swap limit: it needs a memory limit to go with")
    if both < memory:
        raise InvalidArgument(
            f"memory and swap limit: {both} is less than the memory limit {memory}"
        )
    return both - memory


def carry_out(writes: Sequence[Write]) -> None:
    """Writes.

    Raises:
        FailedPrecondition: the file isn't there, or more is in use than the limit allows.
        InvalidArgument: the kernel refuses the value.
        CgroupError: it refuses for another reason.
    """
    again = []
    for write in writes:
        try:
            write_file(f"{write.directory}/{write.name}", write.value)
        except OSError as error:
            if error.errno == errno.EINVAL and write.name == "cpu.cfs_period_us":
                again.append(write)
                continue
            raise _refused(write, error) from error
    for write in again:
        try:
            write_file(f"{write.directory}/{write.name}", write.value)
        except OSError as error:
            raise _refused(write, error) from error


def _refused(write: Write, error: OSError) -> Exception:
    said = f"{write.what}={write.value}: {error.strerror}"
    if error.errno in (errno.EINVAL, errno.ERANGE, errno.EOVERFLOW):
        return InvalidArgument(said)
    if error.errno == errno.ENOENT:
        return FailedPrecondition(f"{said} (the kernel lacks it, or its controller is off)")
    if error.errno == errno.EBUSY:
        return FailedPrecondition(f"{said} (more is in use now)")
    return CgroupError(said)


def write_file(path: str, text: str) -> None:
    """One write(2), without making the file: what cgroup files take for one value."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
