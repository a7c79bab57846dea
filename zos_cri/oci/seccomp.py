"""Seccomp: the default profile as an OCI object, and a profile file turned into one.

A profile file is either OCI's `linux.seccomp` as it is, or moby's format, which adds `archMap`
and, for each rule, conditions (`includes`, `excludes`) on capabilities, architecture and kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from zos_cri.oci import seccomp_table as table
from zos_cri.oci.fields import bad, quote

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from zos_cri.oci.host import HostFacts

MAX_PROFILE: Final = 1 << 20
"""Bytes of a profile file: moby's own has 14 KiB, the largest in use some 100 KiB."""

_ALLOW: Final = "SCMP_ACT_ALLOW"
_ERRNO: Final = "SCMP_ACT_ERRNO"
_GO_ARCHITECTURES: Final[Mapping[str, str]] = {
    "x86_64": "amd64",
    "i686": "386",
    "aarch64": "arm64",
    "armv7l": "arm",
    "loongarch64": "loong64",
}


def default_profile(capabilities: Collection[str], host: HostFacts) -> dict[str, Any]:
    """The RuntimeDefault profile for a container whose bounding set is `capabilities`."""
    names = {name for group in table.ALWAYS for name in group}
    names.update(table.BY_ARCHITECTURE.get(host.architecture, ()))
    for version, group in table.SINCE_KERNEL.items():
        if host.kernel >= version:
            names.update(group)
    for capability in capabilities:
        names.update(table.BY_CAPABILITY.get(capability, ()))
    rules: list[dict[str, Any]] = [{"names": sorted(names), "action": _ALLOW}]
    rules.append(_rule("socket", 0, table.SOCKET_FAMILIES_BELOW, "SCMP_CMP_LT"))
    rules += [_rule("socket", 0, family, "SCMP_CMP_EQ") for family in table.SOCKET_FAMILIES]
    rules += [_rule("personality", 0, value, "SCMP_CMP_EQ") for value in table.PERSONALITIES]
    if "clone" not in names:
        # clone's flags are its first argument, on s390x its second; clone3's lie behind a
        # pointer, so it is said not to exist and libc goes back to clone.
        index = 1 if host.architecture == "s390x" else 0
        clone = _rule("clone", index, table.CLONE_NEW_NAMESPACES, "SCMP_CMP_MASKED_EQ")
        rules.append(clone)
        rules.append({"names": ["clone3"], "action": _ERRNO, "errnoRet": table.ENOSYS})
    return {
        "defaultAction": _ERRNO,
        "architectures": list(table.ARCHITECTURES.get(host.architecture, ())),
        "syscalls": rules,
    }


def _rule(name: str, index: int, value: int, operator: str) -> dict[str, Any]:
    # For MASKED_EQ `value` is the mask and valueTwo what must be left: nothing.
    argument = {"index": index, "value": value, "valueTwo": 0, "op": operator}
    return {"names": [name], "action": _ALLOW, "args": [argument]}


class _Condition(msgspec.Struct, frozen=True, rename="camel"):
    caps: tuple[str, ...] = ()
    arches: tuple[str, ...] = ()
    min_kernel: str = ""


class _Argument(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    index: int = msgspec.field(name="index")
    value: int = msgspec.field(name="value")
    op: str = msgspec.field(name="op")
    value_two: int = 0


class _Rule(msgspec.Struct, frozen=True, rename="camel"):
    action: str
    names: tuple[str, ...] = ()
    name: str = ""
    args: tuple[_Argument, ...] | None = ()
    errno_ret: int | None = None
    includes: _Condition | None = None
    excludes: _Condition | None = None


class _ArchMap(msgspec.Struct, frozen=True, rename="camel"):
    architecture: str
    sub_architectures: tuple[str, ...] | None = ()


class _Profile(msgspec.Struct, frozen=True, rename="camel"):
    default_action: str
    default_errno_ret: int | None = None
    architectures: tuple[str, ...] | None = None
    arch_map: tuple[_ArchMap, ...] | None = None
    flags: tuple[str, ...] | None = None
    listener_path: str = ""
    listener_metadata: str = ""
    syscalls: tuple[_Rule, ...] | None = ()


def parse_profile(
    data: bytes, *, field: str, capabilities: Collection[str], host: HostFacts
) -> dict[str, Any]:
    """A profile file's content (JSON, OCI's or moby's format) as OCI `linux.seccomp`.

    Args:
        data: The file's bytes.
        field: The CRI field that named the file, for errors.
        capabilities: The container's bounding set: moby's conditions ask for it.
        host: For the architecture and the kernel's version.

    Raises:
        InvalidArgument: too long, not JSON, or not a profile.
    """
    if len(data) > MAX_PROFILE:
        raise bad(field, f"the seccomp profile is longer than {MAX_PROFILE} bytes")
    try:
        profile = msgspec.json.decode(data, type=_Profile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad(field, f"not a seccomp profile: {error}") from error
    rules = [
        _oci_rule(rule, field)
        for rule in profile.syscalls or ()
        if _applies(rule, capabilities, host, field)
    ]
    result: dict[str, Any] = {"defaultAction": profile.default_action}
    if profile.default_errno_ret is not None:
        result["defaultErrnoRet"] = profile.default_errno_ret
    architectures = _architectures(profile, host)
    if architectures:
        result["architectures"] = architectures
    if profile.flags:
        result["flags"] = list(profile.flags)
    if profile.listener_path:
        result["listenerPath"] = profile.listener_path
        result["listenerMetadata"] = profile.listener_metadata
    if rules:
        result["syscalls"] = rules
    return result


def _architectures(profile: _Profile, host: HostFacts) -> list[str]:
    if profile.architectures:
        return list(profile.architectures)
    native = table.ARCHITECTURES.get(host.architecture, ("",))[0]
    for entry in profile.arch_map or ():
        if entry.architecture == native:
            return [entry.architecture, *(entry.sub_architectures or ())]
    return []


def _oci_rule(rule: _Rule, field: str) -> dict[str, Any]:
    names = [*rule.names, *([rule.name] if rule.name else [])]
    if not names:
        raise bad(field, "not a seccomp profile: a rule of it names no system call")
    result: dict[str, Any] = {"names": names, "action": rule.action}
    if rule.errno_ret is not None:
        result["errnoRet"] = rule.errno_ret
    if rule.args:
        result["args"] = [msgspec.to_builtins(argument) for argument in rule.args]
    return result


def _applies(rule: _Rule, capabilities: Collection[str], host: HostFacts, field: str) -> bool:
    includes, excludes = rule.includes, rule.excludes
    if includes is not None and not all(_matches(includes, capabilities, host, field)):
        return False
    # An exclusion counts when any one of its conditions is met and there is one at all.
    return excludes is None or not any(_met(excludes, capabilities, host, field))


def _matches(
    condition: _Condition, capabilities: Collection[str], host: HostFacts, field: str
) -> tuple[bool, ...]:
    return (
        all(capability in capabilities for capability in condition.caps),
        not condition.arches or _go_architecture(host) in condition.arches,
        not condition.min_kernel or host.kernel >= _version(condition.min_kernel, field),
    )


def _met(
    condition: _Condition, capabilities: Collection[str], host: HostFacts, field: str
) -> tuple[bool, ...]:
    return (
        any(capability in capabilities for capability in condition.caps),
        _go_architecture(host) in condition.arches,
        bool(condition.min_kernel) and host.kernel >= _version(condition.min_kernel, field),
    )


def _go_architecture(host: HostFacts) -> str:
    return _GO_ARCHITECTURES.get(host.architecture, host.architecture)


def _version(text: str, field: str) -> tuple[int, int]:
    try:
        major, minor = text.split(".")[:2]
        return int(major), int(minor)
    except ValueError as error:
        raise bad(field, f"not a seccomp profile: minKernel {quote(text)}") from error
