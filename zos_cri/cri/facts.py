"""What a container's spec depends on and only the host can tell: mount sources, devices, profiles.

All of these look at paths that a user names, which may be on a dead network file system: call them
by `blocking.call_abandonable`.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from zos_cri.errors import InvalidArgument
from zos_cri.linux.mount import mount_of
from zos_cri.oci.base import DeviceNode
from zos_cri.oci.devices import DeviceFacts
from zos_cri.oci.fields import quote
from zos_cri.oci.mounts import PRIVATE, MountFacts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zos_cri._pb import cri_pb2 as pb
    from zos_cri.linux.mount import MountInfo

Propagation = Literal["private", "slave", "shared", "unbindable"]

PROFILE_LIMIT: Final = 4 << 20  # bytes of a seccomp profile; the largest in use have 20 KiB
MAX_HOST_DEVICES: Final = 16384  # nodes below /dev that a privileged container gets
# What a container has of its own below /dev.
_OWN_DEVICES: Final = ("/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console", "/dev/fd")


def mount_facts(field: str, mount: pb.Mount) -> MountFacts:
    """Where a mount's source really is, and how its mount propagates.

    A source that doesn't exist is made as a directory, as containerd and CRI-O do: a hostPath
    volume without a type relies on it.

    Raises:
        InvalidArgument: it can't be made.
    """
    source = os.path.realpath(mount.host_path) if mount.host_path else ""
    if not source:
        return MountFacts(source=source, exists=False)
    if not os.path.lexists(source):
        try:
            _make_directories(source)
        except OSError as error:
            raise InvalidArgument(
                f"{field}: {quote(mount.host_path)} does not exist, and can't be made:"
                f" {error.strerror}"
            ) from error
    if mount.propagation == PRIVATE:
        return MountFacts(source=source)
    info = mount_of(source)
    return MountFacts(source=source, propagation=_propagation(info), mount_point=info.target)


def propagation_of(path: str) -> Propagation:
    """How the mount that a path is on propagates."""
    return _propagation(mount_of(os.path.realpath(path)))


def _make_directories(path: str) -> None:
    """As os.makedirs, which recurses: a path has up to 2047 names."""
    missing = []
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o755)


def _propagation(info: MountInfo) -> Propagation:
    if info.shared is not None:
        return "shared"
    return "private" if info.master is None else "slave"


def device_facts(device: pb.Device) -> DeviceFacts:
    """The node that a device's host path is, or all nodes in that directory."""
    path = os.path.realpath(device.host_path)
    if os.path.isdir(path):
        return DeviceFacts(path=path, nodes=tuple(_nodes(path)))
    node = _node(path)
    return DeviceFacts(path=path, nodes=(node,) if node is not None else ())


def host_devices() -> tuple[DeviceNode, ...]:
    """The host's devices, for a privileged container."""
    return tuple(_nodes("/dev"))


def device_node(path: str) -> DeviceNode | None:
    """The device node that a path leads to; None where there is none."""
    return _node(os.path.realpath(path))


def _nodes(directory: str) -> Iterator[DeviceNode]:
    count = 0
    for parent, names, files in os.walk(directory):
        names[:] = [name for name in names if f"{parent}/{name}" not in _OWN_DEVICES]
        for name in files:
            path = f"{parent}/{name}"
            node = None if path in _OWN_DEVICES else _node(path)
            if node is not None:
                count += 1
                if count > MAX_HOST_DEVICES:
                    return
                yield node


def _node(path: str) -> DeviceNode | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    if stat.S_ISCHR(found.st_mode):
        kind: Literal["c", "b"] = "c"
    elif stat.S_ISBLK(found.st_mode):
        kind = "b"
    else:
        return None
    return DeviceNode(
        path=path,
        type=kind,
        major=os.major(found.st_rdev),
        minor=os.minor(found.st_rdev),
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
    )


def seccomp_file(field: str, path: str) -> bytes:
    """A Localhost seccomp profile.

    Raises:
        InvalidArgument: it can't be read, or is no profile by its size.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(PROFILE_LIMIT + 1)
    except OSError as error:
        raise InvalidArgument(f"{field}: {quote(path)}: {error.strerror}") from error
    if len(data) > PROFILE_LIMIT:
        raise InvalidArgument(f"{field}: {quote(path)}: larger than {PROFILE_LIMIT} bytes")
    return data
