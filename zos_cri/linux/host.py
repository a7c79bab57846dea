"""What this host and this process can do, found out once at the start."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Mapping
from typing import Final

import msgspec

from zos_cri.linux import spawn
from zos_cri.oci.host import CAPABILITIES

OOM_SCORE_ADJ_MIN: Final = -1000
# As resource.h orders them in /proc/<pid>/limits; the names are OCI's.
RLIMITS: Final = {
    "Max cpu time": "RLIMIT_CPU",
    "Max file size": "RLIMIT_FSIZE",
    "Max data size": "RLIMIT_DATA",
    "Max stack size": "RLIMIT_STACK",
    "Max core file size": "RLIMIT_CORE",
    "Max resident set": "RLIMIT_RSS",
    "Max processes": "RLIMIT_NPROC",
    "Max open files": "RLIMIT_NOFILE",
    "Max locked memory": "RLIMIT_MEMLOCK",
    "Max address space": "RLIMIT_AS",
    "Max file locks": "RLIMIT_LOCKS",
    "Max pending signals": "RLIMIT_SIGPENDING",
    "Max msgqueue size": "RLIMIT_MSGQUEUE",
    "Max nice priority": "RLIMIT_NICE",
    "Max realtime priority": "RLIMIT_RTPRIO",
    "Max realtime timeout": "RLIMIT_RTTIME",
}
_PROBE_TIMEOUT: Final = 10.0


class HostFacts(msgspec.Struct, frozen=True):
    """What was found.

    Attributes:
        kernel: (major, minor) of the release.
        effective: capabilities that we have; `bounding`: those that our children can have.
        oom_score_adj: our own.
        oom_score_adj_min: the lowest that we can give a child; a lower one must be clamped to it.
        can_raise_rlimits: whether a child's hard limits may exceed ours.
        hard_limits: ours by OCI's names; None is unlimited.
        boot_id: another one after each boot.
        memory_bytes: all of the machine's; likewise `swap_bytes`.
    """

    kernel: tuple[int, int]
    kernel_release: str
    machine: str
    boot_id: str
    effective: frozenset[str]
    bounding: frozenset[str]
    oom_score_adj: int
    oom_score_adj_min: int
    can_raise_rlimits: bool
    hard_limits: Mapping[str, int | None]
    seccomp: bool
    apparmor: bool
    selinux: bool
    memory_bytes: int
    swap_bytes: int

    def clamp_oom_score_adj(self, wanted: int) -> int:
        """The nearest to `wanted` that a child can be given."""
        return max(wanted, self.oom_score_adj_min)

    def clamp_rlimit(self, name: str, wanted: int | None) -> int | None:
        """The nearest to `wanted` (None is unlimited) that a child's limit can be set to."""
        limit = self.hard_limits.get(name)
        if self.can_raise_rlimits or limit is None:
            return wanted
        return limit if wanted is None else min(wanted, limit)


async def probe(proc: str = "/proc", sys: str = "/sys") -> HostFacts:
    """Finds out. A few milliseconds, one short child process.

    Args:
        proc: where procfs is mounted; `sys`: sysfs.
    """
    own_score = int(_read(f"{proc}/self/oom_score_adj") or 0)
    return _gather(proc, sys, own_score, await _lowest_oom_score_adj(own_score))


def _gather(proc: str, sys: str, own_score: int, lowest_score: int) -> HostFacts:
    status = _keyed(f"{proc}/self/status")
    memory = _keyed(f"{proc}/meminfo")
    release = os.uname().release
    effective = capability_names(int(status["CapEff"], 16))
    return HostFacts(
        kernel=_version(release),
        kernel_release=release,
        machine=os.uname().machine,
        boot_id=_read(f"{proc}/sys/kernel/random/boot_id").strip(),
        effective=effective,
        bounding=capability_names(int(status["CapBnd"], 16)),
        oom_score_adj=own_score,
        oom_score_adj_min=lowest_score,
        # prlimit(2): the capability counts in the initial user namespace only
        can_raise_rlimits="CAP_SYS_RESOURCE" in effective and _in_initial_userns(proc),
        hard_limits=_hard_limits(_read(f"{proc}/self/limits")),
        seccomp=os.path.exists(f"{proc}/sys/kernel/seccomp/actions_avail"),
        apparmor=_read(f"{sys}/module/apparmor/parameters/enabled").startswith("Y"),
        selinux=os.path.exists(f"{sys}/fs/selinux/enforce"),
        memory_bytes=_kib(memory, "MemTotal"),
        swap_bytes=_kib(memory, "SwapTotal"),
    )


def capability_names(mask: int) -> frozenset[str]:
    """The capabilities of a bit mask; bits newer than this list are left out."""
    return frozenset(name for bit, name in enumerate(CAPABILITIES) if mask & (1 << bit))


async def _lowest_oom_score_adj(own: int) -> int:
    """The lowest that a child can be given, by trying.

    Without CAP_SYS_RESOURCE a process may come down to the lowest that a privileged one ever gave
    it or its ancestors (oom_score_adj_min in the kernel), which nothing shows. So a shell bisects
    that, on itself.
    """
    # The sum is lifted above 0 before it is halved: the shell rounds towards 0, not down.
    script = (
        f"low={OOM_SCORE_ADJ_MIN}; high={own}; "
        "while [ $low -lt $high ]; do mid=$(( (low + high + 4000) / 2 - 2000 )); "
        "if (echo $mid > /proc/self/oom_score_adj) 2> /dev/null; "
        "then high=$mid; else low=$((mid + 1)); fi; done; echo $high"
    )
    done = await spawn.run(["/bin/sh", "-c", script], timeout=_PROBE_TIMEOUT)
    return int(done.stdout) if done.returncode == 0 else own


def _in_initial_userns(proc: str) -> bool:
    """Whether our user namespace is the host's: the one that maps all ids to themselves."""
    return _read(f"{proc}/self/uid_map").split() == ["0", "0", "4294967295"]


def _hard_limits(text: str) -> dict[str, int | None]:
    """`Max open files            1024                 524288               files`."""
    found: dict[str, int | None] = {}
    for line in text.splitlines():
        fields = re.split(r" {2,}", line.rstrip())
        if len(fields) >= 3 and fields[0] in RLIMITS:
            found[RLIMITS[fields[0]]] = None if fields[2] == "unlimited" else int(fields[2])
    return found


def _version(release: str) -> tuple[int, int]:
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def _read(path: str) -> str:
    """A file's text; empty where it isn't there."""
    try:
        with open(path) as file:
            return file.read()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
            raise
        return ""


def _keyed(path: str) -> dict[str, str]:
    """A file of `Key: value` lines."""
    pairs = (line.partition(":") for line in _read(path).splitlines())
    return {key: value.strip() for key, _, value in pairs}


def _kib(values: Mapping[str, str], key: str) -> int:
    with contextlib.suppress(ValueError, IndexError):
        return int(values.get(key, "").split()[0]) * 1024
    return 0
