"""The spec of a container of the 0-OS module: given a root filesystem and a network namespace."""

from __future__ import annotations

import re
from collections.abc import Mapping  # msgspec resolves the annotations
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zos_cri.oci import base, capabilities, process, seccomp
from zos_cri.oci.fields import absolute_path, bad, mount_target, quote, text

if TYPE_CHECKING:
    from zos_cri.oci.host import HostFacts, Spec

MAX_CPU: Final = 8192
"""Cores: more than NR_CPUS of any distribution's kernel can't be meant."""
MIN_MEMORY: Final = 4 << 20
"""Bytes: below this the runtime's own init doesn't fit, and it is killed before it can say why."""
_HOSTNAME: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,62}[A-Za-z0-9_])?")
_KERNEL_TYPES: Final = frozenset(("bind", "tmpfs", "proc", "sysfs", "cgroup", "devpts", "mqueue"))
"""Mount types that need no source on the host but `bind`'s, which has one."""


class ModuleMount(msgspec.Struct, frozen=True, kw_only=True):
    """A mount of a module container, as the module's interface has it."""

    source: str
    target: str
    type: str = "bind"
    options: tuple[str, ...] = ()


class ModuleContainer(msgspec.Struct, frozen=True, kw_only=True):
    """What the module knows of a container when it asks for its spec."""

    id: str
    args: tuple[str, ...]
    network_namespace: str
    """Path of the one network namespace it joins."""
    env: tuple[str, ...] = ()
    """`NAME=value`."""
    working_dir: str = "/"
    hostname: str = ""
    """Empty: the id's first 12 characters."""
    mounts: tuple[ModuleMount, ...] = ()
    cpu: float = 0.0
    """Cores; 0 means no limit."""
    memory: int = 0
    """Bytes; 0 means no limit."""
    interactive: bool = False
    """Whether it has a terminal."""
    elevated: bool = False
    """All capabilities, all devices, no seccomp, nothing hidden: as root on the host, but in
    namespaces."""
    user: tuple[int, int] = (0, 0)
    """uid and gid."""
    cgroups_path: str = ""
    """As linux.cgroupsPath; empty: `/zos-cri/<id>`."""
    rlimits: tuple[base.Rlimit, ...] = ()
    oom_score_adj: int = 0
    annotations: Mapping[str, str] = {}
    rootfs: str = base.ROOTFS
    readonly_rootfs: bool = False


def module_spec(
    container: ModuleContainer,
    host: HostFacts,
    *,
    oci_version: str = base.OCI_VERSION,
    devices: tuple[base.DeviceNode, ...] = (),
) -> Spec:
    """The OCI spec of a module container.

    It has pid, mount, ipc and uts namespaces of its own (and a cgroup namespace on cgroup v2)
    and joins exactly one network namespace. Not elevated, it has the default capabilities, the
    default seccomp profile, masked and read-only paths and no_new_privs.

    Args:
        container: What to run. That mount sources and the namespace are there is the caller's to
            check: this looks at nothing.
        host: What this host allows.
        oci_version: What the runtime takes.
        devices: The host's device nodes, which an elevated container gets.

    Raises:
        InvalidArgument: a field is wrong; the message names it.
    """
    elevated = container.elevated
    held = capabilities.givable(host, user_namespace=False)
    if not elevated:
        held &= capabilities.DEFAULT
    mounts = base.default_mounts(
        host,
        writable_sys=elevated,
        writable_cgroups=elevated,
        cgroup_namespace=host.unified and not elevated,
        shm=True,
    )
    spec: Spec = {
        "ociVersion": oci_version,
        "process": _process(container, host, held),
        "root": {"path": container.rootfs, "readonly": container.readonly_rootfs},
        "hostname": _hostname(container),
        "mounts": base.merge_mounts(mounts, _mounts(container)),
        "annotations": dict(container.annotations),
        "linux": {
            "namespaces": _namespaces(container, host),
            "cgroupsPath": container.cgroups_path or f"/zos-cri/{container.id}",
            "resources": _resources(container, host),
        },
    }
    if elevated:
        spec["linux"]["devices"] = [base.device_entry(node) for node in devices]
    else:
        spec["linux"]["maskedPaths"] = base.masked_paths(host)
        spec["linux"]["readonlyPaths"] = list(base.READONLY_PATHS)
        if host.seccomp:
            spec["linux"]["seccomp"] = seccomp.default_profile(held, host)
    return spec


def _process(container: ModuleContainer, host: HostFacts, held: frozenset[str]) -> dict[str, Any]:
    terminal = ["TERM=xterm"] if container.interactive else []
    for index, entry in enumerate(container.env):
        name, equals, _ = text(f"env[{index}]", entry).partition("=")
        if not equals or not name:
            raise bad(f"env[{index}]", f"{quote(entry)} is not NAME=value")
    uid, gid = container.user
    if not (0 <= uid < 2**31 and 0 <= gid < 2**31):
        raise bad("user", f"{uid}:{gid} is out of range")
    return {
        "terminal": container.interactive,
        "user": {"uid": uid, "gid": gid, "additionalGids": [gid]},
        "args": process.checked_arguments("entrypoint", container.args),
        "env": process.environment(terminal, [f"HOSTNAME={_hostname(container)}"], container.env),
        "cwd": absolute_path("working_dir", container.working_dir or "/"),
        "capabilities": capabilities.sets(held),
        "rlimits": base.rlimits("rlimits", container.rlimits, host),
        "noNewPrivileges": not container.elevated,
        "oomScoreAdj": base.oom_score_adj("oom_score_adj", container.oom_score_adj, host),
    }


def _hostname(container: ModuleContainer) -> str:
    hostname = container.hostname or container.id[:12]
    if not _HOSTNAME.fullmatch(hostname):
        raise bad("hostname", f"{quote(hostname)} is no host name of at most 64 characters")
    return hostname


def _namespaces(container: ModuleContainer, host: HostFacts) -> list[dict[str, str]]:
    network = absolute_path("network.namespace", container.network_namespace)
    cgroup = "" if host.unified and not container.elevated else None
    kinds: dict[str, str | None] = {"pid": "", "mount": "", "ipc": "", "uts": ""}
    return base.namespaces(kinds | {"network": network, "cgroup": cgroup})


def _mounts(container: ModuleContainer) -> list[dict[str, Any]]:
    result = []
    targets = set()
    for index, mount in enumerate(container.mounts):
        field = f"mounts[{index}]"
        target = mount_target(f"{field}.target", mount.target)
        if target in targets:
            raise bad(f"{field}.target", f"{quote(target)} is mounted over twice")
        targets.add(target)
        options = list(mount.options)
        for option in options:
            if not option or "," in text(f"{field}.options", option):
                raise bad(f"{field}.options", f"{quote(option)} is not one option")
        source = mount.source
        if mount.type == "bind":
            source = absolute_path(f"{field}.source", source)
            if "bind" not in options and "rbind" not in options:
                options.insert(0, "rbind")
            if not any(option.lstrip("r") in _PROPAGATIONS for option in options):
                options.append("rprivate")
        elif mount.type not in _KERNEL_TYPES:
            raise bad(f"{field}.type", f"{quote(mount.type)} is not one of bind, tmpfs, …")
        entry = {"destination": target, "type": mount.type, "source": source or mount.type}
        result.append(entry | {"options": options})
    return result


_PROPAGATIONS: Final = frozenset(("private", "slave", "shared", "unbindable"))


def _resources(container: ModuleContainer, host: HostFacts) -> dict[str, Any]:
    resources: dict[str, Any] = {
        "devices": base.device_rules((), all_allowed=container.elevated),
    }
    if not 0 <= container.cpu <= MAX_CPU:
        raise bad("cpu", f"{container.cpu} is not between 0 and {MAX_CPU} cores")
    if container.cpu:
        quota = max(round(container.cpu * base.CPU_PERIOD), 1_000)
        shares = max(round(container.cpu * 1024), 2)
        resources["cpu"] = {
            "period": base.CPU_PERIOD,
            "quota": quota,
            "shares": min(shares, 262_144),
        }
    if container.memory and container.memory < MIN_MEMORY:
        raise bad("memory", f"{container.memory} bytes are below the least, {MIN_MEMORY}")
    if container.memory:
        resources["memory"] = {"limit": container.memory}
        if host.swap_accounting:
            resources["memory"]["swap"] = container.memory
    return resources
