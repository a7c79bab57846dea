"""The configuration's runtime handlers and the classes of resources that containers can name.

Everything is checked here, the files that it names included: an error says which key is wrong.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from zos_cri.errors import InvalidArgument
from zos_cri.oci import base
from zos_cri.oci.host import RLIM_INFINITY
from zos_cri.shim.handler import DEFAULT_SHIM, SHIM, Handler

DEFAULT_RUNTIME: Final = "runc"
BASE_SPEC_LIMIT: Final = 4 << 20  # bytes; a whole spec with a seccomp profile has 40 KiB

_RUNC_SHIMS: Final = (DEFAULT_SHIM, "containerd-shim-runc-v2")  # a type, or programs
_SECCOMP: Final = re.compile(r"(?:(?:runtime|docker)/default|unconfined|localhost//.+)?")
# What an overlay is made of is not for options to say, nor whether it can be written.
_OWN_OPTIONS: Final = ("lowerdir", "upperdir", "workdir", "ro", "rw")
# What of a spec is an object, and which members of it are: more isn't looked at, runtimes do it.
_OBJECTS: Final = ("annotations", "hooks", "linux", "process")
_BELOW_LINUX: Final = ("resources", "seccomp", "sysctl")

Rate = Annotated[int, msgspec.Meta(ge=0)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]


class HandlerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A runtime handler: what a RuntimeClass names."""

    shim: str = DEFAULT_SHIM  # a type name or an absolute path
    # who makes the pods' sandboxes: the server, of namespaces and files; or the shim, by the
    # sandbox API
    sandboxer: Literal["podsandbox", "shim"] = "podsandbox"
    # the shim's BinaryName: a name on PATH or an absolute path; "" = runc, for the default handler
    # crun where that runs containers
    runtime: str = ""
    systemd_cgroup: bool = False
    oci_version: str = base.OCI_VERSION
    # shims kept running for pods to come; -1 = 4 for the default handler, none for others
    warm_shims: Annotated[int, msgspec.Meta(ge=-1, le=100)] = -1
    # pods that share a shim: less memory and CPU time for each, and a shim that dies takes them all
    # with it; 1 = a shim holds one pod at a time
    pods_per_shim: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    options: dict[str, Any] = {}  # more fields of containerd.runc.v1.Options
    config_path: str = ""  # of a shim that isn't runc's: its own configuration file
    config_type: str = ""  # the type URL of that file's format
    pod_annotations: tuple[str, ...] = ()  # globs of the pod's annotations that go into specs
    container_annotations: tuple[str, ...] = ()
    base_spec: str = ""  # a JSON file that each container's spec is laid over
    snapshot_options: tuple[str, ...] = ()  # more mount options of the root filesystem
    unset_seccomp_profile: str = ""  # for containers that name none; "" = unconfined
    rlimits: dict[str, tuple[int, int]] = {}  # name → soft and hard, -1 = no limit
    pids_limit: NotNegative = 0  # of each container, 0 = none
    cgroup_writable: bool = False
    privileged_without_host_devices: bool = False
    all_devices_allowed: bool = False  # to privileged containers without the host's
    device_ownership_from_security_context: bool = False
    tolerate_missing_hugetlb: bool = True

    @property
    def runtime_is_open(self) -> bool:
        """Whether nothing says what a shim of runc's is to run."""
        runcs = os.path.basename(self.shim).startswith(_RUNC_SHIMS)
        named = self.runtime or self.config_path or "binary_name" in self.options
        return runcs and not named


class BlockIoEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of a block I/O class; rates are a second's, 0 = not limited."""

    devices: tuple[str, ...] = ()  # none = the weight is for all
    weight: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    read_bps: Rate = 0
    write_bps: Rate = 0
    read_iops: Rate = 0
    write_iops: Rate = 0


def check(name: str, handler: HandlerConfig) -> None:
    """Looks for what a type can't say; `name` is the handler's.

    Raises:
        InvalidArgument: a value is impossible; the message begins with its key.
    """
    key = f"handlers.{name}"
    if "/" in handler.shim and not handler.shim.startswith("/"):
        raise InvalidArgument(f'{key}.shim: "{handler.shim}" is neither a type nor a path')
    if "/" in handler.runtime and not handler.runtime.startswith("/"):
        raise InvalidArgument(f'{key}.runtime: "{handler.runtime}" is neither a name nor a path')
    if not re.fullmatch(r"1\.\d+\.\d+(-[\w.+-]+)?", handler.oci_version):
        raise InvalidArgument(f'{key}.oci_version: "{handler.oci_version}" is no version as 1.0.2')
    for field in ("config_path", "base_spec"):
        value = getattr(handler, field)
        if value and not value.startswith("/"):
            raise InvalidArgument(f'{key}.{field}: "{value}" is not an absolute path')
    _pods_in_shims(key, handler)
    if handler.config_path and handler.options:
        raise InvalidArgument(f"{key}.options: are runc's, and don't go with config_path")
    if not _SECCOMP.fullmatch(handler.unset_seccomp_profile):
        raise InvalidArgument(
            f'{key}.unset_seccomp_profile: "{handler.unset_seccomp_profile}" is not'
            " runtime/default, unconfined or localhost/ and an absolute path"
        )
    for option in handler.snapshot_options:
        if not re.fullmatch(r"[^\s,\\]+", option) or option.partition("=")[0] in _OWN_OPTIONS:
            raise InvalidArgument(
                f'{key}.snapshot_options: "{option}" is no option that can be added'
            )
    _rlimits(key, handler)
    try:
        shim_handler(name, handler, root="/").task_options()
    except InvalidArgument as error:
        raise InvalidArgument(f"{key}.options: {str(error).partition('options: ')[2]}") from error
    base_spec(name, handler)


def _pods_in_shims(key: str, handler: HandlerConfig) -> None:
    if handler.sandboxer == SHIM and handler.warm_shims > 0:
        raise InvalidArgument(f'{key}.warm_shims: are none where sandboxer is "{SHIM}"')
    if handler.pods_per_shim > 1 and (handler.sandboxer == SHIM or handler.config_path):
        raise InvalidArgument(f"{key}.pods_per_shim: only a shim of runc's holds several pods")


def shim_handler(name: str, handler: HandlerConfig, *, root: str) -> Handler:
    """The handler in the shim layer's terms.

    Args:
        root: the OCI runtime's state directory.
    """
    return Handler(
        name=name,
        shim=handler.shim,
        runtime=handler.runtime or DEFAULT_RUNTIME,
        root=root,
        systemd_cgroup=handler.systemd_cgroup,
        options=handler.options,
        config_path=handler.config_path,
        config_type=handler.config_type,
        sandboxer=handler.sandboxer,
    )


def rlimits(name: str, handler: HandlerConfig) -> tuple[base.Rlimit, ...]:
    """The handler's rlimits in the terms of specs.

    Raises:
        InvalidArgument: no such rlimit, or soft above hard.
    """
    return _rlimits(f"handlers.{name}", handler)


def _rlimits(key: str, handler: HandlerConfig) -> tuple[base.Rlimit, ...]:
    result = []
    for kind, given in handler.rlimits.items():
        if kind not in base.RLIMITS:
            raise InvalidArgument(f'{key}.rlimits: there is no rlimit "{kind}"')
        soft, hard = (RLIM_INFINITY if value == -1 else value for value in given)
        if not 0 <= soft <= hard <= RLIM_INFINITY:
            raise InvalidArgument(
                f"{key}.rlimits.{kind}: soft {given[0]} and hard {given[1]} don't go together"
            )
        result.append(base.Rlimit(type=kind, soft=soft, hard=hard))
    return tuple(result)


def base_spec(name: str, handler: HandlerConfig) -> dict[str, Any] | None:
    """What the handler's base spec file says; None where it has none. Blocks.

    Raises:
        InvalidArgument: the file can't be read, or is no OCI spec by its form.
    """
    if not handler.base_spec:
        return None
    where = f"handlers.{name}.base_spec: {handler.base_spec}"
    try:
        with Path(handler.base_spec).open("rb") as file:
            data = file.read(BASE_SPEC_LIMIT + 1)
    except OSError as error:
        raise InvalidArgument(f"{where}: {error.strerror}") from error
    if len(data) > BASE_SPEC_LIMIT:
        raise InvalidArgument(f"{where}: larger than {BASE_SPEC_LIMIT} bytes")
    try:
        spec = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{where}: is no JSON: {error}") from error
    if not isinstance(spec, dict):
        raise InvalidArgument(f"{where}: is not an object")
    linux = spec.get("linux", {})
    places = [(member, spec.get(member, {})) for member in _OBJECTS]
    if isinstance(linux, dict):
        places += [(f"linux.{member}", linux.get(member, {})) for member in _BELOW_LINUX]
        _check_list(f"{where}: linux.devices", linux.get("devices", []), "path")
    for member, value in places:
        if not isinstance(value, dict):
            raise InvalidArgument(f"{where}: {member} is not an object")
    _check_list(f"{where}: mounts", spec.get("mounts", []), "destination")
    return spec


def _check_list(where: str, value: object, member: str) -> None:
    if not isinstance(value, list) or not all(
        isinstance(item, dict) and isinstance(item.get(member), str) for item in value
    ):
        raise InvalidArgument(f"{where} is no list of objects that have a {member}")


def block_io(name: str, entries: tuple[BlockIoEntry, ...]) -> dict[str, Any]:
    """A class as OCI's linux.resources.blockIO; looks its devices up.

    Raises:
        InvalidArgument: a weight out of range, or no such device.
    """
    key = f"blockio_classes.{name}"
    result: dict[str, Any] = {}
    for entry in entries:
        if entry.weight and entry.weight < 10:
            raise InvalidArgument(f"{key}.weight: {entry.weight} is not between 10 and 1000")
        limits = {
            "throttleReadBpsDevice": entry.read_bps,
            "throttleWriteBpsDevice": entry.write_bps,
            "throttleReadIOPSDevice": entry.read_iops,
            "throttleWriteIOPSDevice": entry.write_iops,
        }
        if not entry.devices:
            if any(limits.values()):
                raise InvalidArgument(f"{key}: rates need the devices that they are for")
            if entry.weight:
                result["weight"] = entry.weight
        for path in entry.devices:
            device = _block_device(key, path)
            if entry.weight:
                result.setdefault("weightDevice", []).append(device | {"weight": entry.weight})
            for member, rate in limits.items():
                if rate:
                    result.setdefault(member, []).append(device | {"rate": rate})
    return result


def _block_device(key: str, path: str) -> dict[str, int]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise InvalidArgument(f"{key}.devices: {path}: {error.strerror}") from error
    if not stat.S_ISBLK(found.st_mode):
        raise InvalidArgument(f"{key}.devices: {path}: is no block device")
    return {"major": os.major(found.st_rdev), "minor": os.minor(found.st_rdev)}
