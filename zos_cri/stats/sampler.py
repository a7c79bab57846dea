"""The background sampler: what RPCs about statistics are answered from.

A round reads every running container and every ready pod, in one worker thread and in small
portions, so that the reading of a single container that somebody waits for comes in between. One
that has been started since is read when it is asked for: a node's busiest times are the starts.
Rounds come each `interval`; an answer given from memory asks for one more, so that a client which
asks again a second later gets newer numbers (crictl fails when they are the same).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from zos_cri.errors import Error, NotFound, one_line
from zos_cri.log import get_log
from zos_cri.stats import messages
from zos_cri.stats.layers import Layers
from zos_cri.stats.metrics import Disk, pod_metrics

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence

    from zos_cri.stats.collector import Collector, ContainerReader, PodReader
    from zos_cri.stats.layers import LayerUsage
    from zos_cri.stats.metrics import Encoder
    from zos_cri.stats.model import (
        ContainerSample,
        ContainerTarget,
        PodSample,
        PodTarget,
        Targets,
    )

_log = get_log(__name__)

FRESH: Final = 1.0  # seconds; a single container's sample that is older is taken anew
ROUND_GAP: Final = 0.5  # seconds between the starts of two rounds that were asked for
PORTION: Final = 8  # containers or pods read at once: a millisecond or two
READ_TIMEOUT: Final = 5.0  # seconds; cgroup files answer in microseconds, also under load
DETAIL_KEPT: Final = 6  # intervals for which metrics are read on after somebody asked for them


Encode = Callable[["ContainerTarget", "ContainerSample"], bytes]


class Entry(Protocol):
    """What is held for a container or a pod. Changed in the worker thread only."""

    closed: bool
    failed: bool

    @property
    def name(self) -> str: ...

    def sample(self, *, detail: bool) -> None: ...

    def close(self) -> None: ...


class Told(Protocol):
    """Numbers that aren't this kernel's: a virtual machine's shim tells them."""

    def ask(self, containers: Iterable[str]) -> None:
        """Has newer ones come, of pods and of these containers; doesn't wait for them."""

    async def measured(self, id_: str) -> None:
        """Waits for the first ones of a pod or a container, where there are to be any."""

    def pod(self, id_: str) -> PodSample | None:
        """The last ones of a pod; its interfaces aren't among them."""

    def container(self, id_: str) -> ContainerSample | None:
        """The last ones of a container."""


class _Container:
    def __init__(self, target: ContainerTarget, collector: Collector, encode: Encode) -> None:
        self.target = target
        self.result: ContainerSample | None = None
        self.numbers = b""
        self.metrics = b""
        self.read_at = 0.0
        self.first: asyncio.Task[None] | None = None
        self.closed = False
        self.failed = False
        self._collector = collector
        self._encode = encode
        self._reader: ContainerReader | None = None

    @property
    def name(self) -> str:
        return f"container {self.target.id}"

    def sample(self, *, detail: bool) -> None:
        begun = time.monotonic()
        if self._reader is None:
            self._reader = self._collector.container(self.target)
        result = self._reader.read(self.target, detail=detail)
        self.numbers = messages.container_numbers(result)
        self.result = result
        self.read_at = begun
        if detail:
            self.metrics = self._encode(self.target, result)

    def close(self) -> None:
        self.closed = True
        if self._reader is not None:
            self._reader.close()


class _Pod:
    def __init__(self, target: PodTarget, collector: Collector) -> None:
        self.target = target
        self.result: PodSample | None = None
        self.metrics = b""
        self.closed = False
        self.failed = False
        self._collector = collector
        self._reader: PodReader | None = None

    @property
    def name(self) -> str:
        return f"pod {self.target.id}"

    def sample(self, *, detail: bool) -> None:
        if self._reader is None:
            self._reader = self._collector.pod(self.target)
        self.result = self._reader.read(self.target)
        if detail:
            self.metrics = pod_metrics(self.target, self.result)

    def close(self) -> None:
        self.closed = True
        if self._reader is not None:
            self._reader.close()


class Sampler:
    """Samples of all containers and pods. `start` it in the loop, `aclose` it in the end."""

    def __init__(
        self,
        *,
        targets: Targets,
        collector: Collector,
        layers: LayerUsage,
        encoder: Encoder,
        mountpoint: str,
        interval: float,
        told: Told | None = None,
    ) -> None:
        """
        Args:
            layers: measures a container's writable layer.
            mountpoint: the directory that the writable layers are in.
            interval: seconds between rounds, and between measurements of a writable layer.
            told: knows of what the kernel doesn't know.
        """
        self._told = told
        self._targets = targets
        self._collector = collector
        self._encoder = encoder
        self._mountpoint = mountpoint
        self._interval = interval
        self._layers = Layers(targets.layers, layers, mountpoint, interval=interval)
        self._containers: dict[str, _Container] = {}
        self._pods: dict[str, _Pod] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stats")
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._asked = False
        self._begun = float("-inf")
        self._detail_until = float("-inf")
        self._detail: asyncio.Task[None] | None = None
        self._disk: Disk | None = None

    def start(self) -> None:
        """Begins with the first round at once."""
        self._spawn(self._run())
        self._spawn(self._layers.run())

    async def aclose(self) -> None:
        """Ends it and closes all files."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        entries: list[Entry] = [*self._containers.values(), *self._pods.values()]
        for entry in entries:
            self._close(entry)
        self._containers.clear()
        self._pods.clear()
        await asyncio.to_thread(self._thread.shutdown)

    def _close(self, entry: Entry) -> None:
        """After what its thread is reading."""
        self._thread.submit(entry.close)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ---- what it is told

    def started(self) -> None:
        """A container runs: the next round reads it, or else who asks for it first."""
        self._layers.wake()

    def stopped(self, id_: str) -> None:
        """A container doesn't run any more."""
        entry = self._containers.pop(id_, None)
        if entry is not None:
            self._close(entry)
        self._layers.wake()

    # ---- what it is asked

    def ask(self) -> None:
        """Numbers from memory were given out: let there be newer ones soon."""
        self._asked = True
        self._wake.set()

    async def ready(self, ids: Iterable[str]) -> None:
        """Reads those of the running containers that were started since the last round."""
        new: list[_Container] = []
        reading: set[asyncio.Task[None]] = set()
        for id_ in ids:
            entry = self._containers.get(id_) or self._container(id_)
            if entry is None or entry.result is not None:
                continue
            if entry.first is None:
                new.append(entry)
            elif not entry.first.done():
                reading.add(entry.first)
        for begin in range(0, len(new), PORTION):
            portion = new[begin : begin + PORTION]
            first = self._spawn(self._read(portion, detail=self._detail_wanted()))
            for entry in portion:
                entry.first = first
            reading.add(first)
        if reading:
            await asyncio.wait(reading, timeout=READ_TIMEOUT)

    async def refresh(self, id_: str) -> None:
        """Takes a running container's sample anew where it is older than `FRESH`."""
        entry = self._container(id_)
        if entry is not None and time.monotonic() - entry.read_at > FRESH:
            reading = self._spawn(self._read([entry], detail=False))
            await asyncio.wait([reading], timeout=READ_TIMEOUT)
            if self._told is not None and entry.result is None:
                await self._told.measured(id_)

    def container_stats(self, id_: str, attributes: bytes) -> bytes:
        """A ContainerStats, encoded; without numbers where the container doesn't run.

        Args:
            attributes: its ContainerAttributes, encoded.
        """
        entry = self._containers.get(id_)
        numbers = b"" if entry is None else entry.numbers
        if entry is not None and not numbers and (told := self._sample(id_)) is not None:
            numbers = messages.container_numbers(told)
        return (
            messages.field(messages.CONTAINER_ATTRIBUTES, attributes)
            + numbers
            + self._layers.encoded(id_)
        )

    def pod_stats(
        self, id_: str, attributes: bytes, containers: Sequence[tuple[str, bytes]]
    ) -> bytes:
        """A PodSandboxStats, encoded.

        Args:
            attributes: its PodSandboxAttributes, encoded.
            containers: id and attributes of its running containers.
        """
        pod = self._pods.get(id_)
        samples = [self._sample(container) for container, _ in containers]
        return messages.pod_stats(
            attributes,
            self._pod_sample(id_, None if pod is None else pod.result),
            [sample for sample in samples if sample is not None],
            [self.container_stats(*container) for container in containers],
        )

    def _sample(self, id_: str) -> ContainerSample | None:
        """What was found of a running container, or else told."""
        entry = self._containers.get(id_)
        if entry is None or entry.result is not None or self._told is None:
            return None if entry is None else entry.result
        return self._told.container(id_)

    def _pod_sample(self, id_: str, found: PodSample | None) -> PodSample | None:
        """What was told of a pod where nothing was found."""
        if self._told is None or (found is not None and found.cpu is not None):
            return found
        told = self._told.pod(id_)
        if told is None or found is None:
            return told
        return msgspec.structs.replace(told, interfaces=found.interfaces)

    async def detailed(self) -> None:
        """Sees to it that metrics are read from now on, and waits for them the first time."""
        was_wanted = self._detail_wanted()
        self._detail_until = time.monotonic() + DETAIL_KEPT * self._interval
        if not was_wanted:
            self._detail = self._spawn(self._round())
        if self._detail is not None and not self._detail.done():
            await asyncio.wait([self._detail], timeout=READ_TIMEOUT)

    def pod_metrics(self, id_: str, containers: Iterable[str]) -> bytes:
        """A PodSandboxMetrics, encoded; empty where the pod isn't ready."""
        pod = self._pods.get(id_)
        if pod is None:
            return b""
        found = map(self._containers.get, containers)
        return pod.metrics + b"".join(
            messages.field(messages.POD_CONTAINER_METRICS, entry.metrics)
            for entry in found
            if entry is not None and entry.metrics
        )

    # ---- rounds

    async def _run(self) -> None:
        while True:
            gap = ROUND_GAP if self._asked else self._interval
            wait = self._begun + gap - time.monotonic()
            if wait > 0:
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    # not wait_for: before Python 3.12 it loses a cancel that comes with the event
                    async with asyncio.timeout(wait):
                        await self._wake.wait()
                continue
            self._asked = False
            try:
                await self._round()
            except (Error, OSError) as error:
                _log.error("statistics not sampled", error=one_line(error))

    async def _round(self) -> None:
        self._begun = time.monotonic()
        if self._told is not None:
            self._told.ask(id_ for id_, e in self._containers.items() if e.result is None)
        self._sync()
        detail = self._detail_wanted()
        if detail:
            await self._in_thread(self._look_at_disk)
        entries: list[Entry] = [*self._containers.values(), *self._pods.values()]
        for begin in range(0, len(entries), PORTION):
            await self._read(entries[begin : begin + PORTION], detail=detail)

    def _detail_wanted(self) -> bool:
        return time.monotonic() < self._detail_until

    def _look_at_disk(self) -> None:
        self._disk = Disk.of(self._mountpoint)

    def _encode(self, target: ContainerTarget, sample: ContainerSample) -> bytes:
        """A sample's ContainerMetrics. Called in the worker thread."""
        if self._disk is None:
            self._look_at_disk()
        assert self._disk is not None
        used = self._layers.used(target.id)
        return self._encoder.container(target, sample, layer=used, disk=self._disk)

    def _sync(self) -> None:
        """One entry for each target, and no others."""
        containers = {target.id: target for target in self._targets.containers()}
        for id_ in [id_ for id_ in self._containers if id_ not in containers]:
            self._close(self._containers.pop(id_))
        for target in containers.values():
            self._add(target)
        pods = {target.id: target for target in self._targets.pods()}
        for id_, entry in list(self._pods.items()):
            wanted = pods.get(id_)
            if wanted is None or wanted.cgroup != entry.target.cgroup:
                self._close(self._pods.pop(id_))
        for pod in pods.values():
            if pod.id not in self._pods:
                self._pods[pod.id] = _Pod(pod, self._collector)

    def _add(self, target: ContainerTarget) -> _Container:
        entry = self._containers.get(target.id)
        if entry is None:
            entry = _Container(target, self._collector, self._encode)
            self._containers[target.id] = entry
        entry.target = target
        return entry

    def _container(self, id_: str) -> _Container | None:
        target = self._targets.container(id_)
        return None if target is None else self._add(target)

    async def _read(self, entries: Sequence[Entry], *, detail: bool) -> None:
        await self._in_thread(_sample, entries, detail)

    async def _in_thread(self, fn: Callable[..., None], *args: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, fn, *args)


def _sample(entries: Sequence[Entry], detail: bool) -> None:
    """Reads one after the other; what fails keeps the sample that it has."""
    for entry in entries:
        if entry.closed:
            continue
        try:
            entry.sample(detail=detail)
            entry.failed = False
        except NotFound:
            continue  # it is about to vanish from the targets
        except Exception as error:
            if not entry.failed:  # once, not every few seconds
                entry.failed = True
                _log.warning("not sampled", what=entry.name, error=one_line(error))
