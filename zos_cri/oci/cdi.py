"""Container Device Interface: its spec files (0.3 to 1.0), and what a device adds to a container.

The files are read elsewhere; here they come as parsed JSON. Device names are taken from
ContainerConfig.CDI_devices and from nowhere else: an annotation isn't trusted for it
(CVE-2026-53492).
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from zos_cri.errors import InvalidArgument
from zos_cri.oci import base, process
from zos_cri.oci.fields import absolute_path, bad, depth, is_below, mount_target, quote

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from zos_cri._pb import cri_pb2
    from zos_cri.oci.host import Spec

VERSIONS: Final = ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0")
HOOKS: Final[Mapping[str, str]] = {
    "prestart": "prestart",
    "createRuntime": "createRuntime",
    "createContainer": "createContainer",
    "startContainer": "startContainer",
    "poststart": "poststart",
    "poststop": "poststop",
}

_VENDOR: Final = re.compile(r"[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?")
_CLASS: Final = re.compile(r"[A-Za-z]([A-Za-z0-9_-]*[A-Za-z0-9])?")
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?")


class DeviceNode(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """A device node to make; what it leaves out is as the host has it."""

    path: str
    host_path: str = ""
    type: Literal["", "c", "b", "u", "p"] = ""
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    permissions: str = ""
    uid: int | None = None
    gid: int | None = None


class Mount(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """A mount to make: a bind mount unless `type` says otherwise."""

    host_path: str
    container_path: str
    options: tuple[str, ...] = ()
    type: str = ""


class Hook(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """An OCI hook; `hook_name` is one of HOOKS."""

    hook_name: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


class IntelRdt(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """OCI's linux.intelRdt, with the same names."""

    closID: str = ""  # noqa: N815 as in the OCI spec
    l3CacheSchema: str = ""  # noqa: N815
    memBwSchema: str = ""  # noqa: N815
    enableCMT: bool = False  # noqa: N815
    enableMBM: bool = False  # noqa: N815


class Edits(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """What devices add to a container (containerEdits)."""

    env: tuple[str, ...] = ()
    device_nodes: tuple[DeviceNode, ...] = ()
    mounts: tuple[Mount, ...] = ()
    hooks: tuple[Hook, ...] = ()
    intel_rdt: IntelRdt | None = None
    additional_gids: tuple[int, ...] = msgspec.field(name="additionalGids", default=())


class Device(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """One device of a spec file."""

    name: str
    container_edits: Edits = Edits()
    annotations: dict[str, str] = {}


class CdiSpec(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """One spec file: `kind` is `vendor.com/class`."""

    cdi_version: str
    kind: str
    devices: tuple[Device, ...]
    container_edits: Edits = Edits()
    annotations: dict[str, str] = {}


class Catalogue(msgspec.Struct, frozen=True):
    """All devices that can be asked for, by their qualified names."""

    devices: dict[str, tuple[CdiSpec, Device]]
    conflicts: frozenset[str] = frozenset()
    """Names that two files of one directory have: none of them counts."""


def parse_spec(document: object, path: str) -> CdiSpec:
    """A spec file's content, parsed and checked.

    Args:
        document: The file's JSON, as Python's json or msgspec give it.
        path: The file's path, for errors.

    Raises:
        InvalidArgument: a version that isn't known, an unknown or a missing field, a bad name.
    """
    try:
        spec = msgspec.convert(document, CdiSpec)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"{path}: not a CDI spec: {error}") from error
    if spec.cdi_version not in VERSIONS:
        what = f"version {quote(spec.cdi_version)} is none of {', '.join(VERSIONS)}"
        raise InvalidArgument(f"{path}: cdiVersion: {what}")
    vendor, slash, kind = spec.kind.partition("/")
    if not (slash and _VENDOR.fullmatch(vendor) and _CLASS.fullmatch(kind)):
        raise InvalidArgument(f"{path}: kind: {quote(spec.kind)} is not vendor/class")
    if not spec.devices:
        raise InvalidArgument(f"{path}: devices: there is none")
    names = set()
    _check_edits(f"{path}: containerEdits", spec.container_edits)
    for device in spec.devices:
        if not _NAME.fullmatch(device.name) or device.name in names:
            raise InvalidArgument(f"{path}: devices: {quote(device.name)} is no name, or is twice")
        names.add(device.name)
        _check_edits(f"{path}: device {device.name}", device.container_edits)
    return spec


def _check_edits(where: str, edits: Edits) -> None:
    for entry in edits.env:
        if "=" not in entry.lstrip("=") or "\0" in entry:
            raise bad(f"{where}.env", f"{quote(entry)} is not NAME=value")
    for node in edits.device_nodes:
        mount_target(f"{where}.deviceNodes.path", node.path)
        if node.host_path:
            absolute_path(f"{where}.deviceNodes.hostPath", node.host_path)
        if set(node.permissions) - set("rwm"):
            raise bad(f"{where}.deviceNodes.permissions", f"{quote(node.permissions)}")
    for mount in edits.mounts:
        mount_target(f"{where}.mounts.containerPath", mount.container_path)
        if not mount.host_path:
            raise bad(f"{where}.mounts.hostPath", "is empty")
    for hook in edits.hooks:
        if hook.hook_name not in HOOKS:
            raise bad(f"{where}.hooks.hookName", f"{quote(hook.hook_name)} is no hook")
        absolute_path(f"{where}.hooks.path", hook.path)
    for gid in edits.additional_gids:
        if not 0 < gid < 2**31:
            raise bad(f"{where}.additionalGids", f"{gid} is out of range")


def catalogue(directories: Iterable[Iterable[CdiSpec]]) -> Catalogue:
    """All devices of all files, those of a later directory before those of an earlier one.

    CDI's directories are /etc/cdi and then /var/run/cdi.
    """
    devices: dict[str, tuple[CdiSpec, Device]] = {}
    conflicts: set[str] = set()
    for specs in directories:
        here: dict[str, tuple[CdiSpec, Device]] = {}
        twice: set[str] = set()
        for spec in specs:
            for device in spec.devices:
                name = f"{spec.kind}={device.name}"
                (twice.add(name) if name in here else here.setdefault(name, (spec, device)))
        # A later directory settles what was unclear in an earlier one.
        conflicts = (conflicts - set(here)) | twice
        devices |= here
    for name in conflicts:
        devices.pop(name, None)
    return Catalogue(devices, frozenset(conflicts))


def edits_for(devices: Sequence[cri_pb2.CDIDevice], known: Catalogue) -> Edits | None:
    """What a container's CDI devices add to it: each file's own edits once, then the device's.

    None where the container asks for none.

    Raises:
        InvalidArgument: a name that no file has, or that two have.
    """
    if not devices:
        return None
    parts: list[Edits] = []
    seen: list[CdiSpec] = []
    names: set[str] = set()
    for index, asked in enumerate(devices):
        field = f"CDI_devices[{index}].name"
        if asked.name in known.conflicts:
            raise bad(field, f"{quote(asked.name)} is in more than one CDI spec file")
        if asked.name not in known.devices:
            raise bad(field, f"no CDI spec file has a device {quote(asked.name)}")
        if asked.name in names:
            continue
        names.add(asked.name)
        spec, device = known.devices[asked.name]
        if not any(spec is other for other in seen):
            seen.append(spec)
            parts.append(spec.container_edits)
        parts.append(device.container_edits)
    rdt = [part.intel_rdt for part in parts if part.intel_rdt is not None]
    return Edits(
        env=tuple(entry for part in parts for entry in part.env),
        device_nodes=tuple(node for part in parts for node in part.device_nodes),
        mounts=tuple(mount for part in parts for mount in part.mounts),
        hooks=tuple(hook for part in parts for hook in part.hooks),
        intel_rdt=rdt[-1] if rdt else None,
        additional_gids=tuple(gid for part in parts for gid in part.additional_gids),
    )


def unresolved(edits: Edits) -> tuple[str, ...]:
    """Host paths of device nodes whose type and numbers the files leave to the host."""
    return tuple(node.host_path or node.path for node in edits.device_nodes if not _complete(node))


def resolve(edits: Edits, nodes: Mapping[str, base.DeviceNode]) -> Edits:
    """The edits with those nodes filled in that `unresolved` named.

    Raises:
        InvalidArgument: one of them isn't a device on this host.
    """
    result = []
    for node in edits.device_nodes:
        if _complete(node):
            result.append(node)
            continue
        path = node.host_path or node.path
        found = nodes.get(path)
        if found is None or (node.type and node.type != found.type):
            raise bad("CDI_devices", f"{quote(path)} is not such a device on this host")
        filled = msgspec.structs.replace(
            node,
            type=found.type,
            major=found.major,
            minor=found.minor,
            file_mode=found.mode if node.file_mode is None else node.file_mode,
        )
        result.append(filled)
    return msgspec.structs.replace(edits, device_nodes=tuple(result))


def _complete(node: DeviceNode) -> bool:
    return node.type == "p" or bool(node.type and (node.major or node.minor))


def apply(spec: Spec, edits: Edits) -> Spec:
    """A spec with CDI's edits in it, as a new spec; the nodes must have been resolved."""
    result = copy.deepcopy(spec)
    target, linux = result["process"], result["linux"]
    target["env"] = process.environment(target.get("env", ()), edits.env)
    if edits.additional_gids:
        groups = {*target["user"].get("additionalGids", ()), *edits.additional_gids}
        target["user"]["additionalGids"] = sorted(groups)
    for node in edits.device_nodes:
        _add_node(node, target["user"], linux)
    if edits.mounts:
        result["mounts"] = _with_mounts(result["mounts"], edits.mounts)
    for hook in edits.hooks:
        entry: dict[str, Any] = {"path": hook.path}
        entry |= {"args": list(hook.args)} if hook.args else {}
        entry |= {"env": list(hook.env)} if hook.env else {}
        entry |= {"timeout": hook.timeout} if hook.timeout is not None else {}
        result.setdefault("hooks", {}).setdefault(HOOKS[hook.hook_name], []).append(entry)
    if edits.intel_rdt is not None:
        linux["intelRdt"] = msgspec.to_builtins(edits.intel_rdt)
    return result


def _add_node(node: DeviceNode, user: Mapping[str, Any], linux: dict[str, Any]) -> None:
    made = base.DeviceNode(
        path=node.path,
        type=node.type or "c",
        major=node.major,
        minor=node.minor,
        mode=0o666 if node.file_mode is None else node.file_mode,
        # As CDI has it: who runs the container owns its devices unless the file says otherwise.
        uid=user["uid"] if node.uid is None else node.uid,
        gid=user["gid"] if node.gid is None else node.gid,
    )
    kept = [entry for entry in linux.get("devices", ()) if entry["path"] != node.path]
    linux["devices"] = [*kept, base.device_entry(made)]
    rules = base.device_rules([(made, node.permissions or "rwm")], all_allowed=False)[1:]
    linux.setdefault("resources", {}).setdefault("devices", []).extend(rules)


def _with_mounts(old: Sequence[dict[str, Any]], new: Sequence[Mount]) -> list[dict[str, Any]]:
    added: dict[str, dict[str, Any]] = {}
    for mount in new:
        target = mount_target("CDI mount", mount.container_path)
        options = list(mount.options) or ["rbind", "rprivate", "ro", "nosuid", "nodev"]
        kind = mount.type or "bind"
        if kind == "bind" and not {"bind", "rbind"} & set(options):
            options.insert(0, "rbind")
        entry = {"destination": target, "type": kind, "source": mount.host_path}
        added[target] = entry | {"options": options}
    kept = [mount for mount in old if mount["destination"] not in added]
    system = ("/proc", "/sys", "/dev")
    first = [m for m in kept if any(is_below(m["destination"], top) for top in system)]
    rest = [m for m in kept if m not in first] + list(added.values())
    return first + sorted(rest, key=lambda mount: depth(mount["destination"]))
