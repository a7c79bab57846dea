"""The kernel, cgroups, capabilities and limits: `gather` reads them, `check` judges."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri.doctor.finding import Finding, fail, ok, warn
from zos_cri.linux.mount import all_mounts, mount_of
from zos_cri.oci.host import HostFacts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zos_cri.linux.cgroup import Cgroups

# mount_setattr(2), for recursive read-only and id-mapped mounts, is the newest call that we make.
OLDEST_KERNEL: Final = (5, 12)
MAPPED_LAYERS: Final = (5, 19)  # overlays of id-mapped layers, for user namespaces
FAVOR_DYNMODS: Final = (6, 0)
NEEDED_CONTROLLERS: Final = ("cpu", "cpuset", "memory", "pids")
# What the server, the shims and the runtimes do: mounts, namespaces, networks, devices, other
# users' files and processes.
NEEDED_CAPABILITIES: Final = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
    "CAP_NET_ADMIN", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT", "CAP_SYS_PTRACE",
)  # fmt: skip
OPEN_FILES: Final = 65536  # a pod takes about 20 descriptors, and one a cgroup file that is read


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What was found; the defaults are those of an ordinary host.

    Attributes:
        controllers: of all cgroup hierarchies.
        cgroup_options: of the cgroup2 mount.
        cgroup2: where that is mounted.
        systemd: whether systemd is the init.
        filesystems: those that the kernel knows.
        root_shared: whether mounts made on the host reach into other mount namespaces.
        forwarding: net.ipv4.ip_forward.
        user_namespaces: user.max_user_namespaces.
    """

    uid: int = 0
    host: HostFacts = HostFacts()
    release: str = "6.1.0"
    controllers: frozenset[str] = frozenset(NEEDED_CONTROLLERS)
    cgroup_options: tuple[str, ...] = ("favordynmods",)
    cgroup2: str = "/sys/fs/cgroup"
    systemd: bool = True
    filesystems: frozenset[str] = frozenset({"overlay", "tmpfs", "mqueue"})
    root_shared: bool = True
    forwarding: bool = True
    user_namespaces: int = 1


def gather(host: HostFacts, cgroups: Cgroups) -> Machine:
    """Reads what isn't among the host's facts already. Blocks for some milliseconds."""
    mounts = [m for m in all_mounts() if m.type == "cgroup2" and m.target.startswith("/sys/fs/")]
    return Machine(
        uid=os.geteuid(),
        host=host,
        release=os.uname().release,
        controllers=cgroups.controllers,
        cgroup_options=mounts[0].super_options if mounts else (),
        cgroup2=mounts[0].target if mounts else "",
        systemd=os.path.isdir("/run/systemd/system"),
        filesystems=_filesystems(),
        root_shared=mount_of("/").shared is not None,
        forwarding=_number("/proc/sys/net/ipv4/ip_forward") == 1,
        user_namespaces=_number("/proc/sys/user/max_user_namespaces"),
    )


def _filesystems() -> frozenset[str]:
    """Those registered, and those whose module would be loaded by the first mount."""
    known = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    modules = Path("/lib/modules", os.uname().release, "kernel/fs")
    loadable = {"overlay"} if (modules / "overlayfs").is_dir() else set()
    return frozenset(known | loadable)


def _number(path: str) -> int:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return 0


def check(machine: Machine) -> Iterator[Finding]:
    """Judges a machine."""
    yield _user(machine)
    yield from _kernel(machine)
    yield from _cgroups(machine)
    yield from _rights(machine)
    yield _limits(machine.host)
    yield _propagation(machine)
    yield _forwarding(machine)
    yield _security(machine.host)


def _user(machine: Machine) -> Finding:
    if machine.uid == 0:
        return ok("user", "root")
    return fail("user", f"uid {machine.uid}", "run it as root: it makes namespaces and mounts")


def _kernel(machine: Machine) -> Iterator[Finding]:
    kernel = machine.host.kernel
    if kernel < OLDEST_KERNEL:
        yield fail("kernel", machine.release, f"Linux {_dotted(OLDEST_KERNEL)} or later is needed")
    else:
        yield ok("kernel", machine.release)
    for name in ("overlay", "mqueue"):
        if name not in machine.filesystems:
            yield fail(name, "not in this kernel", f"modprobe {name}, or a kernel that has it")
    if kernel < MAPPED_LAYERS or machine.user_namespaces < 1:
        yield warn(
            "user namespaces",
            f"user.max_user_namespaces is {machine.user_namespaces}, Linux {_dotted(kernel)}",
            f"pods with hostUsers: false need Linux {_dotted(MAPPED_LAYERS)} and"
            " sysctl -w user.max_user_namespaces=65536",
        )
    else:
        yield ok("user namespaces", "can be made")


def _cgroups(machine: Machine) -> Iterator[Finding]:
    mode = machine.host.cgroup_mode
    driver = "systemd can be the driver" if machine.systemd else "no systemd: cgroupfs only"
    if mode == "v2":
        yield ok("cgroups", f"version 2; {driver}")
    else:
        yield warn(
            "cgroups",
            f"version 1 ({mode}); {driver}",
            "kubelets from 1.35 on refuse it unless failCgroupV1 is false; boot with"
            " systemd.unified_cgroup_hierarchy=1",
        )
    missing = [name for name in NEEDED_CONTROLLERS if name not in machine.controllers]
    if missing:
        yield fail(
            "controllers",
            f"without {', '.join(missing)}",
            "boot without cgroup_disable, with cgroup_enable=memory where memory is missing",
        )
    else:
        yield ok("controllers", ", ".join(sorted(machine.controllers)))
    yield _favordynmods(machine)


def _favordynmods(machine: Machine) -> Finding:
    if "favordynmods" in machine.cgroup_options:
        return ok("favordynmods", "on")
    if machine.host.kernel < FAVOR_DYNMODS or not machine.cgroup2:
        return warn("favordynmods", "not in this kernel", "Linux 6.0 starts containers faster")
    return warn(
        "favordynmods",
        "off: each start and exec waits 10 to 15 ms for the kernel",
        f"mount -o remount,favordynmods {machine.cgroup2}",
    )


def _rights(machine: Machine) -> Iterator[Finding]:
    has = machine.host.capabilities
    missing = [name for name in NEEDED_CAPABILITIES if name not in has]
    if missing:
        yield fail(
            "capabilities",
            f"without {', '.join(missing)}",
            "take them out of what bounds us: CapabilityBoundingSet= of the unit, or the"
            " container that this runs in",
        )
    else:
        yield ok("capabilities", f"{len(has)}, with all that are needed")
    if "CAP_SYS_RESOURCE" not in has:
        yield warn(
            "CAP_SYS_RESOURCE",
            f"missing: oom_score_adj goes down to {machine.host.oom_score_adj_min} only, limits"
            " can't be raised",
            "give it to us, or live with values that are clamped",
        )


def _limits(host: HostFacts) -> Finding:
    files = host.rlimits.get("RLIMIT_NOFILE", 0)
    shown = "unlimited" if files > 1 << 62 else str(files)
    if files >= OPEN_FILES:
        return ok("open files", shown)
    return warn(
        "open files",
        f"at most {shown}",
        f"LimitNOFILE=1048576 in the unit, or ulimit -n {OPEN_FILES}, for more than some 100 pods",
    )


def _propagation(machine: Machine) -> Finding:
    if machine.root_shared:
        return ok("mount propagation", "/ is shared")
    return warn(
        "mount propagation",
        "/ is private: volumes with mountPropagation Bidirectional are refused",
        "mount --make-rshared /",
    )


def _forwarding(machine: Machine) -> Finding:
    if machine.forwarding:
        return ok("ip_forward", "on")
    return warn(
        "ip_forward",
        "off: pods reach nothing beyond this host",
        "sysctl -w net.ipv4.ip_forward=1 (some CNI plugins switch it on themselves)",
    )


def _security(host: HostFacts) -> Finding:
    names = [n for n, there in (("AppArmor", host.apparmor), ("SELinux", host.selinux)) if there]
    if not host.seccomp:
        return warn(
            "seccomp",
            "not in this kernel: profiles are refused, the default one is left out",
            "a kernel with CONFIG_SECCOMP_FILTER",
        )
    return ok("security", ", ".join(["seccomp", *names]))


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
