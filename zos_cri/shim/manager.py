"""All shims of this installation: one for a group (a pod), started, found again, watched, ended.

What holds at every instant:

- Before a shim is started its bundle and a record without a pid are there; before anything is
  asked of it the record has its pid and start time. So whatever we are killed in, `recover` finds
  either a shim that it can prove to be ours, or an intent whose processes it can find and kill.
- A shim is lost when its process is gone, which a pidfd tells. One that doesn't answer isn't lost:
  calls to it run into their deadlines, and its containers are left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from zos_cri import errors
from zos_cri.failpoints import step
from zos_cri.linux import blocking
from zos_cri.linux.cgroup import Cgroups
from zos_cri.linux.mount import mounts_below
from zos_cri.linux.spawn import PidFd
from zos_cri.log import get_log
from zos_cri.shim import bundle, processes
from zos_cri.shim.bundle import Record
from zos_cri.shim.launch import Features, features, find_binary
from zos_cri.shim.logs import LogPump
from zos_cri.shim.shim import DeadShim, Shim, client, identify, prove
from zos_cri.shim.task import Exit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from zos_cri.shim.bootstrap import Result
    from zos_cri.shim.handler import Handler
    from zos_cri.shim.launch import Launcher

__all__ = ["DeadShim", "Shim", "ShimManager"]

_log = get_log(__name__)
T = TypeVar("T")

# Bootstrap (three dialects at worst), then one connection and one call.
START_TIMEOUT: Final = 30.0
# A shim that is asked the first time, or again after a restart of ours.
CONNECT_TIMEOUT: Final = 5.0
# A shim that was asked to go: it closes its sockets and waits for its last events to be sent.
STOP_GRACE: Final = 3.0
# One that was killed is gone at once, unless it hangs in the kernel.
KILL_GRACE: Final = 5.0
# A runtime whose caller is gone is killed at once; one that isn't ends its work in about 50 ms.
CUT_OFF_GRACE: Final = 30.0
CUT_OFF_POLL: Final = 0.02
CGROUP_TIMEOUT: Final = 5.0  # its processes are killed, and the kernel takes a moment to see it
# `delete`s at once: each runs the shim's binary and the OCI runtime.
MAX_DELETES: Final = 8
UNKNOWN_EXIT: Final = 255  # a container whose end nobody saw


class ShimManager:
    """The groups' shims.

    Args:
        bundles: directory of all bundles, groups' and containers'.
        launcher: runs the binaries.
        namespace: of the tasks, as the launcher's.
        on_lost: awaited for each shim that died without being asked to.
        binary_path: PATH for finding shims, ours by default.
        connect_timeout: seconds for a shim to answer when it is met.
        cgroups: the host's, for what runtimes that were killed left there.
    """

    def __init__(
        self,
        *,
        bundles: Path,
        launcher: Launcher,
        namespace: str = "zos",
        on_lost: Callable[[DeadShim], Awaitable[None]] | None = None,
        binary_path: str | None = None,
        connect_timeout: float = CONNECT_TIMEOUT,
        cgroups: Cgroups | None = None,
    ) -> None:
        # As /proc shows working directories.
        self.bundles = Path(os.path.realpath(bundles))
        self.on_lost = on_lost
        self._launcher = launcher
        self._namespace = namespace
        self._binary_path = binary_path
        self._connect_timeout = connect_timeout
        self._cgroups = cgroups or Cgroups()
        self._shims: dict[str, Shim] = {}
        self._starting: dict[str, asyncio.Task[Shim]] = {}
        self._stopping: dict[str, asyncio.Task[None]] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._deletes = asyncio.Semaphore(MAX_DELETES)

    @property
    def shims(self) -> Mapping[str, Shim]:
        """The shims that run, by group."""
        return self._shims

    def get(self, group: str) -> Shim | None:
        """A group's shim; None where none was started, or it is lost or stopped."""
        return self._shims.get(group)

    def bundle(self, bundle_id: str) -> Path:
        """Where a group's or a container's bundle is, or would be."""
        return self.bundles / bundle_id

    async def start(self, group: str, handler: Handler, *, timeout: float = START_TIMEOUT) -> Shim:
        """A group's shim: the running one, the one being started, or a new one.

        It needs no container: a config.json is written where the bundle has none, and a later
        one may replace it. A start goes on when its caller is cancelled; `stop` ends it.

        Raises:
            FailedPrecondition: the group's shim runs with another handler.
            NotFound, InvalidArgument: no such shim binary.
            StartFailed, DeadlineExceeded, Unavailable: it didn't start, or didn't answer; nothing
                of it is left.
        """
        stopping = self._stopping.get(group)
        if stopping is not None:
            await asyncio.wait([stopping])
        watching = self._watching.get(group)
        shim = self._shims.get(group)
        if shim is not None and not shim.alive and watching is not None:
            await asyncio.wait([watching])  # being cleaned up; then a new one may be started
            shim = self._shims.get(group)
        if shim is None:
            task = self._starting.get(group)
            if task is None:
                task = asyncio.create_task(self._start(group, handler))
                self._starting[group] = task
                task.add_done_callback(lambda done: _forget(self._starting, group, done))
            try:
                async with asyncio.timeout(timeout):
                    shim = await asyncio.shield(task)
            except TimeoutError:
                raise errors.DeadlineExceeded(
                    f"shim for {group}: not started within {timeout:g} s"
                ) from None
        # Another server may have had other settings for it: those that it was started with count.
        if shim.handler.name != handler.name:
            raise errors.FailedPrecondition(
                f"shim for {group}: runs with handler {shim.handler.name!r}, not {handler.name!r}"
            )
        return shim

    async def _start(self, group: str, handler: Handler) -> Shim:
        options = handler.task_options()
        path = self.bundles / group
        binary, there = await blocking.call(self._look, handler, path)
        record = Record(group=group, handler=handler, binary=binary)
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self._withdraw, path, not there)
            async with step("shim.bundle"):
                await blocking.call(self._intend, record)
            log = LogPump(path / bundle.LOG, group=group)
            undo.callback(log.close)
            async with step("shim.start"):
                result = await self._launcher.start(
                    group, path, binary, options, by_itself=bool(handler.shim_cgroup)
                )
                undo.push_async_callback(self._launcher.kill, group, path, result.address)
                undo.callback(self._launcher.distrust, binary)
            async with step("shim.adopt"):
                shim = await self._adopt(record, path, log, result)
                undo.push_async_callback(shim.close)
            undo.pop_all()
        self._watch(shim)
        _log.info("shim started", group=group, pid=shim.pid, version=shim.version, binary=binary)
        return shim

    def _look(self, handler: Handler, path: Path) -> tuple[str, bool]:
        """The shim's binary, and whether there is a bundle at `path` already; blocks."""
        return find_binary_at(handler.shim, self._binary_path), path.exists()

    def _intend(self, record: Record) -> None:
        """Notes what is about to be started; blocks."""
        bundle.create(self.bundles, record.group, group=record.group, record=record)

    async def _withdraw(self, path: Path, created: bool) -> None:
        if created:
            await blocking.call(bundle.remove, path)
        else:  # a container's bundle as well, and not ours to remove
            await blocking.call((path / bundle.RECORD).unlink, True)

    async def _adopt(self, record: Record, path: Path, log: LogPump, result: Result) -> Shim:
        """Connects to a shim that was just started, and makes sure which process it is."""
        record = msgspec.structs.replace(
            record, address=result.address, protocol=result.protocol, version=result.version
        )
        speaking = client(record, self._namespace)
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(speaking.connection.close)
            pid = await identify(speaking, record, path, timeout=self._connect_timeout)
            record = msgspec.structs.replace(record, version=speaking.task.version, pid=pid)
            pidfd, record = await blocking.call(_proved, path, record)
            undo.pop_all()
        return Shim(record, pidfd, bundle=path, log=log, client=speaking)

    def _watch(self, shim: Shim) -> None:
        self._shims[shim.group] = shim
        task = asyncio.create_task(self._wait_for_death(shim))
        self._watching[shim.group] = task
        task.add_done_callback(lambda done: _forget(self._watching, shim.group, done))

    async def _wait_for_death(self, shim: Shim) -> None:
        try:
            await shim.gone()
            if not shim.stopping:
                await self._lost(shim)
        finally:
            shim.cleaned.set()

    async def _lost(self, shim: Shim) -> None:
        _log.error("shim lost", group=shim.group, pid=shim.pid)
        try:
            await shim.close()
            dead = await self._clean_up(shim.record, shim.bundle)
            shim.cleaned.set()
            self._shims.pop(shim.group, None)
            if self.on_lost is not None:
                await self.on_lost(dead)
        except Exception:
            _log.exception("lost shim not handled", group=shim.group)
        finally:
            self._shims.pop(shim.group, None)

    async def _clean_up(
        self,
        record: Record,
        path: Path,
        containers: Mapping[str, list[str]] | None = None,
    ) -> DeadShim:
        """Runs `delete` for a dead shim's containers, its group's own last."""
        if containers is None:
            containers = await blocking.call(bundle.containers, self.bundles)
        ids = [id_ for id_ in containers.get(record.group, []) if id_ != record.group]
        exits: dict[str, Exit] = {}
        failures: dict[str, str] = {}

        async def delete(id_: str) -> None:
            try:
                async with self._deletes:
                    async with step("shim.delete"):
                        exits[id_] = await self._launcher.delete(
                            id_, self.bundles / id_, record.binary
                        )
                    await self._remove_cgroup(id_)
            except (errors.Error, OSError) as error:
                failures[id_] = errors.one_line(error)
                exits.setdefault(id_, Exit(UNKNOWN_EXIT, time.time_ns()))
                _log.error("container of a dead shim not cleaned up", container=id_, error=error)

        await asyncio.gather(*map(delete, ids))
        if record.group in containers.get(record.group, []):
            await delete(record.group)
        elif record.handler.makes_sandboxes or "-runc-" not in os.path.basename(record.binary):
            # A sandbox of its own kind (a virtual machine) may be left; there's no exit to tell.
            await delete(record.group)
            exits.pop(record.group, None)
        await blocking.call(self._launcher.remove_sockets, record.group, path, record.address)
        return DeadShim(record.group, record.handler, record.pid, exits, failures)

    async def recover(self) -> list[Shim | DeadShim]:
        """Finds the shims of an earlier process of ours; call it once, before any `start`.

        All at once, each with its deadlines. A shim that runs and doesn't answer is returned like
        any other: its calls will fail. Whoever isn't wanted any more, living or dead: `stop` it.
        Records that can't be read are logged and left alone.
        """
        await blocking.call(bundle.remove_leftovers, self.bundles)
        paths = await blocking.call(bundle.groups, self.bundles)
        containers = await blocking.call(bundle.containers, self.bundles)
        found = await asyncio.gather(*(self._recover(path, containers) for path in paths))
        return [item for item in found if item is not None]

    async def _recover(
        self, path: Path, containers: Mapping[str, list[str]]
    ) -> Shim | DeadShim | None:
        try:
            record = await blocking.call(bundle.read_record, path)
        except errors.DataLoss as error:
            _log.error("shim not recovered", error=error)
            return None
        if record is None:
            return None
        pidfd = PidFd.open(record.pid, record.start_time) if record.pid else None
        if pidfd is None or not pidfd.alive:
            if pidfd is not None:
                pidfd.close()
            if not record.pid:  # nobody knew its address, so it has no tasks
                await self._launcher.kill(record.group, path)
            return await self._clean_up(record, path, containers)
        log = LogPump(path / bundle.LOG, group=record.group)
        shim = Shim(record, pidfd, bundle=path, log=log, client=client(record, self._namespace))
        self._watch(shim)
        try:
            await shim.answers(self._connect_timeout)
        except errors.Error as error:
            shim.silent = True
            _log.warning("shim runs but doesn't answer", group=shim.group, error=error)
        return shim

    async def stop(self, group: str) -> None:
        """Ends a group's shim and removes its bundle; also what is left of a dead one.

        Its containers should be deleted by then. A shim that doesn't go in time is killed, and
        what containers it still had are cleaned up after it.

        Raises:
            Unavailable: the shim can't be killed (it hangs in the kernel); all is left as it is.
        """
        task = self._stopping.get(group)
        if task is None:
            task = asyncio.create_task(self._stop(group))
            self._stopping[group] = task
            task.add_done_callback(lambda done: _forget(self._stopping, group, done))
        await asyncio.shield(task)

    async def _stop(self, group: str) -> None:
        starting = self._starting.get(group)
        if starting is not None:
            await asyncio.wait([starting])
        shim = self._shims.get(group)
        if shim is not None and shim.alive:
            await self._end(shim)
        else:
            watching = self._watching.get(group)
            if watching is not None:
                await asyncio.wait([watching])
            record = await blocking.call(bundle.read_record, self.bundles / group)
            if record is not None:
                if not record.pid:  # a second look: its `start` may have been only about to run
                    await self._launcher.kill(group, self.bundles / group)
                await self._clean_up_remains(record)
        async with step("shim.remove"):
            await blocking.call(bundle.remove, self.bundles / group)

    async def _end(self, shim: Shim) -> None:
        shim.stopping = True
        try:
            await shim.ask_to_go()
        except errors.Error as error:  # also where it went before its answer did
            _log.debug("shim shutdown", group=shim.group, error=error)
        graceful = await shim.gone(STOP_GRACE)
        if not graceful:
            _log.warning("shim killed", group=shim.group, pid=shim.pid)
            shim.kill()
            if not await shim.gone(KILL_GRACE):
                shim.stopping = False
                self._watch(shim)
                raise errors.Unavailable(
                    f"shim for {shim.group}: pid {shim.pid} can't be killed, it hangs in the kernel"
                )
        await shim.close()
        self._shims.pop(shim.group, None)
        if not graceful:
            await self._clean_up_remains(shim.record)
        else:
            await blocking.call(
                self._launcher.remove_sockets, shim.group, shim.bundle, shim.address
            )
        _log.info("shim stopped", group=shim.group, pid=shim.pid)

    async def _clean_up_remains(self, record: Record) -> None:
        dead = await self._clean_up(record, self.bundles / record.group)
        if dead.failures:
            raise errors.Unavailable(
                f"group {record.group}: not cleaned up: {'; '.join(dead.failures.values())}"
            )

    async def start_was_cut_off(self, group: str, container: str) -> bool:
        """Whether the runtime's `start` of a container, if there was one, didn't come to its end.

        runc and crun have a first process wait at a FIFO among their state, which their `start`
        removes once it has gone on. When a connection goes, the shim kills a `start` that came over
        it: where that had opened the FIFO, the process meets a broken pipe and ends with an error.
        """
        fifo = self._runtime_state(group, container) / "exec.fifo"
        return await blocking.call(fifo.exists)

    async def has_begun(self, group: str, pid: int) -> bool:
        """Whether a container that its shim thinks was never started runs its program all the same.

        That is so where the runtime's `start` was cut off when it had let the first process go on.

        Args:
            pid: of the container's first process, as the shim has it.
        """
        on_host = self._shims[group].handler.on_host
        return on_host and pid > 0 and await blocking.call(processes.has_begun, pid)

    def _runtime_state(self, group: str, container: str) -> Path:
        return Path(self._shims[group].handler.root, self._namespace, container)

    async def discard(self, group: str, container: str) -> None:
        """Removes what a Create that was cut off left of a container its shim doesn't know.

        When a connection goes, Go's ttrpc cancels the calls that came over it, and the shim kills
        the OCI runtime in the midst of its work: the runtime knows a container then, and the
        rootfs is mounted, but the shim has no task.

        Raises:
            DeadlineExceeded: the runtime is still at work after `CUT_OFF_GRACE`.
            StartFailed: the clean-up failed.
        """
        shim = self._shims[group]
        deadline = time.monotonic() + CUT_OFF_GRACE
        while await blocking.call(processes.runs_for, shim.pid, container):
            if time.monotonic() > deadline:
                raise errors.DeadlineExceeded(f"container {container}: still being created")
            await asyncio.sleep(CUT_OFF_POLL)
        path = self.bundles / container
        state = self._runtime_state(group, container)
        mounted = await blocking.call(lambda: bool(mounts_below(str(path))))
        if mounted or await blocking.call(state.exists):
            await self._launcher.delete(container, path, shim.record.binary)
        await blocking.call(bundle.remove_runtime_files, path)
        await self._remove_cgroup(container)

    async def _remove_cgroup(self, container: str) -> None:
        """Removes the cgroup of a container that was deleted, with whatever runs in it still.

        The runtime has done so, unless it was killed before it noted down what it made. Only a
        cgroup named for the container is taken for its own.
        """
        try:
            spec = await blocking.call(bundle.read_config, self.bundles / container)
        except (FileNotFoundError, errors.DataLoss):
            return  # nothing was created from it
        path = str(spec.get("linux", {}).get("cgroupsPath", ""))
        if path.startswith("/") and container in os.path.basename(path):
            await self._cgroups.remove(path, timeout=CGROUP_TIMEOUT, kill=True)

    async def features(self, handler: Handler) -> Features | None:
        """What a handler's shim says of itself and its OCI runtime; None for shims before 2.0.

        Raises:
            NotFound, InvalidArgument: no such shim binary.
        """
        binary = await blocking.call(find_binary_at, handler.shim, self._binary_path)
        info = await self._launcher.info(binary, handler.task_options())
        return features(info) if info is not None else None

    async def is_current(self, shim: Shim) -> bool:
        """Whether a shim was started from the file that would be started now.

        Raises:
            NotFound, InvalidArgument: there is none to start.
        """
        binary = await blocking.call(find_binary_at, shim.handler.shim, self._binary_path)
        started = os.readlink(f"/proc/{shim.pid}/exe")
        return binary == shim.record.binary and not started.endswith(" (deleted)")

    async def close(self) -> None:
        """Lets go of all shims, which run on; the next process's `recover` finds them."""
        for task in [*self._starting.values(), *self._stopping.values()]:
            await asyncio.wait([task])
        for task in list(self._watching.values()):
            task.cancel()
        await asyncio.gather(*self._watching.values(), return_exceptions=True)
        for shim in list(self._shims.values()):
            await shim.close()
        self._shims.clear()


def _forget(tasks: dict[str, asyncio.Task[T]], group: str, done: asyncio.Task[T]) -> None:
    """Takes a finished task out; its error was for those who waited, if anyone still did."""
    if tasks.get(group) is done:
        del tasks[group]
    if not done.cancelled():
        done.exception()


def _proved(path: Path, record: Record) -> tuple[PidFd, Record]:
    """A shim's process, and its record with that in it, which is written; blocks."""
    pidfd, started = prove(record.pid, path, record)
    try:
        record = msgspec.structs.replace(record, start_time=started)
        bundle.write_record(path, record)
    except BaseException:
        pidfd.close()
        raise
    return pidfd, record


def find_binary_at(shim: str, path: str | None) -> str:
    return find_binary(shim, path=path)
