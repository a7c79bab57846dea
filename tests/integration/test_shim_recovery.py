"""What survives a restart of ours, and what happens when a shim dies or hangs: on real shims."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import msgspec
import pytest

from tests.fakes.shim import until
from tests.integration.shim_harness import Harness, shim_processes
from zos_cri import errors
from zos_cri.linux.mount import mounts_below
from zos_cri.linux.spawn import PidFd, start_time
from zos_cri.shim import bundle, processes
from zos_cri.shim.manager import DeadShim, Shim
from zos_cri.shim.task import TaskStatus

pytestmark = [pytest.mark.root, pytest.mark.runtime]


async def running(harness: Harness, args: list[str] | None = None) -> tuple[Shim, str, int]:
    """A group with one started container."""
    shim = await harness.manager.start(harness.new_group(), harness.handler)
    container = await harness.create(shim, args or ["sleep", "100"])
    pid = await shim.task.start(container)
    return shim, container, pid


async def test_a_container_runs_on_through_a_restart(harness: Harness) -> None:
    before, container, pid = await running(harness)
    started = start_time(pid)
    (shim,) = await harness.restart()
    assert isinstance(shim, Shim)
    assert shim is harness.manager.get(before.group)
    assert (shim.pid, shim.version, shim.address) == (before.pid, before.version, before.address)
    state = await shim.task.state(container)
    assert (state.status, state.pid) == (TaskStatus.RUNNING, pid)
    assert start_time(pid) == started
    assert await harness.manager.start(shim.group, harness.handler) is shim
    await harness.remove(shim, container)


async def test_an_exit_while_away_is_told(harness: Harness) -> None:
    _, container, pid = await running(harness)
    await harness.manager.close()
    process = PidFd.open(pid)
    assert process is not None
    with process:
        os.kill(pid, signal.SIGKILL)
        await process.wait(10)
    (found,) = await harness.restart()
    assert isinstance(found, Shim)
    assert (await found.task.wait(container, timeout=10)).status == 137
    assert (await found.task.delete(container)).exited_at_ns > 0


async def test_two_groups_are_recovered_and_the_unwanted_one_stopped(harness: Harness) -> None:
    _, container, _ = await running(harness)
    warm = await harness.manager.start(harness.new_group(), harness.handler)
    shims = await harness.restart()
    assert {shim.group for shim in shims} == set(harness.groups)
    await harness.manager.stop(warm.group)
    assert harness.manager.get(warm.group) is None
    assert shim_processes(warm.group) == []
    assert not warm.bundle.exists()
    shim = harness.manager.get(harness.groups[0])
    assert shim is not None
    await harness.remove(shim, container)


async def test_a_killed_shim_is_lost_and_its_containers_are_cleaned_up(harness: Harness) -> None:
    shim, container, pid = await running(harness)
    waiting = asyncio.create_task(shim.task.wait(container))
    os.kill(shim.pid, signal.SIGKILL)
    await asyncio.wait_for(harness.lost_arrived.wait(), 30)
    with pytest.raises(errors.Unavailable):
        await waiting
    (dead,) = harness.lost
    assert (dead.group, dead.pid, dead.failures) == (shim.group, shim.pid, {})
    assert dead.exits.keys() == {container}
    assert dead.exits[container].status == 137
    assert dead.exits[container].pid == pid
    assert _state(pid) == ""
    assert mounts_below(str(harness.manager.bundles)) == []
    assert harness.manager.get(shim.group) is None
    # the group may have a new shim at once
    another = await harness.manager.start(shim.group, harness.handler)
    assert another.pid != shim.pid


async def test_a_shim_that_died_while_we_were_away(harness: Harness) -> None:
    shim, container, pid = await running(harness)
    process = PidFd.open(shim.pid)
    assert process is not None
    await harness.manager.close()
    with process:
        os.kill(shim.pid, signal.SIGKILL)
        await process.wait(10)
    (dead,) = await harness.restart()
    assert isinstance(dead, DeadShim)
    assert dead.exits[container].status == 137
    assert _state(pid) == ""
    assert harness.lost == []  # told by recover, not twice


async def test_the_exit_code_survives_the_shim(harness: Harness) -> None:
    """Shims from 2.3 on note an exit in the bundle; of older ones it is lost."""
    shim, container, _ = await running(harness, ["sh", "-c", "exit 9"])
    # the event, not Wait's answer: that one comes before the note
    await harness.event(lambda event: event.topic == "/tasks/exit")
    os.kill(shim.pid, signal.SIGKILL)
    await asyncio.wait_for(harness.lost_arrived.wait(), 30)
    assert harness.lost[0].exits[container].status == (9 if harness.version == 3 else 137)


async def test_a_stopped_shim_is_not_lost(harness: Harness) -> None:
    shim, container, pid = await running(harness)
    await suspend(shim.pid)
    try:
        for _ in range(2):
            with pytest.raises(errors.DeadlineExceeded):
                await shim.task.state(container, timeout=0.3)
        assert shim.alive
        assert not harness.lost
        assert _state(pid) == "S"
    finally:
        os.kill(shim.pid, signal.SIGCONT)
    assert (await shim.task.state(container)).pid == pid  # the late answers did no harm
    await harness.remove(shim, container)


async def test_a_stopped_shim_is_recovered_as_it_is(harness: Harness) -> None:
    shim, container, pid = await running(harness)
    await suspend(shim.pid)
    try:
        harness.connect_timeout = 0.3
        (found,) = await harness.restart()
        assert isinstance(found, Shim)
        assert found.alive
        assert _state(pid) == "S"
    finally:
        os.kill(shim.pid, signal.SIGCONT)
    assert (await found.task.state(container)).pid == pid
    await harness.remove(found, container)


async def test_stop_kills_a_shim_that_keeps_its_containers(harness: Harness) -> None:
    shim, _, pid = await running(harness)
    await harness.manager.stop(shim.group)
    assert _state(pid) == ""
    assert shim_processes(shim.group) == []
    assert harness.lost == []


async def test_killed_between_start_and_record(harness: Harness) -> None:
    """A shim that runs, of which the record says only that it was about to be started."""
    shim = await harness.manager.start(harness.new_group(), harness.handler)
    intent = msgspec.structs.replace(shim.record, pid=0, start_time=0, address="", version=0)
    bundle.write_record(shim.bundle, intent)
    (dead,) = await harness.restart()
    assert isinstance(dead, DeadShim)
    assert (dead.group, dead.pid, dead.exits) == (shim.group, 0, {})
    assert shim_processes(shim.group) == []


async def test_a_create_that_was_cut_off_is_discarded(harness: Harness) -> None:
    """The connection goes while runc is at work: it is killed, and leaves its half of the work."""
    shim = await harness.manager.start(harness.new_group(), harness.handler)
    begun, gate = harness.root / "begun", harness.root / "gate"
    os.mkfifo(gate)
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"touch {begun}; read x < {gate}"]}
    creating = asyncio.create_task(
        harness.create(shim, ["sleep", "100"], hooks={"createRuntime": [hook]})
    )
    await until(begun.exists)
    (found,) = await harness.restart()
    with pytest.raises(errors.Unavailable):
        await creating
    assert isinstance(found, Shim)
    gate.write_text("\n")  # the hook, which nobody kills, ends
    (container,) = harness.containers
    with pytest.raises(errors.NotFound):
        await found.task.state(container)
    await harness.manager.discard(shim.group, container)
    await harness.manager.discard(shim.group, container)  # nothing to do any more


async def test_a_start_that_was_cut_off_is_told_from_a_program_that_ended(harness: Harness) -> None:
    shim = await harness.manager.start(harness.new_group(), harness.handler)
    await harness.create(shim, ["sh", "-c", "exit 1"])
    (container,) = harness.containers
    # As a `runc start` that is killed: it has opened the FIFO, and doesn't remove it.
    os.close(os.open(Path(shim.handler.root, "zos", container, "exec.fifo"), os.O_RDONLY))
    assert (await shim.task.wait(container)).status != 0
    assert await harness.manager.start_was_cut_off(shim.group, container)
    await shim.task.delete(container)

    await harness.create(shim, ["sh", "-c", "exit 1"])
    container = harness.containers[-1]
    await shim.task.start(container)
    assert (await shim.task.wait(container)).status == 1
    assert not await harness.manager.start_was_cut_off(shim.group, container)
    await shim.task.delete(container)


async def test_a_program_that_has_begun_is_told_from_a_runtime_that_waits(harness: Harness) -> None:
    shim = await harness.manager.start(harness.new_group(), harness.handler)
    await harness.create(shim, ["sleep", "1000"])
    (container,) = harness.containers
    pid = (await shim.task.state(container)).pid
    assert not await harness.manager.has_begun(shim.group, pid)
    # As a `runc start` that is killed when it has let it go on.
    fifo = os.open(Path(shim.handler.root, "zos", container, "exec.fifo"), os.O_RDONLY)
    assert os.read(fifo, 1) == b"0"
    os.close(fifo)
    async with asyncio.timeout(5):
        while not await harness.manager.has_begun(shim.group, pid):
            await asyncio.sleep(0.001)
    assert (await shim.task.state(container)).status is TaskStatus.CREATED
    await shim.task.kill(container, 9)
    assert (await shim.task.wait(container)).status == 137
    await shim.task.delete(container)
    assert not await harness.manager.has_begun(shim.group, pid)


async def test_shim_and_runtime_are_killed_in_the_midst_of_a_create(harness: Harness) -> None:
    """runc has made a cgroup and the shim a mount, and neither has noted anything down."""
    shim = await harness.manager.start(harness.new_group(), harness.handler)
    begun, gate = harness.root / "begun", harness.root / "gate"
    os.mkfifo(gate)
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"touch {begun}; read x < {gate}"]}
    creating = asyncio.create_task(
        harness.create(shim, ["sleep", "100"], hooks={"createRuntime": [hook]})
    )
    await until(begun.exists)
    runtimes = processes.runs_for(shim.pid, harness.containers[0])
    assert runtimes
    os.kill(shim.pid, signal.SIGKILL)
    for pid in runtimes:
        with contextlib.suppress(ProcessLookupError):  # some die with the shim
            os.kill(pid, signal.SIGKILL)
    gate.write_text("\n")
    with pytest.raises(errors.Unavailable):
        await creating
    await asyncio.wait_for(harness.lost_arrived.wait(), 30)
    assert harness.lost[0].failures == {}


async def test_the_shim_s_log_is_drained_again_after_a_restart(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    shim = await harness.manager.start(harness.new_group(), harness.handler)
    await harness.restart()
    caplog.clear()
    caplog.set_level("DEBUG")
    os.kill(shim.pid, signal.SIGUSR1)  # a shim writes its goroutines' stacks then
    await until(lambda: any("goroutine" in str(getattr(r, "fields", "")) for r in caplog.records))


async def test_a_pid_given_to_another_process_is_no_shim(harness: Harness) -> None:
    shim = await harness.manager.start(harness.new_group(), harness.handler)
    wrong = msgspec.structs.replace(
        shim.record, pid=os.getpid(), start_time=start_time(os.getpid()) + 1
    )
    bundle.write_record(shim.bundle, wrong)
    (dead,) = await harness.restart()
    assert isinstance(dead, DeadShim)
    os.kill(shim.pid, signal.SIGKILL)  # the one that nobody knows of any more


async def suspend(pid: int) -> None:
    """SIGSTOP, and wait until every thread has stopped."""
    os.kill(pid, signal.SIGSTOP)
    threads = f"/proc/{pid}/task"
    await until(
        lambda: all(_state(f"{pid}/task/{thread}") == "T" for thread in os.listdir(threads))
    )


def _state(process: int | str) -> str:
    """A process's or thread's state letter, "" where it is gone; zombies count as gone."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
    return state.replace("Z", "")
