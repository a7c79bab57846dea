from __future__ import annotations

import asyncio
import os
from typing import NamedTuple

import msgspec
import pytest

from tests.fakes.containers import HANDLER, ID
from tests.fakes.shim import until
from zos_cri.errors import DeadlineExceeded, NotFound, Unavailable
from zos_cri.module import recovery
from zos_cri.shim import bundle as bundles
from zos_cri.shim.manager import DeadShim
from zos_cri.shim.task import Exit, TaskStatus
from zos_cri.store.lifecycle import ContainerState
from zos_cri.store.model import ContainerStatus, NotedExit

C = ContainerState
EXIT_AT = 1_700_000_000_000_000_000
GONE = "gone"  # no shim, no record of one: the host was restarted
LOST = "lost"  # the shim is dead; `delete` told of an exit
UNKNOWN = "no task"  # the shim lives and doesn't know the container


class Case(NamedTuple):
    """What was recorded, what the shim says, what becomes of it."""

    recorded: C
    shim: str | TaskStatus
    state: C | None  # None = the record is gone
    exit_code: int = 0
    reason: str = ""


CASES = [
    Case(C.CREATING, GONE, None),
    Case(C.CREATING, UNKNOWN, None),
    Case(C.CREATED, UNKNOWN, C.CREATED),
    Case(C.CREATED, GONE, C.EXITED, 255, "Unknown"),
    Case(C.STARTING, GONE, C.EXITED, 255, "Unknown"),
    Case(C.STARTING, LOST, C.EXITED, 137, "Error"),
    Case(C.STARTING, UNKNOWN, C.CREATED),
    Case(C.STARTING, TaskStatus.CREATED, C.CREATED),
    Case(C.STARTING, TaskStatus.RUNNING, C.RUNNING),
    Case(C.STARTING, TaskStatus.STOPPED, C.EXITED, 5, "Error"),
    Case(C.RUNNING, GONE, C.EXITED, 255, "Unknown"),
    Case(C.RUNNING, LOST, C.EXITED, 137, "Error"),
    Case(C.RUNNING, UNKNOWN, C.EXITED, 255, "Unknown"),
    Case(C.RUNNING, TaskStatus.RUNNING, C.RUNNING),
    Case(C.RUNNING, TaskStatus.PAUSED, C.RUNNING),
    Case(C.RUNNING, TaskStatus.STOPPED, C.EXITED, 5, "Error"),
    Case(C.UNKNOWN, GONE, C.EXITED, 255, "Unknown"),
    Case(C.UNKNOWN, LOST, C.EXITED, 137, "Error"),
    Case(C.UNKNOWN, UNKNOWN, C.EXITED, 255, "Unknown"),
    Case(C.UNKNOWN, TaskStatus.RUNNING, C.RUNNING),
    Case(C.UNKNOWN, TaskStatus.STOPPED, C.EXITED, 5, "Error"),
    Case(C.EXITED, GONE, C.EXITED, 4, "Error"),
    Case(C.EXITED, TaskStatus.STOPPED, C.EXITED, 4, "Error"),
    Case(C.EXITED, TaskStatus.RUNNING, C.EXITED, 4, "Error"),
    Case(C.REMOVING, GONE, None),
    Case(C.REMOVING, TaskStatus.STOPPED, None),
    Case(C.REMOVING, TaskStatus.RUNNING, None),
]
ENDED = {"exit_code": 4, "reason": "Error", "started_at": 1, "finished_at": 2}


async def remember(bench, recorded, **fields):
    status = ContainerStatus(state=recorded)
    if recorded is C.EXITED:
        status = msgspec.structs.replace(status, **ENDED)
    if recorded in (C.RUNNING, C.UNKNOWN):
        status = msgspec.structs.replace(status, pid=77, started_at=1)
    await bench.put(msgspec.structs.replace(status, **fields))


def bundle(bench):
    bundles.create(bench.shims.bundles, ID, group="pod")


def arrange(bench, shim):
    if shim is not GONE:
        bundle(bench)
    if shim is LOST:
        bench.shims.dead = [DeadShim("pod", HANDLER, 1, {ID: Exit(137, EXIT_AT)})]
    elif shim is not GONE:
        bench.shims.add("pod", HANDLER)
    if isinstance(shim, TaskStatus):
        task = bench.tasks.add(ID, status=shim, pid=78)
        task.exit = Exit(5, EXIT_AT)


async def recover(bench):
    await recovery.recover(bench.containers, bench.shims)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.recorded}-{c.shim}".replace(" ", "_"))
async def test_the_shim_is_right(bench, case):
    await remember(bench, case.recorded)
    arrange(bench, case.shim)
    await recover(bench)
    record = bench.containers.get(ID)
    if case.state is None:
        assert record is None
        assert bench.owner.calls == [("removed", ID)]
        assert bench.tasks.tasks == {}
        assert not (bench.shims.bundles / ID).exists()
        return
    await until(lambda: bench.status().state is case.state)
    status = bench.status()
    assert (status.exit_code, status.reason) == (case.exit_code, case.reason)
    assert (status.finished_at > 0) == (case.state is C.EXITED)
    assert bool(status.pid) == (case.state is C.RUNNING)
    if case.state is C.RUNNING:
        bench.tasks.end(ID, 6)
        await until(lambda: bench.status().state is C.EXITED)
        assert bench.status().exit_code == 6
    elif isinstance(case.shim, TaskStatus):
        await until(lambda: not bench.tasks.tasks)
    undone = case.recorded is C.STARTING and (case.state is C.CREATED or case.shim is GONE)
    assert (("start_undone", ID) in bench.owner.calls) == undone


async def test_the_true_time_of_an_exit_is_kept(bench):
    await remember(bench, C.RUNNING)
    arrange(bench, TaskStatus.STOPPED)
    await recover(bench)
    await until(lambda: bench.status().state is C.EXITED)
    assert bench.status().finished_at == EXIT_AT
    assert bench.status().started_at == 1


async def test_a_start_that_was_not_recorded_was_when_its_task_was_made(bench):
    await remember(bench, C.STARTING)
    arrange(bench, TaskStatus.STOPPED)
    made = bench.shims.bundles / ID / "init.pid"
    made.touch()
    os.utime(made, ns=(EXIT_AT - 5, EXIT_AT - 5))
    await recover(bench)
    await until(lambda: bench.status().state is C.EXITED)
    assert (bench.status().started_at, bench.status().finished_at) == (EXIT_AT - 5, EXIT_AT)


@pytest.mark.parametrize("recorded", [0, EXIT_AT + 1])
async def test_nothing_ends_before_it_starts(bench, recorded):
    await remember(bench, C.RUNNING, started_at=recorded)
    arrange(bench, LOST)
    await recover(bench)
    await until(lambda: bench.status().state is C.EXITED)
    assert (bench.status().started_at, bench.status().finished_at) == (EXIT_AT, EXIT_AT)


@pytest.mark.parametrize("shim", [GONE, LOST, UNKNOWN, TaskStatus.STOPPED])
async def test_an_exit_that_was_noted_counts_whatever_the_shim_says(bench, shim):
    await remember(bench, C.RUNNING, noted_exit=NotedExit(9, 12345, 1))
    arrange(bench, shim)
    await recover(bench)
    await until(lambda: bench.status().state is C.EXITED)
    status = bench.status()
    assert (status.exit_code, status.finished_at, status.reason) == (9, 12345, "OOMKilled")


@pytest.mark.parametrize("code", [1, 255])
async def test_a_start_that_was_cut_off_has_failed(bench, code):
    await remember(bench, C.STARTING)
    arrange(bench, UNKNOWN)
    bench.tasks.add(ID, status=TaskStatus.STOPPED, pid=78).exit = Exit(code, EXIT_AT)
    bench.shims.cut_off.add(ID)
    await recover(bench)
    status = bench.status()
    assert (status.state, status.exit_code, status.reason) == (C.EXITED, 128, "StartError")
    assert status.message.endswith(f"its start was cut off with the server, then it ended: {code}")
    assert bench.tasks.tasks == {}


@pytest.mark.parametrize(
    ("recorded", "code"), [(C.STARTING, 0), (C.STARTING, 43), (C.RUNNING, 1), (C.RUNNING, 5)]
)
async def test_an_exit_that_can_only_be_the_programs_is_told_as_such(bench, recorded, code):
    await remember(bench, recorded)
    arrange(bench, UNKNOWN)
    bench.tasks.add(ID, status=TaskStatus.STOPPED, pid=78).exit = Exit(code, EXIT_AT)
    bench.shims.cut_off.add(ID)
    await recover(bench)
    await until(lambda: bench.status().state is C.EXITED)
    assert bench.status().exit_code == code


async def test_a_program_that_runs_is_not_started_a_second_time(bench):
    """Its start was cut off when the runtime had let it go, and its shim knows nothing of that."""
    await remember(bench, C.STARTING)
    arrange(bench, UNKNOWN)
    bench.tasks.add(ID, status=TaskStatus.CREATED, pid=78)
    bench.shims.begun.add(78)
    await recover(bench)
    assert (bench.status().state, bench.status().pid) == (C.RUNNING, 78)
    bench.tasks.end(ID, 5)
    await until(lambda: bench.status().state is C.EXITED)
    assert bench.status().exit_code == 5


async def test_a_start_that_was_undone_can_be_asked_again(bench):
    await remember(bench, C.STARTING)
    arrange(bench, TaskStatus.CREATED)
    await recover(bench)
    assert bench.tasks.tasks == {}
    await bench.containers.start(ID)
    assert bench.tasks.running(ID)


async def test_one_that_cannot_be_recovered_holds_up_no_other(bench, caplog):
    await remember(bench, C.REMOVING)
    bench.owner.failures["removed"] = Unavailable("the disk is gone")
    await bench.put(ContainerStatus(state=C.RUNNING), "d" * 64, group="other")
    await recover(bench)
    await until(lambda: bench.status("d" * 64).state is C.EXITED)
    assert bench.status().state is C.REMOVING
    assert "container not recovered" in caplog.text


# ---- shims that don't answer


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(recovery, "ASK_AGAIN", 0.02)


@pytest.mark.parametrize("recorded", [C.RUNNING, C.STARTING])
async def test_a_shim_that_does_not_answer_is_asked_again(bench, quick, recorded):
    await remember(bench, recorded)
    arrange(bench, TaskStatus.RUNNING)
    bench.tasks.fail("state", DeadlineExceeded("busy"), times=3)
    await recover(bench)
    assert bench.status().state is (C.UNKNOWN if recorded is C.RUNNING else C.STARTING)
    await until(lambda: bench.status().state is C.RUNNING)
    bench.tasks.end(ID, 3)
    await until(lambda: bench.status().state is C.EXITED)


async def test_a_shim_that_was_silent_already_holds_the_recovery_up_no_longer(bench, quick):
    await remember(bench, C.RUNNING)
    arrange(bench, TaskStatus.RUNNING)
    bench.shims.shims["pod"].silent = True
    answers = bench.tasks.hold("state")
    await recover(bench)
    assert bench.status().state is C.UNKNOWN
    answers.set()
    await until(lambda: bench.status().state is C.RUNNING)
    assert not bench.shims.shims["pod"].silent


async def test_a_shim_that_forgot_the_task_meanwhile(bench, quick):
    await remember(bench, C.RUNNING)
    arrange(bench, UNKNOWN)
    bench.tasks.fail("state", Unavailable("busy"))
    await recover(bench)
    await until(lambda: bench.status().state is C.EXITED)
    assert bench.status().reason == "Unknown"


@pytest.mark.parametrize(
    ("recorded", "state"), [(C.RUNNING, C.EXITED), (C.STARTING, C.CREATED)], ids=str
)
async def test_a_shim_that_dies_before_it_answers(bench, quick, recorded, state):
    await remember(bench, recorded)
    arrange(bench, TaskStatus.RUNNING)
    bench.tasks.fail("state", DeadlineExceeded("busy"), times=1000)
    await recover(bench)
    bench.shims.lose("pod")
    await until(lambda: recorded is C.RUNNING or bench.status().state is state)
    await recovery.shim_lost(bench.containers, DeadShim("pod", HANDLER, 1, {ID: Exit(137, 1)}))
    await until(lambda: bench.status().state is state)
    assert bench.status().exit_code == (137 if state is C.EXITED else 0)


async def test_a_container_that_goes_while_its_shim_does_not_answer(bench, quick):
    await remember(bench, C.RUNNING)
    arrange(bench, TaskStatus.RUNNING)
    bench.tasks.fail("state", DeadlineExceeded("busy"))
    await recover(bench)
    await bench.containers.stop(ID, timeout=1)
    assert bench.status().state is C.EXITED
    await bench.containers.remove(ID)
    await asyncio.sleep(0.05)
    with pytest.raises(NotFound):
        bench.containers.find(ID)


# ---- shims that die under us


async def test_the_containers_of_a_lost_shim_have_ended_as_delete_found_them(bench):
    await bench.run()
    await bench.run("d" * 64, name="d")
    await bench.run("e" * 64, name="e", group="other")
    await bench.create("f" * 64, name="f")
    bench.shims.lose("pod")
    dead = DeadShim("pod", HANDLER, 1, {ID: Exit(137, EXIT_AT)})
    await recovery.shim_lost(bench.containers, dead)
    await until(lambda: bench.status(ID).state is bench.status("d" * 64).state is C.EXITED)
    assert (bench.status().exit_code, bench.status().finished_at) == (137, EXIT_AT)
    assert (bench.status("d" * 64).exit_code, bench.status("d" * 64).reason) == (255, "Unknown")
    assert bench.status("e" * 64).state is C.RUNNING
    assert bench.status("f" * 64).state is C.CREATED


async def test_a_shim_that_dies_between_a_start_and_its_record(bench):
    await bench.create()
    gate = bench.tasks.hold("start")
    start = asyncio.create_task(bench.containers.start(ID))
    await until(lambda: bench.tasks.count("start"))
    bench.shims.lose("pod")
    await recovery.shim_lost(bench.containers, DeadShim("pod", HANDLER, 1, {ID: Exit(137, 1)}))
    gate.set()
    await start
    await until(lambda: bench.status().state is C.EXITED)
    assert bench.status().exit_code == 137


async def test_a_shim_that_dies_in_a_start_that_fails(bench):
    await bench.create()
    gate = bench.tasks.hold("start")
    bench.tasks.fail("start", Unavailable("the connection is gone"))
    start = asyncio.create_task(bench.containers.start(ID))
    await until(lambda: bench.tasks.count("start"))
    bench.shims.lose("pod")
    await recovery.shim_lost(bench.containers, DeadShim("pod", HANDLER, 1, {ID: Exit(137, 1)}))
    gate.set()
    with pytest.raises(Unavailable):
        await start
    assert (bench.status().exit_code, bench.status().reason) == (128, "StartError")
