"""The four steps of every container: create, start, stop, remove.

Each step is recorded before what it names is made, and can be asked for again at any time: the
second call joins the first or finds nothing left to do. A caller that goes away doesn't end a step.

Exits are level-triggered: the shim's event, its answer to Wait and a state asked for after a
restart all end in `Exits.handle`, which acts once.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zos_cri.errors import Error, FailedPrecondition, InvalidArgument, NotFound, one_line
from zos_cri.failpoints import step
from zos_cri.linux import blocking
from zos_cri.linux.processes import signal_in_cgroup
from zos_cri.log import get_log
from zos_cri.module.ending import Ending, SignalInit
from zos_cri.module.exits import Exits
from zos_cri.module.hiding import Hiding
from zos_cri.module.starting import create_task
from zos_cri.module.types import ContainerEventKind, ContainerNotice
from zos_cri.shim import bundle as bundles
from zos_cri.shim.task import CREATE_TIMEOUT
from zos_cri.store.joins import Joins
from zos_cri.store.lifecycle import CONTAINER, ContainerEvent, ContainerState, advance, allows
from zos_cri.store.model import EXIT_CODE_START_FAILED, ContainerMeta, ContainerStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping

    from zos_cri.linux.moves import Moves
    from zos_cri.metrics import Metrics
    from zos_cri.module.types import ContainerRecord, NewContainer, Owner
    from zos_cri.shim.handler import Handler
    from zos_cri.shim.manager import Shim, ShimManager
    from zos_cri.store.db import Table

_log = get_log(__name__)

SHIM_TIMEOUT: Final = 30.0  # a shim's start takes 10 ms; a host out of memory takes seconds
START_TIMEOUT: Final = 60.0


class Containers:
    """The containers of this host, whoever they were made for."""

    def __init__(
        self,
        *,
        table: Table[ContainerMeta, ContainerStatus],
        shims: ShimManager,
        handlers: Mapping[str, Handler],
        bundle_dir: Path,
        metrics: Metrics,
        oom_counts: Callable[[str], Mapping[str, int]],
        drain_timeout: float,
        moves: Moves,
        signal_init: SignalInit = signal_in_cgroup,
    ) -> None:
        """
        Args:
            bundle_dir: where bundles are made, `<bundle_dir>/<id>`.
            oom_counts: as `Cgroups.oom_counts`; called in a thread.
            drain_timeout: seconds that open output may hold an exit back.
            moves: told of each start.
            signal_init: sends a signal to a first process, without the runtime's help.
        """
        self.table = table
        self._signal_init = signal_init
        self._moves = moves
        self._shims = shims
        self._handlers = handlers
        self._bundle_dir = bundle_dir
        self._metrics = metrics
        self._owners: dict[str, Owner] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._joins: Joins[None] = Joins()
        self._background: set[asyncio.Task[None]] = set()
        self._hiding = Hiding(self.later)
        self._subscribers: list[Callable[[ContainerNotice], None]] = []
        self.exits = Exits(
            table=table,
            metrics=metrics,
            oom_counts=oom_counts,
            owner=self.owner,
            publish=self._publish,
            drain_timeout=drain_timeout,
        )
        # Set when the recovery is over: until then nobody but it may change anything.
        self.recovered = asyncio.Event()

    # ---- what is known, answered from memory

    def __iter__(self) -> Iterator[ContainerRecord]:
        return iter(self.table)

    def get(self, id_: str) -> ContainerRecord | None:
        """The container with exactly this id."""
        return self.table.get(id_)

    def find(self, id_: str) -> ContainerRecord:
        """The container with this id or unambiguous beginning of one.

        Raises:
            NotFound: there is none.
        """
        return self.table.find(id_)

    def own(self, name: str, owner: Owner) -> None:
        """Makes known a layer above, by the name that its containers carry."""
        self._owners[name] = owner

    def owner(self, name: str) -> Owner | None:
        return self._owners.get(name)

    def subscribe(self, subscriber: Callable[[ContainerNotice], None]) -> None:
        """Tells of every change from now on. The subscriber must return at once."""
        self._subscribers.append(subscriber)

    def _publish(self, kind: ContainerEventKind, record: ContainerRecord) -> None:
        notice = ContainerNotice(kind, record, time.time_ns())
        for subscriber in self._subscribers:
            subscriber(notice)

    # ---- create

    def soon(self) -> None:
        """A container will be created and started before long: the host is made ready for it."""
        self._moves.soon()

    async def create(self, new: NewContainer) -> ContainerRecord:
        """Records a container and writes its bundle. No process is started.

        Raises:
            AlreadyExists: the id, or the name in its namespace, is taken.
            InvalidArgument: the handler isn't known.
            FailedPrecondition: it runs containers in pods only.
        """
        if new.handler not in self._handlers:
            raise InvalidArgument(f'no runtime handler "{new.handler}" is configured')
        if new.group == new.id and self._handlers[new.handler].makes_sandboxes:
            raise FailedPrecondition(
                f'runtime handler "{new.handler}": its shims hold containers only in sandboxes that'
                " they make of pods"
            )
        self.soon()
        meta = new.meta(str(self._bundle_dir / new.id))
        await self._joins.run(f"create {meta.id}", b"", lambda: self._create(meta, new))
        return self.table.find(meta.id)

    async def _create(self, meta: ContainerMeta, new: NewContainer) -> None:
        await self.table.insert(meta, ContainerStatus(resources=new.resources))
        try:
            with self._metrics.stage("create_container", "bundle"):
                async with step("bundle.write"):
                    root = (new.root_uid, new.root_gid)
                    write = partial(bundles.write, group=new.group, spec=new.spec, root=root)
                    await blocking.call(write, self._bundle_dir, new.id)
            await self._advance(meta.id, ContainerEvent.CREATED)
        except BaseException:
            await blocking.call(bundles.remove, Path(meta.bundle))
            await self.table.delete(meta.id)
            raise
        self._publish(ContainerEventKind.CREATED, self.table.find(meta.id))

    # ---- start

    async def start(self, id_: str) -> None:
        """Starts a created container.

        Raises:
            NotFound: no such container.
            FailedPrecondition: it isn't in the state `created`.
            Error: the shim or the runtime failed; the container is `exited` then, with the exit
                code 128 and the reason StartError.
        """
        meta = self.table.find(id_).meta
        await self._joins.run(f"start {meta.id}", b"", lambda: self._start(meta.id))

    async def _start(self, id_: str) -> None:
        async with self._lock(id_):
            record = self.table.find(id_)
            owner = self.owner(record.meta.owner)
            await self._advance(id_, ContainerEvent.START)
            try:
                if owner is not None:
                    await owner.starting(record)
                await self._start_task(record, owner)
            except Exception as error:
                await self.start_failed(record.meta, error)
                raise
        self._publish(ContainerEventKind.STARTED, self.table.find(id_))

    async def _start_task(self, record: ContainerRecord, owner: Owner | None) -> None:
        meta = record.meta
        handler = self._handlers.get(meta.handler)
        if handler is None:
            raise FailedPrecondition(
                f'container {meta.id}: its runtime handler "{meta.handler}" is not configured any'
                " more"
            )
        with self._metrics.stage("start_container", "shim"):
            shim = await self._shims.start(meta.group, handler, timeout=SHIM_TIMEOUT)
        with self._metrics.stage("start_container", "create"), self._moves.expected():
            pid = await create_task(record, owner, shim)
        if owner is not None:
            await owner.task_created(record, pid)
        await self.exits.starting(meta)
        # Wait is asked before the start, so that no exit can fall between the two.
        self.exits.watch(meta.id, shim)
        started_at = time.time_ns()  # a short one may have ended before the answer is here
        with self._metrics.stage("start_container", "start"):
            # A checkpoint is read only now, and its first process is known only afterwards.
            timeout = CREATE_TIMEOUT if meta.checkpoint else START_TIMEOUT
            pid = await shim.task.start(meta.id, timeout=timeout) or pid
        await self.table.note(
            meta.id,
            lambda status: msgspec.structs.replace(
                status,
                state=advance(CONTAINER, status.state, ContainerEvent.STARTED),
                pid=pid,
                started_at=started_at,
            ),
        )
        self.exits.started(meta.id)
        if shim.handler.on_host:
            self._hiding.soon(meta.bundle)
        _log.info("container started", container=meta.id, pid=pid, shim=shim.pid)

    async def start_failed(self, meta: ContainerMeta, error: Exception) -> None:
        """Takes back what there is of a start that failed, and records why."""
        self.exits.forget(meta.id)
        shim = self._shims.get(meta.group)
        if shim is not None:
            try:
                await self.exits.delete_task(meta, shim, kill=True)
            except Error as failed:  # `release` tries again
                _log.warning("task not deleted", container=meta.id, error=one_line(failed))
        now = time.time_ns()
        await self.table.note(
            meta.id,
            lambda status: msgspec.structs.replace(
                status,
                state=advance(CONTAINER, status.state, ContainerEvent.START_FAILED),
                started_at=now,
                finished_at=now,
                exit_code=EXIT_CODE_START_FAILED,
                reason="StartError",
                message=one_line(error),
            ),
        )
        record = self.table.find(meta.id)
        await self.exits.tell_owner(record)
        self._publish(ContainerEventKind.STOPPED, record)
        _log.warning("container start failed", container=meta.id, error=one_line(error))

    # ---- stop

    async def stop(
        self, id_: str, *, timeout: float | None = None, signal: int | None = None
    ) -> None:
        """Ends a running container: the stop signal, `timeout` seconds, SIGKILL.

        Nothing is done for one that doesn't run. A second call may shorten the first's timeout but
        never lengthen it. The caller's cancellation takes back nothing.

        Args:
            timeout: seconds; None = the container's own.
            signal: number; None = the container's own.

        Raises:
            NotFound: no such container.
            DeadlineExceeded: it outlived SIGKILL by `KILL_TIMEOUT`.
        """
        record = self.table.find(id_)
        if record.status.state is ContainerState.STARTING:
            await self._joins.ended(f"start {record.meta.id}")
            record = self.table.find(record.meta.id)
        if record.status.state not in (ContainerState.RUNNING, ContainerState.UNKNOWN):
            return
        meta = record.meta
        if self._shims.get(meta.group) is None:
            await self.exits.settled(meta.id)  # it has ended, which is only being written down
            if self.table.find(meta.id).status.state is ContainerState.EXITED:
                return
        seconds = meta.stop_timeout if timeout is None else max(timeout, 0.0)
        self.exits.shorten(meta.id, time.monotonic() + seconds)
        ending = Ending(record, self._shim(meta), self.exits, self._signal_init)
        await self._joins.run(
            f"stop {meta.id}", b"", lambda: ending.run(signal or meta.stop_signal)
        )

    async def signal(self, id_: str, signal: int) -> None:
        """Sends a signal to a container's init.

        Raises:
            NotFound: no such container.
            FailedPrecondition: it doesn't run.
        """
        meta = self.running(id_).meta
        await self._shim(meta).task.kill(meta.id, signal)

    def running(self, id_: str) -> ContainerRecord:
        """The record of a container that runs.

        Raises:
            NotFound: no such container.
            FailedPrecondition: it doesn't run.
        """
        record = self.table.find(id_)
        if record.status.state is not ContainerState.RUNNING:
            raise FailedPrecondition(
                f"container {record.meta.id} is {record.status.state}, not running"
            )
        return record

    def shim(self, id_: str) -> Shim:
        """The shim that holds a running container (for exec, update, stats).

        Raises:
            NotFound: no such container.
            FailedPrecondition: it doesn't run.
        """
        return self._shim(self.running(id_).meta)

    def shim_of(self, id_: str) -> Shim | None:
        """The shim of a container, whatever its state; None where it has none."""
        record = self.table.get(id_)
        return self._shims.get(record.meta.group) if record is not None else None

    def _shim(self, meta: ContainerMeta) -> Shim:
        shim = self._shims.get(meta.group)
        if shim is None:
            raise FailedPrecondition(f"container {meta.id}: its shim is gone")
        return shim

    # ---- update

    async def update(
        self,
        id_: str,
        change: Callable[[dict[str, Any]], dict[str, Any]],
        reported: Callable[[], bytes],
        also: Callable[[dict[str, Any]], Awaitable[None]] | None = None,
    ) -> None:
        """Changes a container's limits, in its spec and where it runs in its cgroup as well.

        Args:
            change: the new OCI spec, given the present one.
            reported: what `ContainerStatus.resources` is to hold afterwards.
            also: what else to do by the new spec where the container runs.

        Raises:
            NotFound: no such container.
            FailedPrecondition: it has ended.
            Error: the runtime refused; nothing is changed then.
        """
        meta = self.table.find(id_).meta
        await self._joins.alone(lambda: self._update(meta, change, reported, also))

    async def _update(
        self,
        meta: ContainerMeta,
        change: Callable[[dict[str, Any]], dict[str, Any]],
        reported: Callable[[], bytes],
        also: Callable[[dict[str, Any]], Awaitable[None]] | None,
    ) -> None:
        async with self._lock(meta.id):
            status = self.table.find(meta.id).status
            if status.state not in (ContainerState.CREATED, ContainerState.RUNNING):
                raise FailedPrecondition(f"container {meta.id} is {status.state}")
            spec = change(await blocking.call(bundles.read_config, Path(meta.bundle)))
            if status.state is ContainerState.RUNNING:
                await self._shim(meta).task.update(meta.id, spec["linux"]["resources"])
                if also is not None:
                    await also(spec)
            await blocking.call(bundles.write_config, Path(meta.bundle), spec)
            resources = reported()
            await self.table.update(
                meta.id, lambda s: msgspec.structs.replace(s, resources=resources)
            )

    # ---- remove

    async def remove(self, id_: str) -> None:
        """Ends a container where it runs, and removes all there is of it, except its log.

        Nothing to do where there is no such container.

        Raises:
            Error: something could not be released; the container stays listed, and the next call
                goes on from there.
        """
        try:
            meta = self.table.find(id_).meta
        except NotFound:
            return
        await self._joins.run(f"remove {meta.id}", b"", lambda: self._remove(meta))

    async def _remove(self, meta: ContainerMeta) -> None:
        await self._joins.ended(f"create {meta.id}")
        if self.table.get(meta.id) is None:
            return
        await self.stop(meta.id, timeout=0)
        record, owner = self.table.get(meta.id), self.owner(meta.owner)
        if record is not None and owner is not None:
            await owner.removing(record)
        async with self._lock(meta.id):
            record = self.table.get(meta.id)
            if record is None:
                return
            if not allows(CONTAINER, record.status.state, ContainerEvent.REMOVE):
                raise FailedPrecondition(f"container {meta.id} is {record.status.state}")
            await self._advance(meta.id, ContainerEvent.REMOVE)
            await self.release(meta)
        self._locks.pop(meta.id, None)
        self._publish(ContainerEventKind.DELETED, record)

    async def release(self, meta: ContainerMeta) -> None:
        """Removes what there is of a container that is being removed; may be called again."""
        await self.exits.settled(meta.id)
        shim = self._shims.get(meta.group)
        if shim is not None:
            with self._metrics.stage("remove_container", "delete"):
                await self.exits.delete_task(meta, shim, kill=True)
        with self._metrics.stage("remove_container", "bundle"):
            if meta.id == meta.group:
                await self._shims.stop(meta.group)
            async with step("bundle.remove"):
                await blocking.call(bundles.remove, Path(meta.bundle))
        owner = self.owner(meta.owner)
        if owner is not None:
            await owner.removed(meta)
        self.exits.forget(meta.id)
        await self.table.delete(meta.id)
        _log.info("container removed", container=meta.id)

    async def discard(self, meta: ContainerMeta) -> None:
        """Removes what a cut-off Create left of a container that its shim doesn't know.

        Raises:
            Error: it could not be removed.
        """
        await self._shims.discard(meta.group, meta.id)

    async def start_was_cut_off(self, meta: ContainerMeta) -> bool:
        """Whether the runtime made a container, and never let its program begin."""
        return await self._shims.start_was_cut_off(meta.group, meta.id)

    async def has_begun(self, meta: ContainerMeta, pid: int) -> bool:
        """Whether a container runs its program though its shim says that it wasn't started."""
        return await self._shims.has_begun(meta.group, pid)

    def _lock(self, id_: str) -> asyncio.Lock:
        return self._locks.setdefault(id_, asyncio.Lock())

    async def _advance(self, id_: str, event: ContainerEvent) -> ContainerStatus:
        def change(status: ContainerStatus) -> ContainerStatus:
            try:
                state = advance(CONTAINER, status.state, event)
            except FailedPrecondition as error:
                raise FailedPrecondition(f"container {id_}: {error}") from None
            return msgspec.structs.replace(status, state=state)

        return await self.table.update(id_, change)

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Does something in the background, until it ends or the server does."""
        task = asyncio.create_task(_logged(work))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def to_its_end(self, operation: Callable[[], Awaitable[None]]) -> None:
        """Does something in a task of its own: its caller's cancellation doesn't end it."""
        await self._joins.alone(operation)

    async def close(self) -> None:
        """Waits for the steps under way, and stops watching: the containers run on."""
        await self._joins.settle()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.exits.close()


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:
        _log.exception("work in the background failed")
