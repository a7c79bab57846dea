"""Capability sets: the default, all, and CRI's additions and removals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zos_cri.errors import PermissionDenied
from zos_cri.oci.fields import bad, quote
from zos_cri.oci.host import CAPABILITIES, HostFacts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from zos_cri._pb import cri_pb2

DEFAULT: Final = frozenset(
    {
        "CAP_AUDIT_WRITE",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_RAW",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SETUID",
        "CAP_SYS_CHROOT",
    }
)
"""What containers have everywhere (Docker's, containerd's): images count on it."""

_FIELD: Final = "linux.security_context.capabilities"

Sets = dict[str, list[str]]
"""OCI's process.capabilities."""


def givable(host: HostFacts, *, user_namespace: bool) -> frozenset[str]:
    """What a container here can have: our own set, or everything in a user namespace of its own."""
    if user_namespace:
        return frozenset(CAPABILITIES[: host.last_capability + 1])
    return host.capabilities


def sets(held: Iterable[str], ambient: Iterable[str] = ()) -> Sets:
    """The OCI object of a set, in the kernel's order.

    Nothing is inheritable but what is ambient: an inheritable capability would survive the
    execve of a binary with file capabilities for a user who should not have it (CVE-2022-24769).
    """
    names = _ordered(held)
    raised = _ordered(ambient)
    result = {"bounding": names, "effective": list(names), "permitted": list(names)}
    if raised:
        result["inheritable"] = raised
        result["ambient"] = list(raised)
    return result


def of_container(
    capabilities: cri_pb2.Capability,
    *,
    privileged: bool,
    user_namespace: bool,
    host: HostFacts,
) -> Sets:
    """A CRI container's sets.

    `ALL` counts first, in either list, so that single names can be taken off or put on; after
    that what is dropped wins over what is added (runtime.v1.Capability).

    Raises:
        InvalidArgument: a name that is no capability.
        PermissionDenied: one is asked for that this host doesn't have to give.
    """
    givable_here = givable(host, user_namespace=user_namespace)
    if privileged:
        return sets(givable_here)
    add = _names(capabilities.add_capabilities, f"{_FIELD}.add_capabilities")
    drop = _names(capabilities.drop_capabilities, f"{_FIELD}.drop_capabilities")
    raised = _names(capabilities.add_ambient_capabilities, f"{_FIELD}.add_ambient_capabilities")
    held = set(DEFAULT)
    if "ALL" in add:
        held = set(CAPABILITIES)
    if "ALL" in drop:
        held = set()
    held &= givable_here
    ambient = (set(raised) & givable_here) if "ALL" not in raised else set(givable_here)
    for field, names in (("add_capabilities", add), ("add_ambient_capabilities", raised)):
        for name in names:
            if name != "ALL" and name not in givable_here and name not in drop:
                what = f"this host has no {name} to give to a container"
                raise PermissionDenied(f"{_FIELD}.{field}: {what}")
    held |= (set(add) - {"ALL"}) | ambient
    dropped = set(drop)
    return sets(held - dropped, ambient - dropped)


def _names(names: Sequence[str], field: str) -> list[str]:
    """Names in upper case with their `CAP_`, which CRI leaves out; ALL stays."""
    result = []
    for index, given in enumerate(names):
        name = given.upper()
        if name != "ALL":
            name = name if name.startswith("CAP_") else f"CAP_{name}"
            if name not in CAPABILITIES:
                raise bad(f"{field}[{index}]", f"no capability is named {quote(given)}")
        result.append(name)
    return result


def _ordered(names: Iterable[str]) -> list[str]:
    return sorted(names, key=CAPABILITIES.index)
