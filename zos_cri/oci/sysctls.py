"""A pod's sysctls: which belong to its namespaces, and so may be set at all."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from zos_cri.oci.fields import bad, quote, text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zos_cri.oci.namespaces import PodPlan

_FIELD: Final = "linux.sysctls"
_NAME: Final = re.compile(r"[A-Za-z0-9_-]+([./][A-Za-z0-9_:@-]+)+")
_MAX_VALUE: Final = 4095
"""proc(5): the kernel takes at most a page in one write."""

_IPC: Final = frozenset(
    (
        "kernel.auto_msgmni",
        "kernel.msg_next_id",
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.sem_next_id",
        "kernel.shm_next_id",
        "kernel.shm_rmid_forced",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
    )
)
_UTS: Final = frozenset(("kernel.domainname",))
"""The host name is a uts sysctl too, but a pod has its own field for it."""

SAFE: Final = frozenset(
    (
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.tcp_wmem",
    )
)
"""What Kubernetes calls safe; it refuses the others itself unless its administrator allows them."""

DEFAULTS: Final[Mapping[str, str]] = {
    # A pod's ports are its own: no capability is needed to bind to those below 1024.
    "net.ipv4.ip_unprivileged_port_start": "0",
    # ping without a raw socket, for every group.
    "net.ipv4.ping_group_range": "0 2147483647",
}


def of_pod(
    given: Mapping[str, str], pod: PodPlan, defaults: Mapping[str, str] = DEFAULTS
) -> dict[str, str]:
    """A pod's sysctls by their names with dots, the defaults below them where they can be.

    `/` separates as well as `.`, and where it is the first separator, dots belong to the names:
    `net/ipv4/conf/eth0.1/forwarding` (sysctl.d(5)).

    Raises:
        InvalidArgument: one that belongs to no namespace, or to one that is the host's here; or
            a name or value that the kernel can't take.
    """
    result: dict[str, str] = {}
    if not pod.host_network:
        result |= defaults
        if pod.user_namespace:
            # The range has to be mapped, and this one isn't.
            result.pop("net.ipv4.ping_group_range", None)
    for name, value in given.items():
        field = f"{_FIELD}[{quote(name)}]"
        if not _NAME.fullmatch(name):
            raise bad(field, "is no sysctl's name")
        key = _dotted(name)
        namespace = _namespace(key)
        if not namespace:
            raise bad(field, "is the whole host's, and belongs to no namespace of a pod")
        if _hosts(namespace, pod):
            raise bad(field, f"belongs to the {namespace} namespace, and this pod has the host's")
        if len(text(field, value)) > _MAX_VALUE:
            raise bad(field, f"has a value longer than {_MAX_VALUE} characters")
        result[key] = value
    return result


def _dotted(name: str) -> str:
    first = min((name.index(mark) for mark in "./" if mark in name), default=0)
    if name[first] == ".":
        return name
    return name.translate(str.maketrans("./", "/."))


def _namespace(name: str) -> str:
    if name.startswith("net."):
        return "network"
    if name in _IPC or name.startswith("fs.mqueue."):
        return "ipc"
    return "uts" if name in _UTS else ""


def _hosts(namespace: str, pod: PodPlan) -> bool:
    return pod.host_ipc if namespace == "ipc" else pod.host_network
