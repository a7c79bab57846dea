"""Devices of a container: those of its config, and all of the host's for privileged ones."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Any

import msgspec

from zos_cri.oci.base import DeviceNode, device_entry, device_rules
from zos_cri.oci.fields import absolute_path, bad, mount_target, quote

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zos_cri._pb import cri_pb2


class DeviceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a device's host path is: one node, or a directory of them."""

    path: str
    """With all symbolic links resolved."""
    nodes: tuple[DeviceNode, ...] = ()
    """With their paths on the host; empty where there is no device."""


class Devices(msgspec.Struct, frozen=True, kw_only=True):
    """OCI's linux.devices and linux.resources.devices."""

    entries: tuple[dict[str, Any], ...] = ()
    rules: tuple[dict[str, Any], ...] = ()


def plan(
    given: Sequence[cri_pb2.Device],
    facts: Sequence[DeviceFacts],
    *,
    host_devices: Sequence[DeviceNode] = (),
    all_allowed: bool = False,
    owner: tuple[int, int] = (0, 0),
) -> Devices:
    """A container's devices.

    Args:
        given: The config's.
        facts: What is known of each, in the same order.
        host_devices: All of the host's, for a privileged container.
        all_allowed: The device cgroup refuses nothing.
        owner: uid and gid of the config's devices where not 0 (the handler's setting
            device_ownership_from_security_context).

    Raises:
        InvalidArgument: the path is no device, or the permissions aren't of r, w and m.
    """
    if len(given) != len(facts):
        raise ValueError(f"{len(given)} devices, but facts of {len(facts)}")
    nodes: dict[str, tuple[DeviceNode, str]] = {node.path: (node, "rwm") for node in host_devices}
    for index, (device, fact) in enumerate(zip(given, facts, strict=True)):
        field = f"devices[{index}]"
        access = _access(field, device.permissions)
        host_path = absolute_path(f"{field}.host_path", device.host_path)
        target = device.container_path or host_path
        target = mount_target(f"{field}.container_path", target, dotdot=True)
        if not fact.nodes:
            raise bad(f"{field}.host_path", f"{quote(device.host_path)} is no device on this host")
        for node in fact.nodes:
            inside = posixpath.normpath(target + node.path.removeprefix(fact.path))
            renamed = msgspec.structs.replace(
                node, path=inside, uid=owner[0] or node.uid, gid=owner[1] or node.gid
            )
            nodes[inside] = (renamed, access)
    return Devices(
        entries=tuple(device_entry(node) for node, _ in nodes.values()),
        rules=tuple(device_rules(nodes.values(), all_allowed=all_allowed)),
    )


def _access(field: str, permissions: str) -> str:
    if not permissions:
        return "rwm"
    if set(permissions) - set("rwm"):
        raise bad(f"{field}.permissions", f"{quote(permissions)} is not of r, w and m")
    return "".join(letter for letter in "rwm" if letter in permissions)
