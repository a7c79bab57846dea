"""What every spec of ours is made from: default mounts, paths to hide, device rules, namespaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from zos_cri.oci.fields import bad, depth, is_below, quote
from zos_cri.oci.host import RLIM_INFINITY, HostFacts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

OCI_VERSION: Final = "1.0.2"
"""Understood by all runtimes at hand; crun 1.8.1 refuses anything above 1.0."""

ROOTFS: Final = "rootfs"
"""Root's path in a bundle: the shim mounts the root filesystem there."""

READONLY_PATHS: Final = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)
"""What would change the host for everyone, to be read only (moby's and containerd's list)."""

_MASKED_PATHS: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)

RLIMITS: Final = frozenset(
    (
        "RLIMIT_AS",
        "RLIMIT_CORE",
        "RLIMIT_CPU",
        "RLIMIT_DATA",
        "RLIMIT_FSIZE",
        "RLIMIT_LOCKS",
        "RLIMIT_MEMLOCK",
        "RLIMIT_MSGQUEUE",
        "RLIMIT_NICE",
        "RLIMIT_NOFILE",
        "RLIMIT_NPROC",
        "RLIMIT_RSS",
        "RLIMIT_RTPRIO",
        "RLIMIT_RTTIME",
        "RLIMIT_SIGPENDING",
        "RLIMIT_STACK",
    )
)
"""setrlimit(2)."""

CPU_PERIOD: Final = 100_000
"""CFS' own default period, in microseconds."""


class DeviceNode(msgspec.Struct, frozen=True, kw_only=True):
    """A device file of the host, or one to be made in a container."""

    path: str
    type: Literal["c", "b", "u", "p"]
    major: int = 0
    minor: int = 0
    mode: int = 0o666
    """Permission bits."""
    uid: int = 0
    gid: int = 0


class Rlimit(msgspec.Struct, frozen=True, kw_only=True):
    """One rlimit: `type` as `RLIMIT_NOFILE`; RLIM_INFINITY stands for no limit."""

    type: str
    soft: int
    hard: int


def masked_paths(host: HostFacts) -> list[str]:
    """What a container has no business to read: the list everyone uses.

    The thermal throttle counters of each CPU are among it: with them a container can watch its
    neighbours' load (PLATYPUS-like side channels), and so containerd and moby mask them.
    """
    throttle = (f"/sys/devices/system/cpu/cpu{cpu}/thermal_throttle" for cpu in range(host.cpus))
    return [*_MASKED_PATHS, *throttle]


def default_mounts(
    host: HostFacts,
    *,
    writable_sys: bool = False,
    writable_cgroups: bool = False,
    cgroup_namespace: bool = False,
    host_sys: bool = False,
    shm: bool = False,
) -> list[dict[str, Any]]:
    """/proc, /dev and what is in it, /sys and the cgroups, in the order in which they go.

    Args:
        host: For the cgroup file system's own options.
        writable_sys: sysfs may be written (privileged containers).
        writable_cgroups: so may the cgroup file system.
        cgroup_namespace: the container has one of its own.
        host_sys: the host's /sys is bound, for a container with the host's network in a user
            namespace: the kernel lets nobody mount a sysfs for a network that isn't theirs.
        shm: a /dev/shm of the container's own; pods bring theirs.
    """
    sealed = ["nosuid", "noexec", "nodev"]
    shm_options = [*sealed, "mode=1777", "size=65536k"]
    cgroup = [*sealed, "relatime", "rw" if writable_cgroups else "ro"]
    if not cgroup_namespace:
        # cgroup2 has one superblock, which a mount without a namespace would reconfigure.
        cgroup += host.cgroup_mount_options
    sysfs = _mount("sysfs", "sysfs", "/sys", [*sealed, "rw" if writable_sys else "ro"])
    if host_sys:
        sysfs = _mount("bind", "/sys", "/sys", ["rbind", "rro", *sealed])
    devices = ["nosuid", "strictatime", "mode=755", "size=65536k"]
    terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    return [
        _mount("proc", "proc", "/proc", sealed),
        _mount("tmpfs", "tmpfs", "/dev", devices),
        sysfs,
        _mount("devpts", "devpts", "/dev/pts", terminals),
        *([_mount("tmpfs", "shm", "/dev/shm", shm_options)] if shm else []),
        _mount("mqueue", "mqueue", "/dev/mqueue", list(sealed)),
        _mount("cgroup", "cgroup", "/sys/fs/cgroup", cgroup),
    ]


def _mount(kind: str, source: str, target: str, options: list[str]) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": options}


def merge_mounts(
    defaults: Sequence[dict[str, Any]], given: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Default mounts, then the given ones, those with shorter targets first.

    A default at or below a given target would be replaced or hidden by it, and is left out; so a
    container that is given the host's /dev or /sys has all of it.
    """
    targets = [mount["destination"] for mount in given]
    kept = [
        mount
        for mount in defaults
        if not any(is_below(mount["destination"], target) for target in targets)
    ]
    return kept + sorted(given, key=lambda mount: depth(mount["destination"]))


def device_rules(
    nodes: Iterable[tuple[DeviceNode, str]], *, all_allowed: bool
) -> list[dict[str, Any]]:
    """The device cgroup: nothing but what is listed (a runtime adds /dev/null and its like)."""
    if all_allowed:
        return [{"allow": True, "access": "rwm"}]
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for node, access in nodes:
        if node.type == "p":
            continue  # A FIFO has no device number.
        kind = "c" if node.type == "u" else node.type
        rule = {"allow": True, "type": kind, "major": node.major, "minor": node.minor}
        rules.append({**rule, "access": access})
    return rules


def device_entry(node: DeviceNode) -> dict[str, Any]:
    """OCI's linux.devices entry."""
    entry: dict[str, Any] = {"path": node.path, "type": node.type}
    if node.type != "p":
        entry |= {"major": node.major, "minor": node.minor}
    return entry | {"fileMode": node.mode & 0o7777, "uid": node.uid, "gid": node.gid}


def rlimits(field: str, limits: Iterable[Rlimit], host: HostFacts) -> list[dict[str, Any]]:
    """OCI's process.rlimits, no higher than this host lets us.

    Without CAP_SYS_RESOURCE a hard limit above our own is refused with EPERM, and the container
    would not start at all: it gets what there is.

    Raises:
        InvalidArgument: a name that is no rlimit's, one twice, or soft above hard.
    """
    result: dict[str, dict[str, Any]] = {}
    for index, limit in enumerate(limits):
        where = f"{field}[{index}]"
        if limit.type not in RLIMITS:
            raise bad(f"{where}.type", f"no rlimit is named {quote(limit.type)}")
        if limit.type in result:
            raise bad(f"{where}.type", f"{limit.type} is given twice")
        if not 0 <= limit.soft <= limit.hard <= RLIM_INFINITY:
            raise bad(where, f"soft {limit.soft} and hard {limit.hard} don't go together")
        ceiling = RLIM_INFINITY
        if not host.rlimits_raisable:
            ceiling = host.rlimits.get(limit.type, RLIM_INFINITY)
        result[limit.type] = {
            "type": limit.type,
            "soft": min(limit.soft, ceiling),
            "hard": min(limit.hard, ceiling),
        }
    return list(result.values())


def oom_score_adj(field: str, wanted: int, host: HostFacts) -> int:
    """An oom_score_adj that this host lets us set: not below its lowest.

    Raises:
        InvalidArgument: outside of -1000 to 1000 (proc(5)).
    """
    if not -1000 <= wanted <= 1000:
        raise bad(field, f"{wanted} is not between -1000 and 1000")
    return max(wanted, host.oom_score_adj_min)


def namespaces(paths: Mapping[str, str | None]) -> list[dict[str, str]]:
    """OCI's linux.namespaces: kind → path to join, "" for a new one, None for the host's."""
    result = []
    for kind, path in paths.items():
        if path is not None:
            result.append({"type": kind, "path": path} if path else {"type": kind})
    return result
