"""Records as CRI's messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from zos_cri._pb import cri_pb2 as pb
from zos_cri.cri.kept import Kept
from zos_cri.cri.pods import namespace_options
from zos_cri.store.lifecycle import ContainerState, SandboxState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zos_cri.module.types import ContainerRecord
    from zos_cri.store.db import Record
    from zos_cri.store.model import SandboxMeta, SandboxStatus

    _Record: TypeAlias = ContainerRecord | Record[SandboxMeta, SandboxStatus]

OWNER: Final = "cri"

_CONTAINER_STATES: Final = {
    ContainerState.CREATED: pb.CONTAINER_CREATED,
    ContainerState.STARTING: pb.CONTAINER_CREATED,
    ContainerState.RUNNING: pb.CONTAINER_RUNNING,
    ContainerState.EXITED: pb.CONTAINER_EXITED,
    ContainerState.UNKNOWN: pb.CONTAINER_UNKNOWN,
    ContainerState.REMOVING: pb.CONTAINER_EXITED,
}


class CriContainer(msgspec.Struct, frozen=True, kw_only=True):
    """What CRI keeps of a container beside the module's metadata (`ContainerMeta.extra`).

    Attributes:
        config: runtime.v1.ContainerConfig.
        image_id: the image's id.
        image_ref: the image as the caller named it.
        log_path: absolute, "" for none.
        user: runtime.v1.ContainerUser, as resolved in the image.
        stop_signal: runtime.v1.Signal's number.
    """

    config: bytes
    image_id: str
    image_ref: str
    log_path: str = ""
    user: bytes = b""
    stop_signal: int = 0


class Views:
    """Makes CRI's messages; parses each container's and sandbox's configuration once."""

    def __init__(self) -> None:
        self._containers: dict[str, tuple[CriContainer, pb.ContainerConfig]] = {}
        self._sandboxes: dict[str, pb.PodSandboxConfig] = {}
        # Each is field 1 of the answers that hold it.
        self.containers = Kept(self.container, 1)
        self.statuses = Kept(self.container_status, 1)
        self.sandboxes = Kept(self.sandbox, 1)
        self.sandbox_statuses = Kept(self.sandbox_status, 1)

    def forget(self, id_: str) -> None:
        """Drops what is held for a container or sandbox that is gone."""
        self._containers.pop(id_, None)
        self._sandboxes.pop(id_, None)
        for kept in (self.containers, self.statuses, self.sandboxes, self.sandbox_statuses):
            kept.forget(id_)

    def follow(self, before: _Record | None, after: _Record | None) -> None:
        """Drops what is held as soon as a record is gone, however it went: see `Table.watch`."""
        if before is not None and after is None:
            self.forget(before.meta.id)

    # ---- containers

    def parts(self, record: ContainerRecord) -> tuple[CriContainer, pb.ContainerConfig]:
        """What CRI keeps of a container, decoded. Not to be changed."""
        parts = self._containers.get(record.meta.id)
        if parts is None:
            extra = msgspec.msgpack.decode(record.meta.extra, type=CriContainer)
            parts = extra, pb.ContainerConfig.FromString(extra.config)
            self._containers[record.meta.id] = parts
        return parts

    def container(self, record: ContainerRecord) -> pb.Container:
        """One entry of ListContainers."""
        extra, config = self.parts(record)
        return pb.Container(
            id=record.meta.id,
            pod_sandbox_id=record.meta.ns,
            metadata=config.metadata,
            image=config.image,
            image_ref=extra.image_id,
            image_id=extra.image_id,
            state=_CONTAINER_STATES[record.status.state],
            created_at=record.meta.created_at,
            labels=config.labels,
            annotations=config.annotations,
        )

    def container_status(self, record: ContainerRecord) -> pb.ContainerStatus:
        """The status of ContainerStatus."""
        extra, config = self.parts(record)
        meta, status = record
        return pb.ContainerStatus(
            id=meta.id,
            metadata=config.metadata,
            state=_CONTAINER_STATES[status.state],
            created_at=meta.created_at,
            started_at=status.started_at,
            finished_at=status.finished_at,
            exit_code=status.exit_code,
            image=pb.ImageSpec(
                image=extra.image_ref,
                user_specified_image=config.image.user_specified_image,
                annotations=config.image.annotations,
                runtime_handler=config.image.runtime_handler,
            ),
            image_ref=extra.image_id,
            image_id=extra.image_id,
            reason=status.reason,
            message=status.message,
            labels=config.labels,
            annotations=config.annotations,
            mounts=config.mounts,
            log_path=extra.log_path,
            resources=pb.ContainerResources(linux=self.resources(record)),
            user=pb.ContainerUser.FromString(extra.user),
            stop_signal=pb.Signal.ValueType(extra.stop_signal),
        )

    def resources(self, record: ContainerRecord) -> pb.LinuxContainerResources:
        """The limits in force: the last update's, else those it was created with."""
        if record.status.resources:
            return pb.LinuxContainerResources.FromString(record.status.resources)
        return self.parts(record)[1].linux.resources

    # ---- sandboxes

    def config(self, meta: SandboxMeta) -> pb.PodSandboxConfig:
        """A sandbox's configuration. Not to be changed."""
        config = self._sandboxes.get(meta.id)
        if config is None:
            config = self._sandboxes[meta.id] = pb.PodSandboxConfig.FromString(meta.config)
        return config

    def pod_config(self, record: Record[SandboxMeta, SandboxStatus]) -> pb.PodSandboxConfig:
        """A sandbox's configuration with the resources that are in force now."""
        config = pb.PodSandboxConfig()
        config.CopyFrom(self.config(record.meta))
        for field in ("overhead", "resources"):
            if updated := getattr(record.status, field):
                getattr(config.linux, field).ParseFromString(updated)
        return config

    def sandbox(self, record: Record[SandboxMeta, SandboxStatus]) -> pb.PodSandbox:
        """One entry of ListPodSandbox."""
        config = self.config(record.meta)
        return pb.PodSandbox(
            id=record.meta.id,
            metadata=config.metadata,
            state=sandbox_state(record.status),
            created_at=record.meta.created_at,
            labels=config.labels,
            annotations=config.annotations,
            runtime_handler=record.meta.handler,
        )

    def sandbox_status(self, record: Record[SandboxMeta, SandboxStatus]) -> pb.PodSandboxStatus:
        """The status of PodSandboxStatus."""
        config = self.config(record.meta)
        first, *others = record.status.ips or ("",)
        return pb.PodSandboxStatus(
            id=record.meta.id,
            metadata=config.metadata,
            state=sandbox_state(record.status),
            created_at=record.meta.created_at,
            network=pb.PodSandboxNetworkStatus(
                ip=first, additional_ips=[pb.PodIP(ip=address) for address in others]
            ),
            linux=pb.LinuxPodSandboxStatus(
                namespaces=pb.Namespace(options=namespace_options(config))
            ),
            labels=config.labels,
            annotations=config.annotations,
            runtime_handler=record.meta.handler,
        )


def sandbox_state(status: SandboxStatus) -> pb.PodSandboxState.ValueType:
    ready = status.state is SandboxState.READY
    return pb.SANDBOX_READY if ready else pb.SANDBOX_NOTREADY


def container_state(record: ContainerRecord) -> pb.ContainerState.ValueType:
    return _CONTAINER_STATES[record.status.state]


def listed(record: ContainerRecord) -> bool:
    """Whether CRI knows of a container: one of its own whose creation is complete."""
    return record.meta.owner == OWNER and record.status.state is not ContainerState.CREATING


def has_labels(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether all of a selector's labels are there (CRI: the requirements are ANDed)."""
    return all(labels.get(key) == value for key, value in selector.items())
