"""What plugins want of a container, laid over its OCI spec: functions of their arguments.

Whatever can't be done is an error that names the field: nothing is left out without a word. Values
are checked as CRI's own are; what only the kernel or the runtime can judge is left to them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zos_cri._pb import nri_pb2 as pb
from zos_cri.errors import FailedPrecondition
from zos_cri.nri import limits
from zos_cri.nri.owners import split
from zos_cri.oci import base, cdi
from zos_cri.oci.container import HandlerSettings
from zos_cri.oci.fields import absolute_path, bad, depth, is_below, mount_target, quote, text
from zos_cri.oci.host import HostFacts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from zos_cri.oci.host import Spec

_HOOKS: Final[Mapping[str, str]] = {
    "prestart": "prestart",
    "create_runtime": "createRuntime",
    "create_container": "createContainer",
    "start_container": "startContainer",
    "poststart": "poststart",
    "poststop": "poststop",
}
_NAMESPACES: Final = frozenset(("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"))
_DEVICES: Final = frozenset("bcup")
_SYSTEM: Final = ("/proc", "/sys", "/dev")
# What a mount asks of the propagation of its source's mount, and of the container's root.
_PROPAGATION: Final[Mapping[str, frozenset[str]]] = {
    "rshared": frozenset(("shared",)),
    "rslave": frozenset(("shared", "slave")),
}


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What an adjustment depends on beside itself.

    Attributes:
        edits: what `ContainerAdjustment.CDI_devices` come to.
        propagation: of the mounts that mounts' sources are on, by source: see `sources`.
    """

    handler: HandlerSettings = HandlerSettings()
    host: HostFacts = HostFacts()
    edits: cdi.Edits | None = None
    propagation: Mapping[str, str] = {}


def sources(adjust: pb.ContainerAdjustment) -> list[str]:
    """Sources of mounts whose propagation must be known."""
    return [
        mount.source
        for mount in adjust.mounts
        if mount.source.startswith("/") and _PROPAGATION.keys() & set(mount.options)
    ]


def adjusted(spec: Spec, adjust: pb.ContainerAdjustment, facts: Facts) -> Spec:
    """A spec with a plugin's adjustments, as a new spec.

    Raises:
        InvalidArgument: a field is wrong; the message names it.
        FailedPrecondition: the runtime doesn't have what is asked for.
    """
    result = copy.deepcopy(spec)
    result["annotations"] = _texts("annotations", result.get("annotations"), adjust.annotations)
    _process(result.setdefault("process", {}), adjust, facts)
    _hooks(result, adjust.hooks)
    if facts.edits is not None:
        result = cdi.apply(result, facts.edits)
    linux = result.setdefault("linux", {})
    _devices(linux, adjust.linux.devices)
    _namespaces(linux, adjust.linux.namespaces)
    _linux(linux, adjust.linux, facts)
    _classes(linux, adjust.linux, facts.handler)
    if adjust.linux.HasField("resources"):
        limits.apply(linux.setdefault("resources", {}), adjust.linux.resources, facts)
        _rules(linux["resources"], adjust.linux.resources.devices)
    _mounts(result, adjust.mounts, facts)
    return result


def _texts(field: str, old: Mapping[str, str] | None, given: Mapping[str, str]) -> dict[str, str]:
    """A map of texts: what is to be taken away goes first."""
    add, gone = split(given)
    result = {key: value for key, value in (old or {}).items() if key not in gone}
    for key in add:
        result[text(field, key)] = text(f"{field}[{quote(key)}]", given[key])
    return result


# ---- process


def _process(process: dict[str, Any], adjust: pb.ContainerAdjustment, facts: Facts) -> None:
    process["env"] = _env(process.get("env", ()), adjust.env)
    if adjust.args:
        process["args"] = [text("args", each) for each in adjust.args]
    if adjust.rlimits:
        given = [
            base.Rlimit(type=limit.type, soft=limit.soft, hard=limit.hard)
            for limit in adjust.rlimits
        ]
        added = base.rlimits("rlimits", given, facts.host)
        names = {limit["type"] for limit in added}
        kept = [limit for limit in process.get("rlimits", ()) if limit["type"] not in names]
        process["rlimits"] = kept + added
    linux = adjust.linux
    if linux.HasField("oom_score_adj"):
        wanted = linux.oom_score_adj.value
        field = "linux.oom_score_adj"
        process["oomScoreAdj"] = base.oom_score_adj(field, wanted, facts.host)
    if linux.HasField("io_priority"):
        _io_priority(process, linux.io_priority, facts)
    if linux.HasField("scheduler"):
        _scheduler(process, linux.scheduler, facts)


def _env(old: Iterable[str], given: Sequence[pb.KeyValue]) -> list[str]:
    """Variables in their order; those that are new come last."""
    values: dict[str, str] = {}
    for entry in old:
        key, _, value = entry.partition("=")
        values[key] = value
    for pair in given:
        if pair.key.startswith("-"):
            values.pop(pair.key[1:], None)
    for pair in given:
        if not pair.key or "=" in pair.key:
            raise bad("env", f"{quote(pair.key)} is no variable's name")
        if not pair.key.startswith("-"):
            values[text("env", pair.key)] = text(f"env[{quote(pair.key)}]", pair.value)
    return [f"{key}={value}" for key, value in values.items()]


def _io_priority(process: dict[str, Any], given: pb.LinuxIOPriority, facts: Facts) -> None:
    need(facts, "process.ioPriority", "linux.io_priority")
    number = getattr(given, "class")  # a keyword of Python's
    if number == pb.IOPRIO_CLASS_NONE:
        process.pop("ioPriority", None)
        return
    kind = _name(pb.IOPrioClass, number, "linux.io_priority.class")
    process["ioPriority"] = {"class": kind, "priority": given.priority}


def _scheduler(process: dict[str, Any], given: pb.LinuxScheduler, facts: Facts) -> None:
    field = "linux.scheduler"
    need(facts, "process.scheduler", field)
    if given.policy == pb.SCHED_NONE:
        process.pop("scheduler", None)
        return
    entry: dict[str, Any] = {"policy": _name(pb.LinuxSchedulerPolicy, given.policy, field)}
    for name in ("nice", "priority", "runtime", "deadline", "period"):
        if value := getattr(given, name):
            entry[name] = value
    if given.flags:
        entry["flags"] = [_name(pb.LinuxSchedulerFlag, flag, field) for flag in given.flags]
    process["scheduler"] = entry


def _name(enum: Any, number: int, field: str) -> str:
    """The OCI spec has the same names."""
    if number not in enum.values():
        raise bad(field, f"there is no {number}")
    return str(enum.Name(number))


def need(facts: Facts, oci: str, field: str) -> None:
    """
    Raises:
        FailedPrecondition: the handler's runtime doesn't say that it knows a field of OCI's.
    """
    if oci not in facts.handler.oci_fields:
        raise FailedPrecondition(f"{field}: the handler's runtime has no {oci}")


# ---- hooks, mounts


def _hooks(spec: Spec, given: pb.Hooks) -> None:
    for name, oci in _HOOKS.items():
        for index, hook in enumerate(getattr(given, name)):
            field = f"hooks.{name}[{index}]"
            entry: dict[str, Any] = {"path": absolute_path(f"{field}.path", hook.path)}
            if hook.args:
                entry["args"] = [text(f"{field}.args", each) for each in hook.args]
            if hook.env:
                entry["env"] = [text(f"{field}.env", each) for each in hook.env]
            if hook.HasField("timeout"):
                if hook.timeout.value <= 0:
                    raise bad(f"{field}.timeout", f"{hook.timeout.value} s is no time")
                entry["timeout"] = hook.timeout.value
            spec.setdefault("hooks", {}).setdefault(oci, []).append(entry)


def _mounts(spec: Spec, given: Sequence[pb.Mount], facts: Facts) -> None:
    if not given:
        return
    added: dict[str, dict[str, Any]] = {}
    gone: set[str] = set()
    for index, mount in enumerate(given):
        field = f"mounts[{index}]"
        if mount.destination.startswith("-"):
            gone.add(mount.destination[1:])
            continue
        target = mount_target(f"{field}.destination", mount.destination)
        options = [text(f"{field}.options", option) for option in mount.options]
        _propagate(spec, field, mount.source, options, facts)
        added[target] = {
            "destination": target,
            "type": text(f"{field}.type", mount.type),
            "source": text(f"{field}.source", mount.source),
            "options": options,
        }
    gone |= added.keys()
    mounts = [m for m in spec.get("mounts", ()) if m["destination"] not in gone]
    mounts += added.values()
    first = [m for m in mounts if any(is_below(m["destination"], top) for top in _SYSTEM)]
    rest = [m for m in mounts if m not in first]
    spec["mounts"] = first + sorted(rest, key=lambda mount: depth(mount["destination"]))


def _propagate(spec: Spec, field: str, source: str, options: Sequence[str], facts: Facts) -> None:
    """Mounts that are to be seen on one side or the other need a root that lets them through."""
    linux = spec.setdefault("linux", {})
    for option in options:
        allowed = _PROPAGATION.get(option)
        if allowed is None:
            continue
        found = facts.propagation.get(source, "private")
        if source.startswith("/") and found not in allowed:
            raise bad(f"{field}.options", f"{option}: the mount of {quote(source)} is {found}")
        if option == "rshared" or linux.get("rootfsPropagation") not in _PROPAGATION:
            linux["rootfsPropagation"] = option


# ---- linux


def _devices(linux: dict[str, Any], given: Sequence[pb.LinuxDevice]) -> None:
    rules = []
    for index, device in enumerate(given):
        path = device.path.removeprefix("-")
        kept = [entry for entry in linux.get("devices", ()) if entry["path"] != path]
        linux["devices"] = kept
        if device.path.startswith("-"):
            continue
        field = f"linux.devices[{index}]"
        if device.type not in _DEVICES:
            raise bad(f"{field}.type", f"{quote(device.type)} is none of b, c, u, p")
        entry: dict[str, Any] = {
            "path": mount_target(f"{field}.path", path),
            "type": device.type,
            "major": device.major,
            "minor": device.minor,
        }
        for name, key in (("file_mode", "fileMode"), ("uid", "uid"), ("gid", "gid")):
            if device.HasField(name):  # type: ignore[arg-type]  # one of three
                entry[key] = getattr(device, name).value
        kept.append(entry)
        if device.type != "p":
            kind = "c" if device.type == "u" else device.type
            rule = {"allow": True, "type": kind, "major": device.major, "minor": device.minor}
            rules.append({**rule, "access": "rwm" if kind == "b" else "rw"})
    if rules:
        linux.setdefault("resources", {}).setdefault("devices", []).extend(rules)


def _rules(resources: dict[str, Any], given: Sequence[pb.LinuxDeviceCgroup]) -> None:
    for rule in given:
        entry: dict[str, Any] = {"allow": rule.allow, "access": rule.access}
        if rule.type:
            entry["type"] = rule.type
        for name in ("major", "minor"):
            if rule.HasField(name):
                entry[name] = getattr(rule, name).value
        resources.setdefault("devices", []).append(entry)


def _namespaces(linux: dict[str, Any], given: Sequence[pb.LinuxNamespace]) -> None:
    for index, namespace in enumerate(given):
        field = f"linux.namespaces[{index}]"
        kind = namespace.type.removeprefix("-")
        if kind not in _NAMESPACES:
            raise bad(f"{field}.type", f"{quote(kind)} is no namespace's name")
        present = linux.setdefault("namespaces", [])
        place = next((i for i, old in enumerate(present) if old["type"] == kind), len(present))
        entry = {"type": kind}
        if namespace.path:
            entry["path"] = absolute_path(f"{field}.path", namespace.path)
        present[place : place + 1] = [] if kind != namespace.type else [entry]


def _linux(linux: dict[str, Any], given: pb.LinuxContainerAdjustment, facts: Facts) -> None:
    if given.cgroups_path:
        linux["cgroupsPath"] = _cgroups_path(given.cgroups_path, facts.handler)
    if given.HasField("seccomp_policy"):
        if not facts.handler.seccomp:
            raise FailedPrecondition(
                "linux.seccomp_policy: the handler's runtime was built without seccomp"
            )
        linux["seccomp"] = _seccomp(given.seccomp_policy)
    if given.sysctl:
        linux["sysctl"] = _texts("linux.sysctl", linux.get("sysctl"), given.sysctl)
    if given.net_devices:
        need(facts, "linux.netDevices", "linux.net_devices")
        _net_devices(linux, given)
    if given.HasField("memory_policy"):
        need(facts, "linux.memoryPolicy", "linux.memory_policy")
        linux["memoryPolicy"] = _memory_policy(given.memory_policy)


def _cgroups_path(path: str, handler: HandlerSettings) -> str:
    field = "linux.cgroups_path"
    if handler.systemd_cgroup:
        parts = text(field, path).split(":")
        if len(parts) != 3 or not parts[0].endswith(".slice") or "/" in path:
            raise bad(field, f"{quote(path)} is no slice:prefix:name, and cgroups are systemd's")
        return path
    if ".." in path.split("/"):
        raise bad(field, f"{quote(path)} has a '..' in it")
    return absolute_path(field, path)


def _seccomp(given: pb.LinuxSeccomp) -> dict[str, Any]:
    result: dict[str, Any] = {"defaultAction": given.default_action}
    if given.HasField("default_errno"):
        result["defaultErrnoRet"] = given.default_errno.value
    for name in ("architectures", "flags"):
        if values := getattr(given, name):
            result[name] = list(values)
    if given.listener_path:
        result["listenerPath"] = absolute_path(
            "linux.seccomp_policy.listener_path", given.listener_path
        )
    if given.listener_metadata:
        result["listenerMetadata"] = given.listener_metadata
    result["syscalls"] = [_syscall(each) for each in given.syscalls]
    return result


def _syscall(given: pb.LinuxSyscall) -> dict[str, Any]:
    result: dict[str, Any] = {"names": list(given.names), "action": given.action}
    if given.HasField("errno_ret"):
        result["errnoRet"] = given.errno_ret.value
    if given.args:
        result["args"] = [
            {"index": arg.index, "value": arg.value, "valueTwo": arg.value_two, "op": arg.op}
            for arg in given.args
        ]
    return result


def _net_devices(linux: dict[str, Any], given: pb.LinuxContainerAdjustment) -> None:
    add, gone = split(given.net_devices)
    devices = {k: v for k, v in linux.get("netDevices", {}).items() if k not in gone}
    for key in add:
        name = given.net_devices[key].name
        devices[text("linux.net_devices", key)] = {"name": name} if name else {}
    linux["netDevices"] = devices


def _memory_policy(given: pb.LinuxMemoryPolicy) -> dict[str, Any]:
    field = "linux.memory_policy"
    result: dict[str, Any] = {"mode": _name(pb.MpolMode, given.mode, f"{field}.mode")}
    if given.nodes:
        result["nodes"] = text(f"{field}.nodes", given.nodes)
    if given.flags:
        result["flags"] = [_name(pb.MpolFlag, flag, f"{field}.flags") for flag in given.flags]
    return result


def _classes(
    linux: dict[str, Any], given: pb.LinuxContainerAdjustment, handler: HandlerSettings
) -> None:
    """RDT: by the name of a class, or by its parts."""
    if given.resources.HasField("rdt_class"):
        name = given.resources.rdt_class.value
        linux.pop("intelRdt", None)
        if name:
            if name not in handler.rdt_classes:
                raise bad("linux.resources.rdt_class", f"no RDT class {quote(name)} is configured")
            linux["intelRdt"] = {"closID": name}
    if not given.HasField("rdt"):
        return
    rdt: dict[str, Any] = {} if given.rdt.remove else dict(linux.get("intelRdt", {}))
    facts = Facts(handler=handler)
    if given.rdt.HasField("clos_id"):
        need(facts, "linux.intelRdt", "linux.rdt.clos_id")
        rdt["closID"] = text("linux.rdt.clos_id", given.rdt.clos_id.value)
    if given.rdt.HasField("schemata"):
        need(facts, "linux.intelRdt.schemata", "linux.rdt.schemata")
        rdt["schemata"] = [text("linux.rdt.schemata", line) for line in given.rdt.schemata.value]
    if given.rdt.HasField("enable_monitoring"):
        need(facts, "linux.intelRdt.enableMonitoring", "linux.rdt.enable_monitoring")
        rdt["enableMonitoring"] = given.rdt.enable_monitoring.value
    if rdt:
        linux["intelRdt"] = rdt
    else:
        linux.pop("intelRdt", None)
