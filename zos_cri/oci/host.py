"""What a spec has to know about the host, as plain data.

Nothing in `zos_cri.oci` asks the host anything: `zos_cri.linux` does, once at start (and again
where a fact can change), and hands the answers in as `HostFacts`. So a spec is a function of its
arguments, and golden tests need no particular machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

import msgspec

Spec: TypeAlias = dict[str, Any]
"""An OCI runtime configuration (config.json), ready for JSON."""

RLIM_INFINITY: Final = 2**64 - 1
"""How the OCI spec (uint64) writes an unlimited rlimit."""

CAPABILITIES: Final = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
"""Every capability by its number (linux/capability.h): the index is the number."""


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What this host allows and has. The defaults describe an ordinary cgroup v2 host."""

    architecture: str = "x86_64"
    """The machine as `uname -m` says it: x86_64, aarch64, …"""
    kernel: tuple[int, int] = (6, 1)
    """The kernel's major and minor version."""
    hostname: str = "localhost"
    cpus: int = 0
    """How many possible CPUs; their thermal_throttle directories are masked. 0: none is."""

    possible_cpus: int = 0
    """The last CPU's number that there can ever be, and one. 0: not known."""

    capabilities: frozenset[str] = frozenset(CAPABILITIES)
    """What we may give away: our own permitted and bounding set, as `CAP_…` names."""
    last_capability: int = len(CAPABILITIES) - 1
    """/proc/sys/kernel/cap_last_cap: what a process has in a user namespace of its own."""

    cgroup_mode: Literal["v1", "hybrid", "v2"] = "v2"
    cgroup_mount_options: tuple[str, ...] = ()
    """nsdelegate, memory_recursiveprot, where the host's /sys/fs/cgroup has them (v2)."""
    swap_accounting: bool = True
    """Whether the memory controller has a swap limit at all."""
    hugetlb: bool = True
    """Whether the hugetlb controller is there."""
    hugepage_sizes: frozenset[str] = frozenset()
    """Sizes as the controller's file names have them (2MB, 1GB). Empty: not known."""

    seccomp: bool = True
    apparmor: bool = False
    apparmor_profiles: frozenset[str] = frozenset()
    """Names of the loaded profiles, from the kernel's own list."""
    apparmor_default: str = ""
    """The name of the profile that RuntimeDefault means. Empty: none was loaded."""
    selinux: bool = False

    oom_score_adj_min: int = -1000
    """The lowest oom_score_adj that we may give a process (CAP_SYS_RESOURCE: -1000)."""
    rlimits_raisable: bool = True
    """Whether we may give a hard limit above our own (CAP_SYS_RESOURCE)."""
    rlimits: Mapping[str, int] = {}
    """Our own hard limits, `RLIMIT_NOFILE` → number, RLIM_INFINITY where there is none."""

    @property
    def unified(self) -> bool:
        """Whether the runtime sees cgroup v2 only; the hybrid mode is v1 to runc and crun."""
        return self.cgroup_mode == "v2"
