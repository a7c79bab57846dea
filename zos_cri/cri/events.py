"""What GetContainerEvents tells: pods' and containers' changes, each with the pod as it was then.

A pod tells under its own id: created and started when it is ready, stopped when it no longer is,
deleted when it is gone. An event is encoded once, at the moment of the change, and each subscriber
has a ring of its own with the same bytes: one that reads slowly loses the oldest and holds up
nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from zos_cri._pb import cri_pb2 as pb
from zos_cri.cri.views import listed
from zos_cri.errors import ResourceExhausted, Unavailable
from zos_cri.log import get_log
from zos_cri.module.types import ContainerEventKind
from zos_cri.store.lifecycle import SandboxState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from zos_cri.cri.stats_targets import SandboxRecord
    from zos_cri.cri.views import Views
    from zos_cri.metrics import Metrics
    from zos_cri.module.containers import Containers
    from zos_cri.module.types import ContainerNotice, ContainerRecord
    from zos_cri.store.db import Table
    from zos_cri.store.model import SandboxMeta, SandboxStatus

_log = get_log(__name__)

# 4 s of 1,000 events each, or 110 pods that start and end 6 containers each.
RING_EVENTS: Final = 4096
# All rings hold the same bytes, so this bounds all of them together.
RING_BYTES: Final = 16 << 20
MAX_SUBSCRIBERS: Final = 256  # a kubelet and a few tools; each takes a place in every event's work

_KINDS: Final = {
    ContainerEventKind.CREATED: pb.CONTAINER_CREATED_EVENT,
    ContainerEventKind.STARTED: pb.CONTAINER_STARTED_EVENT,
    ContainerEventKind.STOPPED: pb.CONTAINER_STOPPED_EVENT,
    ContainerEventKind.DELETED: pb.CONTAINER_DELETED_EVENT,
}


# Numbers of fields, as in cri.proto.
_POD_STATUS: Final = 4
_CONTAINERS_STATUSES: Final = 5


class Subscription:
    """One subscriber's ring."""

    def __init__(self, most: int = RING_EVENTS) -> None:
        self._most = most
        self.lost = 0  # events that had to make room
        self._ring: deque[bytes] = deque()
        self._size = 0
        self._arrived = asyncio.Event()
        self._closed = False

    def put(self, event: bytes) -> int:
        """Adds an event, and drops the oldest where there is no room.

        Returns:
            How many were dropped.
        """
        self._ring.append(event)
        self._size += len(event)
        dropped = 0
        while len(self._ring) > self._most or (self._size > RING_BYTES and len(self._ring) > 1):
            self._size -= len(self._ring.popleft())
            dropped += 1
        self.lost += dropped
        self._arrived.set()
        return dropped

    def close(self) -> None:
        """Ends the stream once what is in the ring was taken."""
        self._closed = True
        self._arrived.set()

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The events in their order, without end.

        Raises:
            ResourceExhausted: events were lost. Those that were left have been given; the
                subscriber must list anew, since nobody can tell it what it has missed.
            Unavailable: the server stops.
        """
        while not self.lost:
            while self._ring and not self.lost:
                yield self._take()
            if self._closed:
                raise Unavailable("the server is stopping")
            if not self.lost:
                self._arrived.clear()
                await self._arrived.wait()
        # No more than there are now: a reader that is slow for good would never come to the end.
        lost = self.lost
        for event in tuple(self._ring):
            yield event
        raise ResourceExhausted(
            f"{lost} events were dropped, the oldest: they were not read in time; list anew and"
            " subscribe again"
        )

    def _take(self) -> bytes:
        event = self._ring.popleft()
        self._size -= len(event)
        return event


class Events:
    """Tells subscribers of every change of CRI's pods and containers."""

    def __init__(
        self,
        *,
        containers: Containers,
        pods: Table[SandboxMeta, SandboxStatus],
        views: Views,
        metrics: Metrics,
        ring: int = RING_EVENTS,
    ) -> None:
        """
        Args:
            ring: how many events are held for a subscriber that doesn't take them.
        """
        self._ring = ring
        self._containers = containers
        self._pods = pods
        self._views = views
        self._metrics = metrics
        self._subscriptions: set[Subscription] = set()
        self._last = 0  # timestamp of the latest event
        self._unborn: set[str] = set()  # pods that failed before they were told of
        self._of_pod: dict[str, dict[str, None]] = {}  # ids of containers by their ns, in order
        for record in containers:
            self._member(None, record)
        containers.table.watch(self._member)
        containers.subscribe(self._container_changed)
        pods.watch(self._pod_changed)

    # ---- subscribers

    @contextlib.contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        """A subscription to what happens from now on.

        Raises:
            ResourceExhausted: there are `MAX_SUBSCRIBERS` already.
        """
        if len(self._subscriptions) >= MAX_SUBSCRIBERS:
            raise ResourceExhausted(f"there are {MAX_SUBSCRIBERS} subscribers to events already")
        subscription = Subscription(self._ring)
        self._subscriptions.add(subscription)
        self._metrics.event_subscribers.set(len(self._subscriptions))
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            self._metrics.event_subscribers.set(len(self._subscriptions))

    def close(self) -> None:
        """Ends all streams, at shutdown."""
        for subscription in self._subscriptions:
            subscription.close()

    # ---- what is told

    def container_statuses(self, pod: str, number: int) -> bytes:
        """The statuses of a pod's containers, oldest first, as fields of that number."""
        records = map(self._containers.get, self._of_pod.get(pod, ()))
        known = [record for record in records if record is not None and listed(record)]
        return self._views.statuses.fields(known, number)

    def timestamp(self) -> int:
        """Now, in ns since the epoch, and later than every event that was told."""
        self._last = max(time.time_ns(), self._last + 1)
        return self._last

    def _container_changed(self, notice: ContainerNotice) -> None:
        if not self._subscriptions or not listed(notice.record):
            return
        pod = self._pods.get(notice.record.meta.ns)
        if pod is not None:
            self._tell(notice.record.meta.id, _KINDS[notice.kind], pod)

    def _pod_changed(self, before: SandboxRecord | None, after: SandboxRecord | None) -> None:
        old = before.status.state if before else None
        new = after.status.state if after else None
        if before is not None and after is None:
            if before.meta.id not in self._unborn:
                self._tell(before.meta.id, pb.CONTAINER_DELETED_EVENT, before)
            self._unborn.discard(before.meta.id)
            self._views.forget(before.meta.id)  # the status was made after the pod was forgotten
        elif after is None or old is new:
            return
        elif new is SandboxState.READY:
            self._tell(after.meta.id, pb.CONTAINER_CREATED_EVENT, after)
            self._tell(after.meta.id, pb.CONTAINER_STARTED_EVENT, after)
        elif old is SandboxState.CREATING:
            self._unborn.add(after.meta.id)
        elif new is SandboxState.NOT_READY:
            self._tell(after.meta.id, pb.CONTAINER_STOPPED_EVENT, after)

    def _tell(self, id_: str, kind: pb.ContainerEventType.ValueType, pod: SandboxRecord) -> None:
        if not self._subscriptions:
            return
        own = pb.ContainerEventResponse(
            container_id=id_, container_event_type=kind, created_at=self.timestamp()
        )
        event = b"".join(
            (
                own.SerializeToString(),
                self._views.sandbox_statuses.fields((pod,), _POD_STATUS),
                self.container_statuses(pod.meta.id, _CONTAINERS_STATUSES),
            )
        )
        for subscription in self._subscriptions:
            lost = subscription.put(event)
            if lost:
                self._metrics.events_lost.inc(lost)
                if subscription.lost == lost:
                    _log.warning("a subscriber to events is too slow, it loses the oldest")

    def _member(self, before: ContainerRecord | None, after: ContainerRecord | None) -> None:
        if before is None and after is not None:
            self._of_pod.setdefault(after.meta.ns, {})[after.meta.id] = None
        elif before is not None and after is None:
            members = self._of_pod[before.meta.ns]
            del members[before.meta.id]
            if not members:
                del self._of_pod[before.meta.ns]
