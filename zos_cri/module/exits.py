"""How containers end: watched, told once, and cleaned up after."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri.errors import DeadlineExceeded, Error, NotFound, Unavailable, one_line
from zos_cri.linux import blocking
from zos_cri.log import get_log
from zos_cri.module import oom
from zos_cri.module.types import ContainerEventKind
from zos_cri.shim.task import Exit, TaskStatus
from zos_cri.store.lifecycle import CONTAINER, ContainerEvent, advance, allows
from zos_cri.store.model import EXIT_CODE_UNKNOWN, ContainerMeta, ContainerStatus, NotedExit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from zos_cri.metrics import Metrics
    from zos_cri.module.types import ContainerRecord, Owner
    from zos_cri.shim.manager import Shim
    from zos_cri.store.db import Table

_log = get_log(__name__)

DELETE_TIMEOUT: Final = 15.0  # the shim itself waits up to 10 s for the output's end
CLEAN_UP_TIMEOUT: Final = 60.0  # of a dead shim's containers, each up to 20 s, eight at once
REDIAL_PAUSE: Final = 0.5  # seconds between two attempts to reach a shim that runs
FAILED_PAUSE: Final = 10.0  # seconds until a shim is asked again that answered with an error
OOM_READ_TIMEOUT: Final = 2.0  # one read of a cgroup file


class _Watch:
    """What is known of a container's end while this server lives."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.exited = asyncio.Event()
        self.kill_at = math.inf  # time.monotonic() at which a stop under way turns to SIGKILL
        self.shortened = asyncio.Event()
        self.kills_before: Mapping[str, int] = {}  # OOM kills when it was started
        self.oom = asyncio.Event()  # the shim has told of one
        self.waiting: asyncio.Task[None] | None = None
        self.handling: asyncio.Task[None] | None = None


class Exits:
    """Watches containers' ends; `handle` is where every report of one arrives."""

    def __init__(
        self,
        *,
        table: Table[ContainerMeta, ContainerStatus],
        metrics: Metrics,
        oom_counts: Callable[[str], Mapping[str, int]],
        owner: Callable[[str], Owner | None],
        publish: Callable[[ContainerEventKind, ContainerRecord], None],
        drain_timeout: float,
    ) -> None:
        self._table = table
        self._metrics = metrics
        self._oom_counts = oom_counts
        self._owner = owner
        self._publish = publish
        self._drain_timeout = drain_timeout
        self._watches: dict[str, _Watch] = {}

    def _watch(self, id_: str) -> _Watch:
        return self._watches.setdefault(id_, _Watch())

    # ---- watching

    def watch(self, id_: str, shim: Shim) -> None:
        """Waits for a task's end from now on; it is told only after `started`."""
        watch = self._watch(id_)
        if watch.waiting is not None:
            watch.waiting.cancel()
        watch.waiting = asyncio.create_task(self._wait_for_exit(id_, shim), name=f"wait {id_}")

    async def starting(self, meta: ContainerMeta) -> None:
        """To be called before a start: notes the OOM kills that its own would be mistaken for."""
        if oom.vanishes(meta.cgroup):
            self._watch(meta.id).kills_before = await self._kills(meta)

    def oom_told(self, id_: str) -> None:
        """The shim says that a process of a container was killed for want of memory."""
        watch = self._watches.get(id_)
        if watch is not None:
            watch.oom.set()

    def started(self, id_: str) -> None:
        """The start is recorded: an exit may be told."""
        self._watch(id_).started.set()

    async def _wait_for_exit(self, id_: str, shim: Shim) -> None:
        while True:
            try:
                exit_ = await shim.task.wait(id_)
            except NotFound:
                return self.handle(id_, None, shim)
            except Error as error:
                lost = isinstance(error, Unavailable)
                write = _log.debug if lost else _log.warning
                write("wait ended", container=id_, error=one_line(error))
                # Where the shim is gone, its manager tells of the exits; else only the
                # connection was, and the next call dials anew.
                pause = REDIAL_PAUSE if lost else FAILED_PAUSE
                if not shim.alive or await shim.gone(pause):
                    return None
            else:
                return self.handle(id_, exit_, shim)

    async def ask(self, meta: ContainerMeta, shim: Shim) -> None:
        """Asks the shim for a task's state, and handles an exit that nobody has told of."""
        try:
            state = await shim.task.state(meta.id)
        except NotFound:
            self.handle(meta.id, None, shim)
        else:
            if state.status is TaskStatus.STOPPED:
                self.handle(meta.id, Exit(state.exit_status, state.exited_at_ns), shim)

    def handle(self, id_: str, exit_: Exit | None, shim: Shim | None) -> None:
        """A container's init has ended; the first report of it counts.

        Args:
            exit_: None where nobody can tell how: reason Unknown, exit code 255.
            shim: the shim that holds the task still, None where it is gone as well.
        """
        watch = self._watch(id_)
        if watch.handling is None:
            watch.handling = asyncio.create_task(
                self._handle(id_, exit_, shim, watch), name=f"exit {id_}"
            )

    async def _handle(self, id_: str, exit_: Exit | None, shim: Shim | None, watch: _Watch) -> None:
        await watch.started.wait()
        record = self._table.get(id_)
        if record is None or not allows(CONTAINER, record.status.state, ContainerEvent.EXITED):
            watch.exited.set()
            return
        meta = record.meta
        noted = await self._note(record, exit_)
        deletion = asyncio.create_task(self._delete_quietly(meta, shim))
        try:
            await self._drain(record, deletion)
            await self._record_exit(id_, noted, watch)
        finally:
            await deletion

    async def _note(self, record: ContainerRecord, exit_: Exit | None) -> NotedExit | None:
        """Writes down what the shim knows of an exit, or finds what was written down before."""
        if record.status.noted_exit is not None or exit_ is None:
            return record.status.noted_exit
        killed = await self._count_oom_kills(record.meta, exit_)
        noted = NotedExit(exit_.status, exit_.exited_at_ns or time.time_ns(), killed)
        await self._table.note(
            record.meta.id, lambda status: msgspec.structs.replace(status, noted_exit=noted)
        )
        return noted

    async def _drain(self, record: ContainerRecord, deletion: asyncio.Task[None]) -> None:
        """Waits, within bounds, until the container's last output is where it belongs."""
        owner = self._owner(record.meta.owner)
        await self.tell_owner(record)
        if owner is None or owner.shim_writes_log:
            # The shim is done with a log file when the task is deleted.
            await asyncio.wait((deletion,), timeout=self._drain_timeout)

    async def tell_owner(self, record: ContainerRecord) -> None:
        """Tells a container's owner of its exit; an owner that fails holds nothing up."""
        owner = self._owner(record.meta.owner)
        if owner is None:
            return
        try:
            await owner.exited(record)
        except Exception:
            _log.exception("owner failed", container=record.meta.id, owner=record.meta.owner)

    async def _record_exit(self, id_: str, noted: NotedExit | None, watch: _Watch) -> None:
        status = await self._table.note(id_, lambda status: _ended(status, noted))
        self._metrics.exits.labels(status.reason).inc()
        _log.info("container exited", container=id_, code=status.exit_code, reason=status.reason)
        watch.exited.set()
        ended = self._table.get(id_)
        if ended is not None:
            self._publish(ContainerEventKind.STOPPED, ended)

    async def _count_oom_kills(self, meta: ContainerMeta, exit_: Exit) -> int:
        kills = await self._kills(meta)
        if meta.cgroup in kills or not oom.vanishes(meta.cgroup):
            return kills.get(meta.cgroup, 0)
        watch = self._watch(meta.id)
        if not oom.somebody_killed(meta.cgroup, watch.kills_before, kills):
            return 0
        try:
            async with asyncio.timeout(oom.EVENT_TIMEOUT):
                await watch.oom.wait()
        except TimeoutError:
            stopping = watch.kill_at < math.inf
            return int(exit_.status == oom.KILLED and not stopping)
        return 1

    async def _kills(self, meta: ContainerMeta) -> Mapping[str, int]:
        if not meta.cgroup:
            return {}
        try:
            return await blocking.call(self._oom_counts, meta.cgroup, timeout=OOM_READ_TIMEOUT)
        except (Error, OSError) as error:
            _log.debug("no OOM count", container=meta.id, error=one_line(error))
            return {}

    async def _delete_quietly(self, meta: ContainerMeta, shim: Shim | None) -> None:
        if shim is None:
            return
        await self._table.written(meta.id)  # until then only the shim knows the exit for good
        try:
            await self.delete_task(meta, shim, kill=False)
        except Error as error:
            # `release` tries again, and says so to whoever asked for the removal.
            _log.warning("task not deleted", container=meta.id, error=one_line(error))

    async def delete_task(self, meta: ContainerMeta, shim: Shim, *, kill: bool) -> None:
        """Makes the shim forget a task, with `kill` also one that runs. Nothing where it has none.

        Where the shim is dead, its clean-up does it, and is waited for: it needs the bundle.

        Raises:
            Error: the shim didn't do it.
            DeadlineExceeded: the clean-up takes too long.
        """
        try:
            if kill:
                await self._kill_task(meta, shim)
            await shim.task.delete(meta.id, timeout=DELETE_TIMEOUT)
        except NotFound:
            return
        except Unavailable:
            if shim.alive:
                raise
            await self._cleaned(meta, shim)

    async def _cleaned(self, meta: ContainerMeta, shim: Shim) -> None:
        try:
            async with asyncio.timeout(CLEAN_UP_TIMEOUT):
                await shim.cleaned.wait()
        except TimeoutError:
            raise DeadlineExceeded(
                f"container {meta.id}: what its shim left when it died isn't removed within"
                f" {CLEAN_UP_TIMEOUT:g} s"
            ) from None

    async def _kill_task(self, meta: ContainerMeta, shim: Shim) -> None:
        state = await shim.task.state(meta.id)
        if state.status is TaskStatus.STOPPED:
            return
        try:
            await shim.task.kill(meta.id, 9, all=meta.kill_all)
        except NotFound:
            return
        await shim.task.wait(meta.id, timeout=DELETE_TIMEOUT)

    # ---- waiting

    async def wait(self, id_: str, *, timeout: float | None) -> bool:
        """Waits for a container's recorded exit.

        Returns:
            False when `timeout` seconds (None = for ever) ran out, or when a stop's deadline was
            brought forward meanwhile and the time left must be counted anew.
        """
        watch = self._watch(id_)
        watch.shortened.clear()
        waiters = [
            asyncio.create_task(watch.exited.wait()),
            asyncio.create_task(watch.shortened.wait()),
        ]
        try:
            await asyncio.wait(waiters, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiter in waiters:
                waiter.cancel()
        return watch.exited.is_set()

    def shorten(self, id_: str, kill_at: float) -> None:
        """Sets when a stop turns to SIGKILL (`time.monotonic()`): only ever earlier."""
        watch = self._watch(id_)
        if kill_at < watch.kill_at:
            watch.kill_at = kill_at
            watch.shortened.set()

    def stop_ended(self, id_: str) -> None:
        """The stop under way is over; where it failed, the next one has a time of its own."""
        watch = self._watches.get(id_)
        if watch is not None:
            watch.kill_at = math.inf

    def kill_at(self, id_: str) -> float:
        """When the stop under way turns to SIGKILL (`time.monotonic()`)."""
        return self._watch(id_).kill_at

    async def settled(self, id_: str) -> None:
        """Waits until an exit that is being handled is handled to the end."""
        watch = self._watches.get(id_)
        if watch is not None and watch.handling is not None and watch.started.is_set():
            await asyncio.wait((watch.handling,), timeout=DELETE_TIMEOUT)
            if not watch.handling.done():
                raise DeadlineExceeded(f"container {id_}: its task is still being deleted")

    def forget(self, id_: str) -> None:
        """Ends the watch over a container that was never started or is removed."""
        watch = self._watches.pop(id_, None)
        if watch is not None:
            for task in (watch.waiting, watch.handling):
                if task is not None:
                    task.cancel()

    async def close(self) -> None:
        """Stops watching, at shutdown: what ends from now on, the next server is told of."""
        tasks = [
            task
            for watch in self._watches.values()
            for task in (watch.waiting, watch.handling)
            if task is not None
        ]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _ended(status: ContainerStatus, noted: NotedExit | None) -> ContainerStatus:
    if not allows(CONTAINER, status.state, ContainerEvent.EXITED):
        return status
    exit_ = noted or NotedExit(EXIT_CODE_UNKNOWN, time.time_ns())
    if exit_.oom_kills:
        reason = "OOMKilled"
    elif noted is None:
        reason = "Unknown"
    else:
        reason = "Error" if exit_.code else "Completed"
    return msgspec.structs.replace(
        status,
        state=advance(CONTAINER, status.state, ContainerEvent.EXITED),
        pid=0,
        # Nothing ends before it starts, though a clock was set back or the start wasn't recorded.
        started_at=min(status.started_at or exit_.at, exit_.at),
        finished_at=exit_.at,
        exit_code=exit_.code,
        reason=reason,
        noted_exit=None,
    )
