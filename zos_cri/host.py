"""This host's facts in the terms of `oci`: found out by `linux`, once at start."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri.linux import apparmor, blocking, host
from zos_cri.linux.mount import mounts_below
from zos_cri.oci.host import RLIM_INFINITY, HostFacts

if TYPE_CHECKING:
    from zos_cri.linux.cgroup import Cgroups

_CGROUP_OPTIONS: Final = ("nsdelegate", "memory_recursiveprot")


async def host_facts(cgroups: Cgroups) -> HostFacts:
    """Finds out. Takes some milliseconds and one short child process."""
    found = await host.probe()
    return await blocking.call(_facts, found, cgroups)


async def with_default_profile(facts: HostFacts) -> HostFacts:
    """Loads the AppArmor profile that RuntimeDefault means, where the kernel has AppArmor."""
    if not facts.apparmor:
        return facts
    return msgspec.structs.replace(facts, apparmor_default=await apparmor.load_default())


def _facts(found: host.HostFacts, cgroups: Cgroups) -> HostFacts:
    sizes = _hugepage_sizes()
    return HostFacts(
        architecture=found.machine,
        kernel=found.kernel,
        hostname=os.uname().nodename,
        cpus=os.cpu_count() or 0,
        possible_cpus=_possible_cpus(),
        capabilities=found.effective & found.bounding,
        last_capability=_number("/proc/sys/kernel/cap_last_cap", HostFacts().last_capability),
        cgroup_mode=cgroups.mode,
        cgroup_mount_options=_cgroup_options(),
        swap_accounting=_swap_accounting(cgroups),
        hugetlb=_runtime_has(cgroups, "hugetlb"),
        hugepage_sizes=sizes,
        seccomp=found.seccomp,
        apparmor=found.apparmor,
        apparmor_profiles=apparmor.loaded() if found.apparmor else frozenset(),
        selinux=found.selinux,
        oom_score_adj_min=found.oom_score_adj_min,
        rlimits_raisable=found.can_raise_rlimits,
        rlimits={
            name: RLIM_INFINITY if limit is None else limit
            for name, limit in found.hard_limits.items()
        },
    )


def _number(path: str, default: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(Path(path).read_text())
    return default


def _possible_cpus() -> int:
    """By the kernel's list, as `0-3`; 0 where there is none."""
    with contextlib.suppress(OSError, ValueError):
        text = Path("/sys/devices/system/cpu/possible").read_text().strip()
        return int(re.split("[,-]", text)[-1]) + 1
    return 0


def _cgroup_options() -> tuple[str, ...]:
    """The host's own options of cgroup2, which a mount without them would take away."""
    for mount in mounts_below("/sys/fs/cgroup"):
        if mount.type == "cgroup2" and mount.target == "/sys/fs/cgroup":
            return tuple(option for option in _CGROUP_OPTIONS if option in mount.super_options)
    return ()


def _swap_accounting(cgroups: Cgroups) -> bool:
    """Whether the memory controller limits swap; on v1 it is a setting of the kernel's."""
    if cgroups.mode == "v2":
        # The root cgroup has no such file; those below it have, where the kernel accounts swap.
        return any(Path("/sys/fs/cgroup").glob("*/memory.swap.max"))
    directory = cgroups.paths("/").of("memory")
    return directory is not None and Path(directory, "memory.memsw.limit_in_bytes").exists()


def _runtime_has(cgroups: Cgroups, controller: str) -> bool:
    """Whether OCI runtimes find a controller: in hybrid mode they look at version 1 only."""
    where = cgroups.paths("/")
    return controller in (where.v2_controllers if cgroups.mode == "v2" else where.v1)


def _hugepage_sizes() -> frozenset[str]:
    """As the hugetlb controller names them: 2MB, 1GB."""
    sizes = set()
    for path in Path("/sys/kernel/mm/hugepages").glob("hugepages-*kB"):
        kib = int(path.name.removeprefix("hugepages-").removesuffix("kB"))
        for unit in ("KB", "MB", "GB"):
            if kib < 1024 or unit == "GB":
                sizes.add(f"{kib}{unit}")
                break
            kib //= 1024
    return frozenset(sizes)
