"""Which namespaces a pod has and a container joins, and the id mappings of user namespaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri._pb import cri_pb2
from zos_cri.errors import FailedPrecondition
from zos_cri.oci.fields import absolute_path, bad

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from zos_cri.oci.host import HostFacts

POD: Final = cri_pb2.NamespaceMode.POD
CONTAINER: Final = cri_pb2.NamespaceMode.CONTAINER
NODE: Final = cri_pb2.NamespaceMode.NODE
TARGET: Final = cri_pb2.NamespaceMode.TARGET

_OPTIONS: Final = "linux.security_context.namespace_options"
_END_OF_IDS: Final = 2**32 - 1
"""The id -1 is no one's: a mapping can't reach it."""


class IdMapping(msgspec.Struct, frozen=True, kw_only=True):
    """A range of ids: `container_id` on is `host_id` on."""

    container_id: int
    host_id: int
    length: int


class PodPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What namespaces a pod needs, by its sandbox config."""

    host_network: bool = False
    host_ipc: bool = False
    host_pid: bool = False
    shared_pid: bool = False
    """Its containers share a pid namespace, which needs an init."""
    uids: tuple[IdMapping, ...] = ()
    gids: tuple[IdMapping, ...] = ()

    @property
    def user_namespace(self) -> bool:
        """Whether the pod has a user namespace of its own."""
        return bool(self.uids)

    @property
    def pinned(self) -> tuple[str, ...]:
        """The kinds of namespace to make and pin. Who has the host's network has its host name."""
        kinds = [] if self.host_network else ["net", "uts"]
        return tuple(kinds if self.host_ipc else [*kinds, "ipc"])


class NamespacePaths(msgspec.Struct, frozen=True, kw_only=True):
    """Where a pod's namespaces are; "" for those it doesn't have."""

    network: str = ""
    ipc: str = ""
    uts: str = ""
    pid: str = ""
    """Of the pod's init, where there is one."""
    user: str = ""
    target_pid: str = ""
    """Of the container that `target_id` names."""


def pod_plan(config: cri_pb2.PodSandboxConfig) -> PodPlan:
    """A pod's namespaces.

    Raises:
        InvalidArgument: a mode that a pod can't have, or id mappings against the rules: one each
            for uids and gids, from 0 on, of the same length; no mappings in the mode NODE.
    """
    options = config.linux.security_context.namespace_options
    _check_shared(options)
    if options.pid not in (POD, CONTAINER, NODE):
        raise bad(f"{_OPTIONS}.pid", f"{_mode(options.pid)} is not POD, CONTAINER or NODE")
    uids, gids = user_mappings(options)
    for name in ("pid", "ipc"):
        if uids and getattr(options, name) == NODE:
            raise bad(f"{_OPTIONS}.{name}", "NODE does not go with a user namespace of the pod's")
    return PodPlan(
        host_network=options.network == NODE,
        host_ipc=options.ipc == NODE,
        host_pid=options.pid == NODE,
        shared_pid=options.pid == POD,
        uids=uids,
        gids=gids,
    )


def _check_shared(options: cri_pb2.NamespaceOption) -> None:
    """Refuses modes of the namespaces that are never a container's own."""
    for name in ("network", "ipc"):
        mode = getattr(options, name)
        if mode not in (POD, NODE):
            raise bad(f"{_OPTIONS}.{name}", f"{_mode(mode)} is not POD or NODE")


def user_mappings(
    options: cri_pb2.NamespaceOption,
) -> tuple[tuple[IdMapping, ...], tuple[IdMapping, ...]]:
    """The uid and gid mappings of a user namespace, both empty for the host's.

    Raises:
        InvalidArgument: see `pod_plan`.
    """
    if not options.HasField("userns_options"):
        return (), ()
    field = f"{_OPTIONS}.userns_options"
    given = options.userns_options
    if given.mode == NODE:
        if given.uids or given.gids:
            raise bad(field, "has mappings, and its mode is NODE")
        return (), ()
    if given.mode != POD:
        raise bad(f"{field}.mode", f"{_mode(given.mode)} is not POD or NODE")
    uids, gids = (
        _one_mapping(f"{field}.{name}", mappings)
        for name, mappings in (("uids", given.uids), ("gids", given.gids))
    )
    if uids.length != gids.length:
        raise bad(field, f"maps {uids.length} uids, but {gids.length} gids")
    return (uids,), (gids,)


def _one_mapping(field: str, mappings: Sequence[cri_pb2.IDMapping]) -> IdMapping:
    if len(mappings) != 1:
        raise bad(field, f"has {len(mappings)} mappings, and exactly one is supported")
    mapping = id_mappings(field, mappings)[0]
    if mapping.container_id != 0:
        raise bad(f"{field}[0].container_id", f"is {mapping.container_id}: 0 must be mapped")
    return mapping


def id_mappings(field: str, mappings: Iterable[cri_pb2.IDMapping]) -> tuple[IdMapping, ...]:
    """CRI's mappings, each within the ids that there are.

    Raises:
        InvalidArgument: an empty range, or one that goes beyond the last id.
    """
    result = []
    for index, given in enumerate(mappings):
        if not given.length:
            raise bad(f"{field}[{index}].length", "is 0")
        if max(given.host_id, given.container_id) + given.length > _END_OF_IDS:
            raise bad(f"{field}[{index}].length", f"{given.length} goes beyond the last id")
        mapping = IdMapping(
            container_id=given.container_id, host_id=given.host_id, length=given.length
        )
        result.append(mapping)
    return tuple(result)


def oci_mappings(mappings: Iterable[IdMapping]) -> list[dict[str, int]]:
    """OCI's uidMappings and gidMappings."""
    return [
        {"containerID": item.container_id, "hostID": item.host_id, "size": item.length}
        for item in mappings
    ]


def of_container(
    plan: PodPlan,
    options: cri_pb2.NamespaceOption,
    paths: NamespacePaths,
    *,
    privileged: bool,
    host: HostFacts,
) -> dict[str, str | None]:
    """A container's namespaces: kind → path to join, "" for a new one, None for the host's.

    Network, ipc, uts and user are the pod's, whatever the container's own options say; the pid
    namespace is the container's choice.

    Raises:
        InvalidArgument: a mode that isn't one, the container's user namespace isn't the pod's, it
            asks for the host's pids in a pod that doesn't have them, or for a target that isn't
            there.
        FailedPrecondition: the pod lacks a namespace that it should have.
    """
    _check_shared(options)
    if options.HasField("userns_options") and user_mappings(options) != (plan.uids, plan.gids):
        raise bad(f"{_OPTIONS}.userns_options", "is not the pod's")
    kinds: dict[str, str | None] = {
        "pid": _pid(plan, options, paths),
        "mount": "",
        "network": None if plan.host_network else _pinned("network", paths.network),
        "ipc": None if plan.host_ipc else _pinned("ipc", paths.ipc),
        "uts": None if plan.host_network else _pinned("uts", paths.uts),
        # It would hide from the container which cgroup of the host it is in; on v1, as everywhere
        # else, and for privileged containers nothing is hidden.
        "cgroup": "" if host.unified and not privileged else None,
    }
    if plan.user_namespace:
        kinds["user"] = _pinned("user", paths.user)
    return kinds


def _pid(plan: PodPlan, options: cri_pb2.NamespaceOption, paths: NamespacePaths) -> str | None:
    field = f"{_OPTIONS}.pid"
    mode = options.pid
    if mode == CONTAINER:
        return ""
    if mode == TARGET:
        if not options.target_id:
            raise bad(f"{_OPTIONS}.target_id", "is empty, and pid is TARGET")
        if not paths.target_pid:
            raise bad(f"{_OPTIONS}.target_id", "names no running container of this pod")
        return absolute_path(f"{_OPTIONS}.target_id", paths.target_pid)
    if plan.host_pid and mode in (POD, NODE):
        return None
    if mode == NODE:
        raise bad(field, "is NODE, and the pod is not in the host's pid namespace")
    if mode != POD:
        raise bad(field, f"{_mode(mode)} is no mode")
    return _pinned("pid", paths.pid)


def _pinned(kind: str, path: str) -> str:
    if not path:
        raise FailedPrecondition(f"the pod has no {kind} namespace for its containers to join")
    return path


def _mode(mode: int) -> str:
    names = cri_pb2.NamespaceMode.items()
    return next((name for name, number in names if number == mode), str(mode))
