"""What a new server finds of the containers of the one before it.

The record says how far each was brought, its shim says how it is now; the shim is right. Every
container is looked at by itself, with the deadlines of the calls to its shim: one that can't be
recovered is said so and holds up no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri.errors import DeadlineExceeded, Error, NotFound, Unavailable, one_line
from zos_cri.linux import blocking
from zos_cri.log import get_log
from zos_cri.shim import bundle as bundles
from zos_cri.shim.manager import DeadShim, Shim, ShimManager
from zos_cri.shim.task import Exit, TaskState, TaskStatus
from zos_cri.store.lifecycle import CONTAINER, ContainerEvent, ContainerState, advance
from zos_cri.store.model import EXIT_CODE_UNKNOWN, ContainerStatus

if TYPE_CHECKING:
    from zos_cri.module.containers import Containers
    from zos_cri.module.types import ContainerRecord

_log = get_log(__name__)

ASK_TIMEOUT: Final = 5.0  # of a shim after a restart; one that takes longer is asked again later
ASK_AGAIN: Final = 10.0  # seconds between questions to a shim that doesn't answer
EXITS_TIMEOUT: Final = 3.0  # the end of the output is waited for, up to 2 s, before an exit is told
# What a runtime's first process in a container ends with where the program can't begin: runc's and
# crun's with 1, runc's from 1.2 on with 255.
_RUNTIMES_CODES: Final = (1, 255)
# What a shim, and nobody else, knows the truth of.
_OPEN: Final = (ContainerState.STARTING, ContainerState.RUNNING, ContainerState.UNKNOWN)


async def recover(containers: Containers, shims: ShimManager) -> None:
    """Brings every record in line with what its shim says; nothing else may change them by then."""
    found = await shims.recover()
    dead = {shim.group: shim for shim in found if isinstance(shim, DeadShim)}
    await asyncio.gather(
        *(_recover(containers, record, shims, dead.get(record.meta.group)) for record in containers)
    )
    # Those without a shim have ended, and are told so from the beginning.
    gone = [record.meta.id for record in containers if shims.get(record.meta.group) is None]
    with contextlib.suppress(TimeoutError, DeadlineExceeded):
        async with asyncio.timeout(EXITS_TIMEOUT):
            await asyncio.gather(*map(containers.exits.settled, gone))


async def _recover(
    containers: Containers, record: ContainerRecord, shims: ShimManager, dead: DeadShim | None
) -> None:
    id_ = record.meta.id
    shim = shims.get(record.meta.group)
    try:
        match record.status.state:
            case ContainerState.CREATING:
                await blocking.call(bundles.remove, Path(record.meta.bundle))
                owner = containers.owner(record.meta.owner)
                if owner is not None:
                    await owner.removed(record.meta)
                await containers.table.delete(id_)
            case ContainerState.CREATED:
                if not await _has_bundle(record):
                    await _lost(containers, id_)
            case ContainerState.REMOVING:
                await containers.release(record.meta)
            case ContainerState.EXITED:
                if shim is not None:
                    await containers.exits.delete_task(record.meta, shim, kill=True)
            case _:
                await _recover_task(containers, record, shim, dead)
    except (Error, OSError) as error:
        _log.error("container not recovered", container=id_, error=one_line(error))


async def _recover_task(
    containers: Containers, record: ContainerRecord, shim: Shim | None, dead: DeadShim | None
) -> None:
    id_ = record.meta.id
    exits = containers.exits
    if shim is None:
        exit_ = dead.exits.get(id_) if dead is not None else None
        if record.status.state is ContainerState.STARTING and exit_ is None:
            await _undo_start(containers, record)
            if not await _has_bundle(record):
                await _lost(containers, id_)
            return
        exits.started(id_)
        exits.handle(id_, exit_, None)
        return
    try:
        if shim.silent:  # it has had its time
            raise DeadlineExceeded(f"shim for {shim.group}: no answer")
        state = await shim.task.state(id_, timeout=ASK_TIMEOUT)
    except NotFound:
        await _no_task(containers, record, shim)
        return
    except Error as error:
        _log.warning("shim doesn't answer", container=id_, error=one_line(error))
        if record.status.state is not ContainerState.STARTING:
            await _change(containers, id_, ContainerEvent.LOST)
        containers.later(_ask_again(containers, record, shim))
        return
    if state.status is TaskStatus.CREATED and not await containers.has_begun(
        record.meta, state.pid
    ):
        # Create was done, Start wasn't: nothing of the container has run.
        await exits.delete_task(record.meta, shim, kill=True)
        await _undo_start(containers, record)
        return
    if await _cut_off(containers, record, state):
        await containers.start_failed(
            record.meta,
            Unavailable(
                f"its start was cut off with the server, then it ended: {state.exit_status}"
            ),
        )
        return
    if state.status in (TaskStatus.PAUSED, TaskStatus.PAUSING):
        await _unpause(id_, shim)
    await _running(containers, record, pid=state.pid)
    if state.status is TaskStatus.STOPPED:
        exits.handle(id_, Exit(state.exit_status, state.exited_at_ns), shim)
    else:
        exits.watch(id_, shim)
    exits.started(id_)


async def _cut_off(containers: Containers, record: ContainerRecord, state: TaskState) -> bool:
    """Whether a start was killed with the server amid letting the program begin.

    Then the exit is the runtime's, or that of a program that was let go in the last instant. Which
    of them can't be known where the code is one that runtimes end with; any other is the program's.
    """
    return (
        record.status.state is ContainerState.STARTING
        and state.status is TaskStatus.STOPPED
        and state.exit_status in _RUNTIMES_CODES
        and await containers.start_was_cut_off(record.meta)
    )


async def _unpause(id_: str, shim: Shim) -> None:
    """Nobody but a server that was capturing the container has paused it, and that one is gone."""
    _log.warning("paused container goes on", container=id_)
    try:
        await shim.task.resume(id_)
    except Error as error:
        _log.error("container stays paused", container=id_, error=one_line(error))


async def _undo_start(containers: Containers, record: ContainerRecord) -> None:
    await _change(containers, record.meta.id, ContainerEvent.START_UNDONE)
    owner = containers.owner(record.meta.owner)
    if owner is not None:
        await owner.start_undone(record)


async def _no_task(containers: Containers, record: ContainerRecord, shim: Shim) -> None:
    """The shim knows nothing of the container: it was never created, or deleted unrecorded."""
    if record.status.state is ContainerState.STARTING:
        await containers.discard(record.meta)
        await _undo_start(containers, record)
        return
    containers.exits.started(record.meta.id)
    containers.exits.handle(record.meta.id, None, shim)


async def _ask_again(containers: Containers, record: ContainerRecord, shim: Shim) -> None:
    """Goes on asking a shim that runs but didn't answer, until it does or is gone."""
    id_ = record.meta.id
    while shim.alive and not await shim.gone(ASK_AGAIN):
        try:
            await shim.task.state(id_, timeout=ASK_TIMEOUT)
        except NotFound:
            pass
        except Error:
            continue
        _log.info("shim answers again", container=id_)
        shim.silent = False
        break
    current = containers.get(id_)
    if current is None or current.status.state not in _OPEN:
        return
    if shim.alive:
        await _recover_task(containers, current, shim, None)
    elif current.status.state is ContainerState.STARTING:
        containers.exits.forget(id_)  # no start of ours is under way whose end would be told
        await _recover_task(containers, current, None, None)
    # Of the others `shim_lost` tells.


async def _running(containers: Containers, record: ContainerRecord, *, pid: int) -> None:
    started_at = record.status.started_at or await _created_at(record)

    def change(status: ContainerStatus) -> ContainerStatus:
        if status.state is ContainerState.RUNNING:
            return status
        event = (
            ContainerEvent.STARTED
            if status.state is ContainerState.STARTING
            else ContainerEvent.FOUND
        )
        return msgspec.structs.replace(
            status,
            state=advance(CONTAINER, status.state, event),
            pid=pid,
            started_at=status.started_at or started_at,
        )

    await containers.table.note(record.meta.id, change)


async def _change(containers: Containers, id_: str, event: ContainerEvent) -> None:
    await containers.table.note(
        id_,
        lambda status: msgspec.structs.replace(
            status, state=advance(CONTAINER, status.state, event)
        ),
    )


async def _created_at(record: ContainerRecord) -> int:
    """When the runtime had made the task, right before its start; now, where that isn't known."""
    try:
        stat = await blocking.call(Path(record.meta.bundle, bundles.INIT_PID).stat)
    except OSError:
        return time.time_ns()
    return stat.st_mtime_ns


async def _has_bundle(record: ContainerRecord) -> bool:
    return await blocking.call(Path(record.meta.bundle, bundles.CONFIG).exists)


async def _lost(containers: Containers, id_: str) -> None:
    """A created container whose bundle is gone (the host was restarted): it can't be started."""
    await containers.table.note(
        id_,
        lambda status: msgspec.structs.replace(
            status,
            state=advance(CONTAINER, status.state, ContainerEvent.LOST),
            finished_at=time.time_ns(),
            exit_code=EXIT_CODE_UNKNOWN,
            reason="Unknown",
            message="what it was to be started from is gone: the host was restarted",
        ),
    )


async def shim_lost(containers: Containers, dead: DeadShim) -> None:
    """A shim died under us: its containers have ended as `delete` found them."""
    for record in list(containers):
        if record.meta.group != dead.group:
            continue
        state = record.status.state
        if state in (ContainerState.RUNNING, ContainerState.UNKNOWN):
            containers.exits.started(record.meta.id)
        if state in _OPEN:  # one that is being started: told if its start succeeds
            containers.exits.handle(record.meta.id, dead.exits.get(record.meta.id), None)
