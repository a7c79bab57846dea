"""A pod's user namespace: who may have one, and what it maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri.errors import InvalidArgument
from zos_cri.linux.idmap import IdMappings
from zos_cri.linux.namespaces import IdMap
from zos_cri.oci.namespaces import pod_plan

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from zos_cri._pb import cri_pb2 as pb
    from zos_cri.oci.namespaces import IdMapping, PodPlan

HOST_ROOT = (0, 0)


def check(plan: PodPlan, handler: str, able: Container[str]) -> None:
    """Refuses a user namespace where the pod's handler can't give its containers one.

    Args:
        able: the handlers that can.

    Raises:
        InvalidArgument: it can't. An old runtime would ignore what it doesn't know, and the
            container's root would be the host's.
    """
    if plan.user_namespace and handler not in able:
        raise InvalidArgument(
            "linux.security_context.namespace_options.userns_options: the runtime handler"
            f' "{handler}" has no user namespaces: its shim and runtime must know id-mapped mounts'
            " (containerd 2.0, runc 1.2 or later), and the kernel overlays of them (Linux 5.19)"
        )


def of_pod(config: pb.PodSandboxConfig) -> IdMappings | None:
    """The mappings of a pod's user namespace; None for a pod with the host's.

    Raises:
        InvalidArgument: see `namespaces.pod_plan`.
    """
    plan = pod_plan(config)
    if not plan.user_namespace:
        return None
    return IdMappings(uids=_maps(plan.uids), gids=_maps(plan.gids))


def root_of(mappings: IdMappings | None) -> tuple[int, int]:
    """The uid and gid on the host of root in a pod."""
    return mappings.root if mappings is not None else HOST_ROOT


def _maps(mappings: Iterable[IdMapping]) -> tuple[IdMap, ...]:
    return tuple(IdMap(m.container_id, m.host_id, m.length) for m in mappings)
