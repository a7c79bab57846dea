"""What should be there, by the records: decided per state, in two tables of functions. Pure."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri.audit.model import TEMPORARY, Kind, Needs
from zos_cri.store.lifecycle import ContainerState, SandboxState
from zos_cri.store.model import ContainerMeta, ContainerStatus, SandboxMeta, SandboxStatus

if TYPE_CHECKING:
    from collections.abc import Iterable

Sandbox = tuple[SandboxMeta, SandboxStatus]
Container = tuple[ContainerMeta, ContainerStatus]

# What containers keep from their creation to their removal, whatever their state. What a start
# that was undone has made (streams, the logger's note) waits for the next one.
_KEPT: Final = (Kind.BUNDLE, Kind.LAYER, Kind.FIFO, Kind.LOG)
_CHANGING: Final = (
    ContainerState.CREATING,
    ContainerState.STARTING,
    ContainerState.UNKNOWN,
    ContainerState.REMOVING,
)
# Where containers' cgroups are whose caller names no parent: `zos-cri` for pods, `zos` for the
# module. They are made by the runtime on the way, and nobody else removes them.
OUR_CGROUPS: Final = ("/zos-cri", "/zos")


class Records(msgspec.Struct, frozen=True):
    """All records, as they were at one moment; `damaged` are the ids of those set aside."""

    sandboxes: tuple[Sandbox, ...] = ()
    containers: tuple[Container, ...] = ()
    damaged: tuple[str, ...] = ()

    def pids(self) -> dict[str, int]:
        """The first process of each container that runs."""
        return {meta.id: status.pid for meta, status in self.containers if status.pid}

    def cgroups(self) -> dict[str, str]:
        """Containers' cgroups, by their ids."""
        return {meta.id: meta.cgroup for meta, _ in self.containers if meta.cgroup}

    def ended(self) -> set[str]:
        """The containers that have ended."""
        return {m.id for m, status in self.containers if status.state is ContainerState.EXITED}

    def cgroup_parents(self) -> set[str]:
        """Cgroups that are pods', so that whatever is in them is."""
        return {posixpath.normpath(meta.cgroup) for meta, _ in self.sandboxes if meta.cgroup}


def needs(records: Records) -> Needs:
    """What should be there."""
    needed = Needs()
    for id_ in records.damaged:
        needed.know(id_, "damaged")
        needed.free(id_)
    pods = set()
    for sandbox, sandbox_status in records.sandboxes:
        pods.add(sandbox.id)
        needed.know(sandbox.id, sandbox_status.state)
        _sandbox(needed, sandbox, sandbox_status)
    for container, status in records.containers:
        if container.id not in pods:
            needed.know(container.id, status.state)
        _container(needed, container, status, pods)
    if any(status.state in _CHANGING for _, status in records.containers):
        needed.may(TEMPORARY, Kind.MOUNT)
    return needed


def _sandbox(needed: Needs, meta: SandboxMeta, status: SandboxStatus) -> None:
    match status.state:
        case SandboxState.READY:
            needed.must(Kind.SHIM, meta.group)
            needed.must(Kind.BUNDLE, meta.group)
            needed.must(Kind.SANDBOX, meta.id)
            if meta.netns or meta.ipcns or meta.utsns or meta.userns:
                needed.must(Kind.NAMESPACE, meta.id)
            if meta.netns:
                needed.must(Kind.NETWORK, meta.id)
            needed.may(meta.id, Kind.MOUNT, Kind.ADDRESS)
        case _ if status.released:
            pass
        case _:
            needed.free(meta.id)
            needed.free(meta.group)


def _container(
    needed: Needs, meta: ContainerMeta, status: ContainerStatus, pods: Iterable[str]
) -> None:
    alone = meta.group == meta.id and meta.id not in pods
    if status.state in _CHANGING or status.noted_exit is not None:
        needed.free(meta.id)
        if alone:
            needed.free(meta.group)
        return
    needed.may(meta.id, *_KEPT)
    if alone:
        needed.may(meta.group, Kind.SHIM, Kind.BUNDLE)
    if status.state is not ContainerState.EXITED:
        needed.must(Kind.BUNDLE, meta.id, meta.bundle)
    if status.state is ContainerState.RUNNING:
        needed.must(Kind.PROCESS, meta.id, f"pid {status.pid}")
        needed.must(Kind.SHIM, meta.group)
        if meta.cgroup:
            needed.must(Kind.CGROUP, meta.id, meta.cgroup)
        needed.may(meta.id, Kind.TASK, Kind.MOUNT, Kind.EXEC)
        if meta.stdio.stdout.startswith("/"):  # a FIFO that the logger reads
            needed.must(Kind.FIFO, meta.id, posixpath.dirname(meta.stdio.stdout))
            needed.must(Kind.LOG, meta.id)
