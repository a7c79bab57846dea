"""Cgroup limits: CRI's LinuxContainerResources as OCI's linux.resources, and the cgroup's path."""

from __future__ import annotations

import copy
import posixpath
import re
from typing import TYPE_CHECKING, Any, Final

from zos_cri._pb import cri_pb2
from zos_cri.oci.base import oom_score_adj
from zos_cri.oci.fields import absolute_path, bad, quote, text

if TYPE_CHECKING:
    from zos_cri.oci.host import HostFacts, Spec

_PERIOD: Final = range(1_000, 1_000_001)
_MIN_QUOTA: Final = 1_000
_SHARES: Final = range(2, 262_145)
_CPU_SET: Final = re.compile(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*")
_PAGE_SIZE: Final = re.compile(r"([1-9]\d{0,9})([KMG])i?B?")
_UNITS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_MAX_UNIFIED: Final = 128
"""Keys of `unified`: all controllers together have fewer files that can be written."""

_FIELD: Final = "linux.resources"


def linux_resources(
    resources: cri_pb2.LinuxContainerResources,
    host: HostFacts,
    *,
    field: str = _FIELD,
    tolerate_missing_hugetlb: bool = True,
) -> dict[str, Any]:
    """OCI's linux.resources (cpu, memory, hugepageLimits, unified) of what is given.

    Zero and empty mean "not specified" all through (runtime.v1.LinuxContainerResources). Memory
    without a swap limit gets none of it, where swap is accounted for at all.

    Args:
        resources: What is asked for.
        host: Which controllers there are.
        field: The message's path, for errors.
        tolerate_missing_hugetlb: Leave huge page limits out where nothing could enforce them;
            the kubelet sends a limit of 0 for every size.

    Raises:
        InvalidArgument: out of the kernel's range, or what this cgroup version doesn't have.
    """
    result: dict[str, Any] = {}
    if cpu := _cpu(resources, host, field):
        result["cpu"] = cpu
    if memory := _memory(resources, host, field):
        result["memory"] = memory
    if pages := _hugepages(resources, host, field, tolerate_missing_hugetlb):
        result["hugepageLimits"] = pages
    if resources.unified:
        result["unified"] = _unified(resources, host, field)
    return result


def _cpu(resources: cri_pb2.LinuxContainerResources, host: HostFacts, field: str) -> dict[str, Any]:
    cpu: dict[str, Any] = {}
    if period := resources.cpu_period:
        if period not in _PERIOD:
            raise bad(f"{field}.cpu_period", f"{period} µs is not between 1 ms and 1 s")
        cpu["period"] = period
    if quota := resources.cpu_quota:
        if quota < _MIN_QUOTA and quota != -1:
            raise bad(f"{field}.cpu_quota", f"{quota} µs is below 1 ms, and not -1 for no limit")
        cpu["quota"] = quota
    if shares := resources.cpu_shares:
        if shares not in _SHARES:
            raise bad(f"{field}.cpu_shares", f"{shares} is not between 2 and 262144")
        cpu["shares"] = shares
    for name, key in (("cpuset_cpus", "cpus"), ("cpuset_mems", "mems")):
        if value := getattr(resources, name):
            _check_set(f"{field}.{name}", value, host.possible_cpus if key == "cpus" else 0)
            cpu[key] = value
    return cpu


def _check_set(field: str, value: str, count: int) -> None:
    """Args: count: of how many there are, 0 where that isn't known."""
    if not _CPU_SET.fullmatch(value):
        raise bad(field, f"{quote(value)} is no list as 0-3,8")
    for part in value.split(","):
        first, _, last = part.partition("-")
        if last and int(last) < int(first):
            raise bad(field, f"{quote(value)} is no list as 0-3,8: {part} goes backwards")
        if count and int(last or first) >= count:
            raise bad(field, f"{quote(value)}: this host's last is {count - 1}")


def _memory(
    resources: cri_pb2.LinuxContainerResources, host: HostFacts, field: str
) -> dict[str, Any]:
    limit, swap = resources.memory_limit_in_bytes, resources.memory_swap_limit_in_bytes
    for name, value in (("memory_limit_in_bytes", limit), ("memory_swap_limit_in_bytes", swap)):
        if value < -1:
            raise bad(f"{field}.{name}", f"{value} is negative, and not -1 for no limit")
    # The limit of memory and swap together, as in cgroup v1 and in the OCI spec.
    if swap > 0 and limit <= 0:
        raise bad(f"{field}.memory_swap_limit_in_bytes", "needs a memory_limit_in_bytes")
    if 0 < swap < limit:
        what = f"{swap} is below the memory limit, {limit}: it is memory and swap together"
        raise bad(f"{field}.memory_swap_limit_in_bytes", what)
    memory: dict[str, Any] = {}
    if limit:
        memory["limit"] = limit
    if host.swap_accounting and (swap or limit):
        memory["swap"] = swap or limit
    return memory


def _hugepages(
    resources: cri_pb2.LinuxContainerResources, host: HostFacts, field: str, tolerate: bool
) -> list[dict[str, Any]]:
    if resources.hugepage_limits and not host.hugetlb:
        if tolerate:
            return []
        raise bad(f"{field}.hugepage_limits", "this host has no hugetlb cgroup controller")
    limits: dict[str, int] = {}
    for index, limit in enumerate(resources.hugepage_limits):
        where = f"{field}.hugepage_limits[{index}].page_size"
        size = _page_size(limit.page_size, where)
        if host.hugepage_sizes and size not in host.hugepage_sizes:
            known = ", ".join(sorted(host.hugepage_sizes))
            raise bad(where, f"this host has no huge pages of {size}, but {known}")
        limits[size] = limit.limit
    return [{"pageSize": size, "limit": limit} for size, limit in limits.items()]


def _page_size(size: str, field: str) -> str:
    """A size as hugetlb's files are named (2MB, 1GB): the largest unit that fits."""
    match = _PAGE_SIZE.fullmatch(size)
    if match is None:
        raise bad(field, f"{quote(size)} is no size as 2MB or 1GB")
    number = int(match[1]) * _UNITS[match[2]]
    unit = next(unit for unit in "GMK" if number % _UNITS[unit] == 0)
    return f"{number // _UNITS[unit]}{unit}B"


def _unified(
    resources: cri_pb2.LinuxContainerResources, host: HostFacts, field: str
) -> dict[str, str]:
    where = f"{field}.unified"
    if not host.unified:
        raise bad(where, "this host has cgroup v1, and unified is for v2")
    if len(resources.unified) > _MAX_UNIFIED:
        raise bad(where, f"has more than {_MAX_UNIFIED} keys")
    for key, value in resources.unified.items():
        # The key is a file's name in the container's cgroup, written by root.
        if "/" in key or "." not in key.strip("."):
            raise bad(where, f"{quote(key)} is no cgroup file as memory.high")
        text(f"{where}[{quote(key)}]", value)
    return dict(sorted(resources.unified.items()))


def merge_update(
    spec: Spec,
    resources: cri_pb2.LinuxContainerResources,
    host: HostFacts,
    *,
    tolerate_missing_hugetlb: bool = True,
) -> Spec:
    """A container's spec with UpdateContainerResources' `linux` laid over it, as a new spec.

    What the update doesn't specify stays. The runtime's update takes the whole of the result's
    `["linux"]["resources"]`; for oom_score_adj it has no call, so that is the caller's to write
    for a running container (a created one gets it with its spec).

    Raises:
        InvalidArgument: as `linux_resources`; also where the sum of old and new isn't allowed.
    """
    field = "linux"
    update = linux_resources(
        resources, host, field=field, tolerate_missing_hugetlb=tolerate_missing_hugetlb
    )
    merged = copy.deepcopy(spec)
    current: dict[str, Any] = merged.setdefault("linux", {}).setdefault("resources", {})
    for key in ("cpu", "memory", "unified"):
        if key in update:
            current[key] = {**current.get(key, {}), **update[key]}
    if "hugepageLimits" in update:
        sizes = {limit["pageSize"]: limit for limit in current.get("hugepageLimits", ())}
        sizes |= {limit["pageSize"]: limit for limit in update["hugepageLimits"]}
        current["hugepageLimits"] = list(sizes.values())
    if resources.oom_score_adj:
        wanted = oom_score_adj(f"{field}.oom_score_adj", resources.oom_score_adj, host)
        merged.setdefault("process", {})["oomScoreAdj"] = wanted
    return merged


def merge_reported(
    old: cri_pb2.LinuxContainerResources, update: cri_pb2.LinuxContainerResources
) -> cri_pb2.LinuxContainerResources:
    """What ContainerStatus.resources says after an update: what was given replaces, the rest stays.

    Neither argument is changed.
    """
    merged = cri_pb2.LinuxContainerResources()
    merged.CopyFrom(old)
    given = cri_pb2.LinuxContainerResources()
    given.CopyFrom(update)
    sizes = {limit.page_size: limit.limit for limit in old.hugepage_limits}
    sizes |= {limit.page_size: limit.limit for limit in update.hugepage_limits}
    merged.MergeFrom(given)  # Scalars that are set replace, and so do the map's keys.
    del merged.hugepage_limits[:]
    for size, limit in sizes.items():
        merged.hugepage_limits.add(page_size=size, limit=limit)
    return merged


def cgroups_path(
    field: str, parent: str, container_id: str, *, systemd: bool, prefix: str = "zos-cri"
) -> str:
    """linux.cgroupsPath: below the pod's cgroup, in the form that the driver understands.

    With systemd it is `slice:prefix:id` and becomes the scope `prefix-id.scope` in that slice; a
    parent comes as a path of cgroupfs' (`/kubepods.slice/kubepods-pod1.slice`), of which systemd
    wants the last name.

    Raises:
        InvalidArgument: a parent with `..` in it; with systemd, one that is no slice.
    """
    if not parent:
        return f"system.slice:{prefix}:{container_id}" if systemd else f"/{prefix}/{container_id}"
    if ".." in parent.split("/"):
        raise bad(field, f"{quote(parent)} has a '..' in it")
    path = absolute_path(field, posixpath.join("/", parent))
    if not systemd:
        return posixpath.join(path, container_id)
    name = posixpath.basename(path)
    if not name.endswith(".slice") or ":" in name:
        raise bad(field, f"{quote(parent)} is no slice, and the handler's cgroups are systemd's")
    return f"{name}:{prefix}:{container_id}"
