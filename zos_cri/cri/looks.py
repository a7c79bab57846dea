"""Looks at what the pod names on the host, where a file system may not answer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from zos_cri.cri import facts
from zos_cri.linux import blocking, selinux
from zos_cri.oci import fields, mounts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from zos_cri._pb import cri_pb2 as pb
    from zos_cri.oci.devices import DeviceFacts

T = TypeVar("T")

PATH_TIMEOUT: Final = 20.0  # seconds; a busy NFS server takes long
RELABEL_TIMEOUT: Final = 120.0  # a volume of a million files takes about ten seconds


async def look(fn: Callable[[], T], path: str) -> T:
    """What `fn` finds at a path.

    Raises:
        DeadlineExceeded: its file system doesn't answer; the message names the path.
    """
    return await blocking.call_abandonable(fn, timeout=PATH_TIMEOUT, what=path)


async def mount_facts(config: pb.ContainerConfig) -> dict[int, mounts.MountFacts]:
    """The sources of all mounts that are no images, by the mount's index.

    One thread looks at them all: another one for each costs more than a look.

    Raises:
        InvalidArgument: one isn't an absolute path, or isn't there and can't be made.
        DeadlineExceeded: a file system doesn't answer; the message names the path.
    """
    wanted = {
        index: mount for index, mount in enumerate(config.mounts) if not mount.HasField("image")
    }
    for index, mount in wanted.items():
        fields.absolute_path(f"mounts[{index}].host_path", mount.host_path)
    if not wanted:
        return {}
    at = next(iter(wanted.values())).host_path  # also where no thread is to be had

    def look_at_all() -> dict[int, mounts.MountFacts]:
        nonlocal at
        found = {}
        for index, mount in wanted.items():
            at = mount.host_path
            found[index] = facts.mount_facts(f"mounts[{index}].host_path", mount)
        return found

    return await blocking.call_abandonable(look_at_all, timeout=PATH_TIMEOUT, what=lambda: at)


async def device_facts(config: pb.ContainerConfig) -> tuple[DeviceFacts, ...]:
    """All devices that a container is to have.

    Raises:
        InvalidArgument: a path isn't absolute.
    """
    result = []
    for index, device in enumerate(config.devices):
        fields.absolute_path(f"devices[{index}].host_path", device.host_path)
        result.append(await look(partial(facts.device_facts, device), device.host_path))
    return tuple(result)


async def relabel(
    spec: Mapping[str, Any], config: pb.ContainerConfig, found: Sequence[mounts.MountFacts]
) -> None:
    """Gives volumes that ask for it the SELinux label of the container's mounts."""
    label = spec["linux"].get("mountLabel")
    for path in mounts.to_relabel(config.mounts, found) if label else ():
        await blocking.call_abandonable(
            selinux.relabel, path, label, timeout=RELABEL_TIMEOUT, what=path
        )
