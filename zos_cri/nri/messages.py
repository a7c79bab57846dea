"""OCI specs as NRI has them: what plugins see of a container."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from zos_cri._pb import nri_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from zos_cri.oci.host import Spec

_HOOKS: Final[Mapping[str, str]] = {
    "prestart": "prestart",
    "createRuntime": "create_runtime",
    "createContainer": "create_container",
    "startContainer": "start_container",
    "poststart": "poststart",
    "poststop": "poststop",
}
_OPTIONAL_CPU: Final[Mapping[str, str]] = {
    "shares": "shares",
    "quota": "quota",
    "period": "period",
    "realtimeRuntime": "realtime_runtime",
    "realtimePeriod": "realtime_period",
}
_OPTIONAL_MEMORY: Final[Mapping[str, str]] = {
    "limit": "limit",
    "reservation": "reservation",
    "swap": "swap",
    "kernel": "kernel",
    "kernelTCP": "kernel_tcp",
    "swappiness": "swappiness",
    "disableOOMKiller": "disable_oom_killer",
    "useHierarchy": "use_hierarchy",
}


def fill(container: pb.Container, spec: Spec) -> None:
    """Adds to a container what its OCI spec says."""
    process = spec.get("process", {})
    container.args.extend(process.get("args", ()))
    container.env.extend(process.get("env", ()))
    for mount in spec.get("mounts", ()):
        container.mounts.add(
            destination=mount["destination"],
            type=mount.get("type", ""),
            source=mount.get("source", ""),
            options=mount.get("options", ()),
        )
    _fill_hooks(container.hooks, spec.get("hooks", {}))
    for limit in process.get("rlimits", ()):
        container.rlimits.add(type=limit["type"], hard=limit["hard"], soft=limit["soft"])
    user = process.get("user", {})
    container.user.uid, container.user.gid = user.get("uid", 0), user.get("gid", 0)
    container.user.additional_gids.extend(user.get("additionalGids", ()))
    _fill_linux(container.linux, spec)


def _fill_hooks(hooks: pb.Hooks, given: Mapping[str, Any]) -> None:
    for oci, name in _HOOKS.items():
        for hook in given.get(oci, ()):
            entry = getattr(hooks, name).add(
                path=hook["path"], args=hook.get("args", ()), env=hook.get("env", ())
            )
            if "timeout" in hook:
                entry.timeout.value = hook["timeout"]


def _fill_linux(target: pb.LinuxContainer, spec: Spec) -> None:
    linux, process = spec.get("linux", {}), spec.get("process", {})
    target.namespaces.extend(namespaces(linux.get("namespaces", ())))
    for device in linux.get("devices", ()):
        _fill_device(target.devices.add(), device)
    target.resources.CopyFrom(resources(linux.get("resources", {})))
    if "oomScoreAdj" in process:
        target.oom_score_adj.value = process["oomScoreAdj"]
    target.cgroups_path = linux.get("cgroupsPath", "")
    if (priority := process.get("ioPriority")) is not None:
        kind = _number(pb.IOPrioClass, priority["class"])
        target.io_priority.CopyFrom(
            pb.LinuxIOPriority(**{"class": kind, "priority": priority.get("priority", 0)})
        )
    if (policy := linux.get("seccomp")) is not None:
        _fill_seccomp(target.seccomp_policy, policy)
    target.sysctl.update(linux.get("sysctl", {}))
    for name, device in linux.get("netDevices", {}).items():
        target.net_devices[name].name = device.get("name", "")
    if (scheduler := process.get("scheduler")) is not None:
        _fill_scheduler(target.scheduler, scheduler)
    if (rdt := linux.get("intelRdt")) is not None:
        target.rdt.clos_id.value = rdt.get("closID", "")
        target.rdt.schemata.value.extend(rdt.get("schemata", ()))
        target.rdt.enable_monitoring.value = rdt.get("enableMonitoring", False)


def namespaces(given: Iterable[Mapping[str, str]]) -> list[pb.LinuxNamespace]:
    """OCI's linux.namespaces."""
    return [pb.LinuxNamespace(type=each["type"], path=each.get("path", "")) for each in given]


def _fill_device(target: pb.LinuxDevice, device: Mapping[str, Any]) -> None:
    target.path, target.type = device["path"], device["type"]
    target.major, target.minor = device.get("major", 0), device.get("minor", 0)
    if "fileMode" in device:
        target.file_mode.value = device["fileMode"]
    if "uid" in device:
        target.uid.value = device["uid"]
    if "gid" in device:
        target.gid.value = device["gid"]


def resources(given: Mapping[str, Any]) -> pb.LinuxResources:
    """OCI's linux.resources. Block I/O has no name any more: only a class has one."""
    result = pb.LinuxResources()
    for part, names in (("memory", _OPTIONAL_MEMORY), ("cpu", _OPTIONAL_CPU)):
        for oci, name in names.items():
            if oci in given.get(part, {}):
                getattr(getattr(result, part), name).value = given[part][oci]
    result.cpu.cpus = given.get("cpu", {}).get("cpus", "")
    result.cpu.mems = given.get("cpu", {}).get("mems", "")
    for limit in given.get("hugepageLimits", ()):
        result.hugepage_limits.add(page_size=limit["pageSize"], limit=limit["limit"])
    result.unified.update(given.get("unified", {}))
    for rule in given.get("devices", ()):
        entry = result.devices.add(
            allow=rule["allow"], type=rule.get("type", ""), access=rule.get("access", "")
        )
        if "major" in rule:
            entry.major.value = rule["major"]
        if "minor" in rule:
            entry.minor.value = rule["minor"]
    if "pids" in given:
        result.pids.limit = given["pids"]["limit"]
    return result


def _fill_seccomp(target: pb.LinuxSeccomp, policy: Mapping[str, Any]) -> None:
    target.default_action = policy["defaultAction"]
    if "defaultErrnoRet" in policy:
        target.default_errno.value = policy["defaultErrnoRet"]
    target.architectures.extend(policy.get("architectures", ()))
    target.flags.extend(policy.get("flags", ()))
    target.listener_path = policy.get("listenerPath", "")
    target.listener_metadata = policy.get("listenerMetadata", "")
    for call in policy.get("syscalls", ()):
        entry = target.syscalls.add(names=call["names"], action=call["action"])
        if "errnoRet" in call:
            entry.errno_ret.value = call["errnoRet"]
        for arg in call.get("args", ()):
            entry.args.add(
                index=arg["index"],
                value=arg["value"],
                value_two=arg.get("valueTwo", 0),
                op=arg["op"],
            )


def _fill_scheduler(target: pb.LinuxScheduler, given: Mapping[str, Any]) -> None:
    target.policy = _number(pb.LinuxSchedulerPolicy, given["policy"])
    for name in ("nice", "priority", "runtime", "deadline", "period"):
        setattr(target, name, given.get(name, 0))
    flags = pb.LinuxSchedulerFlag
    target.flags.extend(
        flags.Value(f) for f in given.get("flags", ()) if f in flags.DESCRIPTOR.values_by_name
    )


def _number(enum: Any, name: str) -> Any:
    """OCI has the same names; one of a base spec that NRI doesn't know is told as none."""
    return enum.Value(name) if name in enum.DESCRIPTOR.values_by_name else 0
