"""What the sampler samples: CRI's running containers and ready pods."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from zos_cri._pb import cri_pb2 as pb
from zos_cri.cri.views import listed
from zos_cri.module.types import ContainerEventKind, ContainerNotice, ContainerRecord
from zos_cri.stats.model import ContainerTarget, Limits, PodTarget
from zos_cri.store.lifecycle import ContainerState, SandboxState

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable

    from zos_cri.cri.sandboxes import Sandboxes
    from zos_cri.cri.shim_stats import ShimStats
    from zos_cri.cri.views import Views
    from zos_cri.module.containers import Containers
    from zos_cri.stats.sampler import Sampler
    from zos_cri.store.db import Record
    from zos_cri.store.model import SandboxMeta, SandboxStatus

    SandboxRecord = Record[SandboxMeta, SandboxStatus]

R = TypeVar("R")
T = TypeVar("T")


class Statistics(NamedTuple):
    """The sampler, what it samples, and what it is told."""

    sampler: Sampler
    targets: CriTargets
    told: ShimStats


class CriTargets:
    """`zos_cri.stats.model.Targets` of CRI; each record is turned into a target once."""

    def __init__(self, containers: Containers, sandboxes: Sandboxes, views: Views) -> None:
        self._containers = containers
        self._sandboxes = sandboxes
        self._views = views
        self._known: _Made[ContainerRecord, ContainerTarget] = _Made(self._target)
        self._known_pods: _Made[SandboxRecord, PodTarget] = _Made(self._pod_target)

    def containers(self) -> list[ContainerTarget]:
        running = {r.meta.id: r for r in self._containers if runs(r)}
        self._known.keep(running)
        return [self._known.of(id_, record) for id_, record in running.items()]

    def container(self, id_: str) -> ContainerTarget | None:
        record = self._containers.get(id_)
        return self._known.of(id_, record) if record is not None and runs(record) else None

    def pods(self) -> list[PodTarget]:
        ready = {
            record.meta.id: record
            for record in self._sandboxes.table
            if record.status.state is SandboxState.READY
        }
        self._known_pods.keep(ready)
        shared = Counter(record.meta.cgroup for record in ready.values())
        pods = [self._known_pods.of(id_, record) for id_, record in ready.items()]
        return [pod if shared[pod.cgroup] == 1 else _without_cgroup(pod) for pod in pods]

    def layers(self) -> dict[str, bool]:
        return {r.meta.id: runs(r) for r in self._containers if listed(r)}

    def container_attributes(self, record: ContainerRecord) -> bytes:
        """A ContainerAttributes, encoded."""
        if runs(record):
            return self._known.of(record.meta.id, record).attributes
        return self._attributes(record)

    def pod_attributes(self, record: SandboxRecord) -> bytes:
        """A PodSandboxAttributes, encoded."""
        if record.status.state is SandboxState.READY:
            return self._known_pods.of(record.meta.id, record).attributes
        return self._pod_target(record).attributes

    def _attributes(self, record: ContainerRecord) -> bytes:
        config = self._views.parts(record)[1]
        return pb.ContainerAttributes(
            id=record.meta.id,
            metadata=config.metadata,
            labels=config.labels,
            annotations=config.annotations,
        ).SerializeToString()

    def _target(self, record: ContainerRecord) -> ContainerTarget:
        meta, status = record
        extra, config = self._views.parts(record)
        sandbox = self._sandboxes.table.get(meta.ns)
        pod = self._views.config(sandbox.meta).metadata if sandbox else pb.PodSandboxMetadata()
        image = config.image.user_specified_image or extra.image_ref
        return ContainerTarget(
            id=meta.id,
            cgroup=meta.cgroup,
            pid=status.pid,
            started_at=status.started_at,
            attributes=self._attributes(record),
            labels=(pod.name, pod.namespace, config.metadata.name, meta.id, image),
            limits=limits(self._views.resources(record)),
        )

    def _pod_target(self, record: SandboxRecord) -> PodTarget:
        config = self._views.config(record.meta)
        return PodTarget(
            id=record.meta.id,
            cgroup=record.meta.cgroup if record.meta.cgroup != "/" else "",
            netns=record.meta.netns,
            attributes=pb.PodSandboxAttributes(
                id=record.meta.id,
                metadata=config.metadata,
                labels=config.labels,
                annotations=config.annotations,
            ).SerializeToString(),
            labels=(config.metadata.name, config.metadata.namespace, "", record.meta.id, ""),
        )


def runs(record: ContainerRecord) -> bool:
    """Whether it is one of CRI's and runs."""
    return listed(record) and record.status.state is ContainerState.RUNNING


def running_by_pod(containers: Iterable[ContainerRecord]) -> dict[str, list[ContainerRecord]]:
    """The running containers by their pods' ids."""
    found: dict[str, list[ContainerRecord]] = {}
    for record in containers:
        if runs(record):
            found.setdefault(record.meta.ns, []).append(record)
    return found


def follow(sampler: Sampler) -> Callable[[ContainerNotice], None]:
    """What tells the sampler of containers' starts and ends (for `Containers.subscribe`)."""

    def notice(notice: ContainerNotice) -> None:
        if notice.kind is ContainerEventKind.STARTED:
            sampler.started()
        elif notice.kind is not ContainerEventKind.CREATED:
            sampler.stopped(notice.record.meta.id)

    return notice


def limits(resources: pb.LinuxContainerResources) -> Limits:
    """The limits that metrics show."""
    protected = resources.unified.get("memory.low", "0")
    return Limits(
        cpu_period=resources.cpu_period,
        cpu_quota=resources.cpu_quota,
        cpu_shares=resources.cpu_shares,
        memory=resources.memory_limit_in_bytes,
        memory_reservation=int(protected) if protected.isdecimal() else 0,
        memory_swap=resources.memory_swap_limit_in_bytes,
    )


def _without_cgroup(pod: PodTarget) -> PodTarget:
    return PodTarget(
        id=pod.id, cgroup="", netns=pod.netns, attributes=pod.attributes, labels=pod.labels
    )


class _Made(Generic[R, T]):
    """What was made of each record, for as long as the record is the same."""

    def __init__(self, make: Callable[[R], T]) -> None:
        self._make = make
        self._made: dict[str, tuple[R, T]] = {}

    def of(self, id_: str, record: R) -> T:
        made = self._made.get(id_)
        if made is None or made[0] is not record:
            made = self._made[id_] = record, self._make(record)
        return made[1]

    def keep(self, ids: Container[str]) -> None:
        for id_ in [id_ for id_ in self._made if id_ not in ids]:
            del self._made[id_]
