"""NRI's LinuxResources: as CRI's message, and laid over OCI's linux.resources."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final, Protocol

from zos_cri._pb import cri_pb2
from zos_cri._pb import nri_pb2 as pb
from zos_cri.errors import one_line
from zos_cri.oci.fields import bad, quote
from zos_cri.oci.resources import linux_resources

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zos_cri.oci.container import HandlerSettings
    from zos_cri.oci.host import HostFacts

_FIELD: Final = "linux.resources"
# What CRI has no field for, by OCI's name of it.
_MEMORY: Final[Mapping[str, str]] = {
    "reservation": "reservation",
    "kernel": "kernel",
    "kernel_tcp": "kernelTCP",
    "swappiness": "swappiness",
    "disable_oom_killer": "disableOOMKiller",
    "use_hierarchy": "useHierarchy",
}
_CPU: Final[Mapping[str, str]] = {
    "realtime_runtime": "realtimeRuntime",
    "realtime_period": "realtimePeriod",
}
_V1_ONLY: Final = frozenset((*_MEMORY, *_CPU)) - {"reservation"}


class Where(Protocol):
    """What limits depend on."""

    @property
    def handler(self) -> HandlerSettings: ...
    @property
    def host(self) -> HostFacts: ...


def apply(resources: dict[str, Any], given: pb.LinuxResources, where: Where) -> None:
    """Lays limits over OCI's; what isn't given, or is 0, stays as it is.

    Raises:
        InvalidArgument: a value is out of range, or isn't for this host's cgroups.
    """
    oci = linux_resources(
        to_cri(given),
        where.host,
        field=_FIELD,
        tolerate_missing_hugetlb=where.handler.tolerate_missing_hugetlb,
    )
    for key in ("cpu", "memory", "unified"):
        if key in oci:
            resources[key] = {**resources.get(key, {}), **oci[key]}
    for part, names in (("memory", _MEMORY), ("cpu", _CPU)):
        for name, key in names.items():
            message = getattr(given, part)
            if not message.HasField(name):
                continue
            if where.host.unified and name in _V1_ONLY:
                raise bad(f"{_FIELD}.{part}.{name}", "is for cgroup v1, and this host has v2")
            resources.setdefault(part, {})[key] = getattr(message, name).value
    if "hugepageLimits" in oci:
        sizes = {limit["pageSize"]: limit for limit in resources.get("hugepageLimits", ())}
        sizes |= {limit["pageSize"]: limit for limit in oci["hugepageLimits"]}
        resources["hugepageLimits"] = list(sizes.values())
    if given.HasField("pids"):
        if given.pids.limit < -1:
            raise bad(f"{_FIELD}.pids.limit", f"{given.pids.limit} is negative, and not -1")
        resources["pids"] = {"limit": given.pids.limit or -1}
    if given.HasField("blockio_class"):
        _block_io(resources, given.blockio_class.value, where.handler)


def _block_io(resources: dict[str, Any], name: str, handler: HandlerSettings) -> None:
    if not name:
        resources.pop("blockIO", None)
    elif name in handler.blockio_classes:
        resources["blockIO"] = copy.deepcopy(dict(handler.blockio_classes[name]))
    else:
        what = f"no block I/O class {quote(name)} is configured"
        raise bad(f"{_FIELD}.blockio_class", what)


def to_cri(given: pb.LinuxResources) -> cri_pb2.LinuxContainerResources:
    """What CRI has fields for.

    Raises:
        InvalidArgument: a number that CRI's fields are too small for.
    """
    try:
        return _to_cri(given)
    except ValueError as error:
        raise bad(_FIELD, f"out of range: {one_line(error)}") from error


def _to_cri(given: pb.LinuxResources) -> cri_pb2.LinuxContainerResources:
    return cri_pb2.LinuxContainerResources(
        cpu_period=given.cpu.period.value,
        cpu_quota=given.cpu.quota.value,
        cpu_shares=given.cpu.shares.value,
        cpuset_cpus=given.cpu.cpus,
        cpuset_mems=given.cpu.mems,
        memory_limit_in_bytes=given.memory.limit.value,
        memory_swap_limit_in_bytes=given.memory.swap.value,
        hugepage_limits=[
            cri_pb2.HugepageLimit(page_size=limit.page_size, limit=limit.limit)
            for limit in given.hugepage_limits
        ],
        unified=given.unified,
    )


def from_cri(given: cri_pb2.LinuxContainerResources) -> pb.LinuxResources:
    """What is given of it; 0 and empty are "not given" in CRI."""
    result = pb.LinuxResources()
    for value, target in (
        (given.cpu_shares, "shares"),
        (given.cpu_quota, "quota"),
        (given.cpu_period, "period"),
    ):
        if value:
            getattr(result.cpu, target).value = value
    result.cpu.cpus, result.cpu.mems = given.cpuset_cpus, given.cpuset_mems
    if given.memory_limit_in_bytes:
        result.memory.limit.value = given.memory_limit_in_bytes
    if given.memory_swap_limit_in_bytes:
        result.memory.swap.value = given.memory_swap_limit_in_bytes
    for limit in given.hugepage_limits:
        result.hugepage_limits.add(page_size=limit.page_size, limit=limit.limit)
    result.unified.update(given.unified)
    return result
