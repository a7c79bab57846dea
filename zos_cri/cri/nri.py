"""NRI: plugins are told of pods' and containers' lives, and change containers.

One method for each event; where nobody wants to be told of it, all it does is to note how far the
pod or container has come. That is what tells a plugin that joins what there is, and keeps an event
from being told twice.
"""

from __future__ import annotations

import enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from zos_cri._pb import cri_pb2, nri_pb2
from zos_cri._pb import nri_pb2 as pb
from zos_cri.cri import facts
from zos_cri.cri.limits import NOTHING
from zos_cri.cri.views import OWNER, listed
from zos_cri.errors import Error, InvalidArgument, one_line
from zos_cri.linux import blocking
from zos_cri.log import get_log
from zos_cri.module.types import ContainerEventKind
from zos_cri.nri import adjust, events, limits
from zos_cri.oci.resources import merge_reported
from zos_cri.shim import bundle
from zos_cri.store.db import Record
from zos_cri.store.lifecycle import ContainerState, SandboxState
from zos_cri.store.model import SandboxStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from google.protobuf.message import Message

    from zos_cri.cri.cdi import CdiSpecs
    from zos_cri.cri.limits import Limits
    from zos_cri.cri.nri_views import NriViews
    from zos_cri.module.containers import Containers
    from zos_cri.module.types import ContainerNotice, ContainerRecord
    from zos_cri.nri.plugins import Plugins
    from zos_cri.oci.container import HandlerSettings
    from zos_cri.oci.host import HostFacts, Spec
    from zos_cri.store.db import Table
    from zos_cri.store.model import SandboxMeta

    PodRecord = Record[SandboxMeta, SandboxStatus]

_log = get_log(__name__)

PATH_TIMEOUT: Final = 20.0  # for a look at a path that a plugin names


class Stage(enum.Enum):
    """How far a pod or container has come, as plugins know it."""

    CREATED = enum.auto()
    RUNNING = enum.auto()
    STOPPED = enum.auto()


_STAGES: Final[Mapping[ContainerState, Stage]] = {
    ContainerState.CREATED: Stage.CREATED,
    ContainerState.STARTING: Stage.RUNNING,
    ContainerState.RUNNING: Stage.RUNNING,
    ContainerState.UNKNOWN: Stage.RUNNING,
    ContainerState.EXITED: Stage.STOPPED,
}
_ALIVE: Final = frozenset((Stage.CREATED, Stage.RUNNING))


class New(NamedTuple):
    """A container that is being made."""

    id: str
    pod: SandboxMeta
    config: cri_pb2.ContainerConfig
    image_id: str
    spec: Spec


class Adjusted(NamedTuple):
    """What plugins have made of it.

    Attributes:
        resources: runtime.v1.LinuxContainerResources where they changed limits, else empty.
    """

    spec: Spec
    resources: bytes = b""


class Nri:
    """Tells plugins, and does what they want. Also `nri.plugins.Runtime`."""

    plugins: Plugins  # set once, right after both are made: they need each other

    def __init__(
        self,
        *,
        containers: Containers,
        pods: Table[SandboxMeta, SandboxStatus],
        views: NriViews,
        limits: Limits,
        cdi: CdiSpecs,
        handlers: Mapping[str, HandlerSettings],
        host: HostFacts,
    ) -> None:
        self._containers = containers
        self._pods = pods
        self._views = views
        self._limits = limits
        self._cdi = cdi
        self._handlers = handlers
        self._host = host
        self._stages: dict[str, Stage] = {}
        self._making: dict[str, New] = {}
        containers.subscribe(self._noticed)

    # ---- pods

    async def run_pod(self, meta: SandboxMeta, ips: Sequence[str]) -> None:
        """A pod is complete but for being said to be ready.

        Raises:
            Error: a plugin refuses.
        """
        self._stages[meta.id] = Stage.RUNNING
        if not self.plugins.wants(events.RUN_POD):
            return
        make = partial(self._pod_request, pb.RunPodSandboxRequest, meta, ips)
        try:
            await self.plugins.tell(events.RUN_POD, make)
        except Error:
            await self.stop_pod(meta)
            await self.remove_pod(meta)
            raise

    async def stop_pod(self, meta: SandboxMeta) -> None:
        """Its containers have ended; its network is there still."""
        if self._stages.get(meta.id) not in _ALIVE:
            return
        self._stages[meta.id] = Stage.STOPPED
        await self._tell(
            events.STOP_POD, partial(self._pod_request, pb.StopPodSandboxRequest, meta)
        )

    async def remove_pod(self, meta: SandboxMeta) -> None:
        """All of it is gone but its record."""
        if meta.id not in self._stages:
            return
        await self.stop_pod(meta)
        del self._stages[meta.id]
        await self._tell(
            events.REMOVE_POD, partial(self._pod_request, pb.RemovePodSandboxRequest, meta)
        )

    async def update_pod(self, meta: SandboxMeta, given: Mapping[str, Any]) -> None:
        """Its overhead and resources are about to be changed.

        Raises:
            Error: a plugin refuses.
        """
        if not self.plugins.wants(events.UPDATE_POD):
            return

        async def make() -> Message:
            request = pb.UpdatePodSandboxRequest(pod=self._pod(meta))
            for name, target in (
                ("overhead", request.overhead_linux_resources),
                ("resources", request.linux_resources),
            ):
                if name in given:
                    target.CopyFrom(limits.from_cri(given[name]))
            return request

        await self.plugins.tell(events.UPDATE_POD, make)

    async def pod_updated(self, meta: SandboxMeta) -> None:
        """They have been changed."""
        make = partial(self._pod_request, pb.PostUpdatePodSandboxRequest, meta)
        await self._tell(events.POD_UPDATED, make)

    async def _pod_request(
        self, kind: Callable[..., Message], meta: SandboxMeta, ips: Sequence[str] | None = None
    ) -> Message:
        return kind(pod=self._pod(meta, ips))

    def _pod(self, meta: SandboxMeta, ips: Sequence[str] | None = None) -> pb.PodSandbox:
        record = self._pods.get(meta.id)
        return self._views.pod(record or Record(meta, SandboxStatus()), ips)

    # ---- containers

    async def create(self, new: New) -> Adjusted:
        """A container is about to be made.

        Raises:
            Error: a plugin refuses, two contradict each other, or what they want can't be had.
        """
        self._stages[new.id] = Stage.CREATED
        self._making[new.id] = new
        if not self.plugins.wants(events.CREATE, events.VALIDATE):
            return Adjusted(new.spec)
        request = pb.CreateContainerRequest(pod=self._pod(new.pod), container=self._new(new))
        given = await self.plugins.create(request)
        if not given.ByteSize():
            return Adjusted(new.spec)
        try:
            return await self._adjusted(new, given)
        except InvalidArgument as error:
            raise InvalidArgument(f"NRI adjustment: {error}") from error

    def _new(self, new: New) -> pb.Container:
        return self._views.new(new.id, new.pod.id, new.config, new.image_id, new.spec)

    async def _adjusted(self, new: New, given: pb.ContainerAdjustment) -> Adjusted:
        devices = [cri_pb2.CDIDevice(name=device.name) for device in given.CDI_devices]
        propagation = {
            source: await blocking.call_abandonable(
                facts.propagation_of, source, timeout=PATH_TIMEOUT, what=source
            )
            for source in adjust.sources(given)
        }
        spec = adjust.adjusted(
            new.spec,
            given,
            adjust.Facts(
                handler=self._handlers[new.pod.handler],
                host=self._host,
                edits=await self._cdi.edits(devices),
                propagation=propagation,
            ),
        )
        if not given.linux.HasField("resources"):
            return Adjusted(spec)
        changed = limits.to_cri(given.linux.resources)
        merged = merge_reported(new.config.linux.resources, changed)
        return Adjusted(spec, merged.SerializeToString())

    async def undo_create(self, id_: str) -> None:
        """It wasn't made after all."""
        new = self._making.pop(id_, None)
        stage = self._stages.pop(id_, None)
        if new is None or stage is None:
            return
        container = self._new(new)

        async def stop() -> pb.StopContainerRequest:
            return pb.StopContainerRequest(pod=self._pod(new.pod), container=container)

        async def remove() -> Message:
            return pb.RemoveContainerRequest(pod=self._pod(new.pod), container=container)

        await self._stop(stop)
        await self._tell(events.REMOVE, remove)

    async def start(self, record: ContainerRecord, pid: int) -> None:
        """Its task is there, and about to be started.

        Raises:
            Error: a plugin refuses.
        """
        self._stages[record.meta.id] = Stage.RUNNING
        if self.plugins.wants(events.START):
            make = partial(self._request, pb.StartContainerRequest, record, pid=pid)
            await self.plugins.tell(events.START, make)

    async def update(
        self, record: ContainerRecord, linux: cri_pb2.LinuxContainerResources
    ) -> pb.LinuxResources | None:
        """Its limits are about to be changed.

        Returns:
            What plugins want on top of it.

        Raises:
            Error: a plugin refuses, or two contradict each other.
        """
        if not self.plugins.wants(events.UPDATE):
            return None
        request = await self._request(pb.UpdateContainerRequest, record)
        assert isinstance(request, pb.UpdateContainerRequest)
        request.linux_resources.CopyFrom(limits.from_cri(linux))
        return await self.plugins.update(request)

    async def updated(self, record: ContainerRecord) -> None:
        """They have been changed."""
        make = partial(self._request, pb.PostUpdateContainerRequest, record)
        await self._tell(events.UPDATED, make)

    async def remove(self, record: ContainerRecord) -> None:
        """It has ended, or never ran, and is about to be removed."""
        stage = self._stages.get(record.meta.id)
        if stage is None:
            return
        if stage in _ALIVE:
            self._stages[record.meta.id] = Stage.STOPPED
            await self._stop(partial(self._stop_request, record))
        self._stages.pop(record.meta.id, None)
        make = partial(self._request, pb.RemoveContainerRequest, record)
        await self._tell(events.REMOVE, make)

    def _noticed(self, notice: ContainerNotice) -> None:
        """What has happened is told in its order, and waits for nobody."""
        record = notice.record
        if record.meta.owner != OWNER:
            return
        if notice.kind is ContainerEventKind.CREATED:
            self._making.pop(record.meta.id, None)
            self._later(events.CREATED, pb.PostCreateContainerRequest, record)
        elif notice.kind is ContainerEventKind.STARTED:
            self._later(events.STARTED, pb.PostStartContainerRequest, record)
        elif notice.kind is ContainerEventKind.STOPPED:
            self._ended(record)

    def _ended(self, record: ContainerRecord) -> None:
        if self._stages.get(record.meta.id) not in _ALIVE:
            return
        self._stages[record.meta.id] = Stage.STOPPED
        if self.plugins.wants(events.STOP):
            self._containers.later(self._stop(partial(self._stop_request, record)))

    def _later(
        self, rpc: events.Rpc, kind: Callable[..., Message], record: ContainerRecord
    ) -> None:
        if self.plugins.wants(rpc):
            self._containers.later(self._tell(rpc, partial(self._request, kind, record)))

    async def _stop_request(self, record: ContainerRecord) -> pb.StopContainerRequest:
        request = await self._request(pb.StopContainerRequest, record)
        assert isinstance(request, pb.StopContainerRequest)
        return request

    async def _request(
        self, kind: Callable[..., Message], record: ContainerRecord, *, pid: int = 0
    ) -> Message:
        pod = self._pods.get(record.meta.ns)
        spec = await blocking.call(_spec, record.meta.bundle)
        return kind(
            pod=self._views.pod(pod) if pod is not None else pb.PodSandbox(id=record.meta.ns),
            container=self._views.container(record, spec, pid=pid),
        )

    # ---- what only is to be told

    async def _tell(self, rpc: events.Rpc, make: Callable[[], Any]) -> None:
        """Plugins can't refuse it: that one fails is only said."""
        if not self.plugins.wants(rpc):
            return
        try:
            await self.plugins.tell(rpc, make)
        except Error as error:
            _log.error("NRI plugin failed", request=rpc.name, error=one_line(error))

    async def _stop(self, make: Callable[[], Any]) -> None:
        if not self.plugins.wants(events.STOP):
            return
        try:
            await self.plugins.stop(make)
        except Error as error:
            _log.error("NRI plugin failed", request=events.STOP.name, error=one_line(error))

    # ---- nri.plugins.Runtime

    async def snapshot(self) -> tuple[list[pb.PodSandbox], list[pb.Container]]:
        """All pods, and all containers that haven't ended, those being made among them."""
        pods = [record for record in self._pods if self._there(record)]
        for pod in pods:
            ready = pod.status.state is SandboxState.READY
            self._stages.setdefault(pod.meta.id, Stage.RUNNING if ready else Stage.STOPPED)
        records = [r for r in self._containers if listed(r) and r.status.state in _STAGES]
        for record in records:
            self._stages.setdefault(record.meta.id, _STAGES[record.status.state])
        alive = [record for record in records if self._stages[record.meta.id] in _ALIVE]
        specs = await blocking.call(_specs, [record.meta.bundle for record in alive])
        found = [
            self._views.container(record, spec) for record, spec in zip(alive, specs, strict=True)
        ]
        return list(map(self._views.pod, pods)), found + list(map(self._new, self._making.values()))

    def _there(self, record: PodRecord) -> bool:
        state = record.status.state
        if state is SandboxState.CREATING:
            return record.meta.id in self._stages
        return state is not SandboxState.REMOVING

    async def change(
        self,
        updates: Iterable[nri_pb2.ContainerUpdate],
        evictions: Iterable[nri_pb2.ContainerEviction],
    ) -> list[nri_pb2.ContainerUpdate]:
        """Updates and stops containers. Those that are gone are passed over."""
        failed = []
        for update in updates:
            record = self._containers.get(update.container_id)
            if record is None or not listed(record) or not update.linux.HasField("resources"):
                continue
            try:
                await self._limits.update(record, NOTHING, update.linux.resources)
            except (Error, OSError) as error:
                _log.warning(
                    "container not updated for an NRI plugin",
                    container=update.container_id,
                    error=one_line(error),
                )
                if not update.ignore_failure:
                    failed.append(update)
        for eviction in evictions:
            await self._evict(eviction)
        return failed

    async def _evict(self, eviction: nri_pb2.ContainerEviction) -> None:
        record = self._containers.get(eviction.container_id)
        if record is None or not listed(record):
            return
        why = " ".join(eviction.reason.split())[:200]
        _log.warning("container evicted by an NRI plugin", container=record.meta.id, reason=why)
        try:
            await self._containers.stop(record.meta.id, timeout=0)
        except Error as error:
            _log.error("container not evicted", container=record.meta.id, error=one_line(error))


def _spec(directory: str) -> Spec:
    """A container's spec; nothing where its bundle is gone."""
    try:
        return bundle.read_config(Path(directory))
    except (Error, OSError) as error:
        _log.warning("no spec for NRI plugins", bundle=directory, error=one_line(error))
        return {}


def _specs(directories: Sequence[str]) -> list[Spec]:
    return [_spec(directory) for directory in directories]
