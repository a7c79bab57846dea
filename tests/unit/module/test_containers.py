from __future__ import annotations

import asyncio
import json
import threading
import time

import pytest

from tests.fakes.containers import ID, new
from tests.fakes.shim import until
from zos_cri.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from zos_cri.module import ending
from zos_cri.shim import bundle as bundles
from zos_cri.shim.handler import Handler
from zos_cri.store.lifecycle import ContainerState
from zos_cri.store.model import ContainerStatus

TERM, KILL = 15, 9
ENDED = (ContainerState.EXITED, ContainerState.CREATED)


async def in_state(bench, state):
    await bench.put(ContainerStatus(state=state))
    return bench.containers


# ---- create


async def test_create_records_and_writes_the_bundle_and_starts_nothing(bench):
    await bench.create(tags={"a": "b"}, cgroup="/zos/ns/c")
    record = bench.containers.find("c")
    assert record.status.state is ContainerState.CREATED
    assert record.meta.tags == {"a": "b"}
    config = json.loads((bench.shims.bundles / ID / "config.json").read_bytes())
    assert config["annotations"] == {"io.kubernetes.cri.sandbox-id": "pod"}
    assert bench.shims.calls == bench.tasks.calls == []
    assert bench.told() == ["created"]


async def test_create_refuses_a_handler_whose_shims_want_a_pod(bench):
    machine = Handler(name="machine", sandboxer="shim")
    bench.containers._handlers = {"machine": machine}
    with pytest.raises(FailedPrecondition, match=r'"machine": its shims hold .* only in sandboxes'):
        await bench.create(handler="machine", group=ID)
    assert list(bench.db.containers) == []
    await bench.create(handler="machine", group="pod")


async def test_create_refuses_an_unknown_handler_and_a_taken_name(bench):
    with pytest.raises(InvalidArgument, match='no runtime handler "other"'):
        await bench.create(handler="other")
    await bench.create(name="web")
    with pytest.raises(AlreadyExists, match="ns/web"):
        await bench.create("d" * 64, name="web")
    assert [path.name for path in bench.shims.bundles.iterdir()] == [ID]


async def test_a_create_that_fails_leaves_nothing(bench):
    with pytest.raises(TypeError, match="object"):
        await bench.create(spec={"process": object()})
    assert len(bench.containers.table) == 0
    assert list(bench.shims.bundles.iterdir()) == []
    assert bench.told() == []


async def test_a_start_is_announced_with_the_container(bench, monkeypatch):
    announced = []
    monkeypatch.setattr(bench.containers, "soon", lambda: announced.append(len(bench.told())))
    await bench.create()
    assert announced == [0]  # before anything is made: the kernel takes its time


# ---- start


async def test_start_joins_the_groups_shim_and_asks_wait_before_the_start(bench):
    await bench.run()
    status = bench.status()
    assert (status.state, status.pid) == (ContainerState.RUNNING, 1001)
    assert time.time_ns() - status.started_at < 60e9
    assert bench.shims.calls == [("start", "pod")]
    calls = [call[0] for call in bench.tasks.calls]
    assert calls.index("create") < calls.index("start")
    assert bench.owner.calls == [("starting", ID), ("attaching", ID), ("task_created", ID)]
    assert bench.told() == ["created", "started"]
    assert bench.metric(
        "zos_cri_lifecycle_stage_duration_seconds_count", operation="start_container", stage="start"
    )


async def test_start_is_joined_while_under_way_and_refused_afterwards(bench):
    await bench.create()
    gate = bench.tasks.hold("create")
    starts = [asyncio.create_task(bench.containers.start(ID)) for _ in range(2)]
    await until(lambda: bench.tasks.count("create"))
    gate.set()
    await asyncio.gather(*starts)
    assert bench.tasks.count("create") == 1
    with pytest.raises(FailedPrecondition, match=f"container {ID}: start is not possible while"):
        await bench.containers.start(ID)


async def test_start_goes_on_without_its_caller(bench):
    await bench.create()
    gate = bench.tasks.hold("create")
    start = asyncio.create_task(bench.containers.start(ID))
    await until(lambda: bench.tasks.count("create"))
    start.cancel()
    await asyncio.gather(start, return_exceptions=True)
    gate.set()
    await until(lambda: bench.status().state is ContainerState.RUNNING)


@pytest.mark.parametrize(
    "state", [s for s in ContainerState if s is not ContainerState.CREATED], ids=str
)
async def test_start_is_refused_in_every_other_state(bench, state):
    containers = await in_state(bench, state)
    with pytest.raises(FailedPrecondition, match=f"while {state}"):
        await containers.start(ID)
    assert bench.status().state is state


async def test_start_of_what_is_not_there(bench):
    with pytest.raises(NotFound):
        await bench.containers.start("f")
    assert not bench.containers._locks


async def test_the_task_is_created_while_its_output_is_attached_and_started_afterwards(bench):
    await bench.create()
    created, attached = bench.tasks.hold("create"), asyncio.Event()
    bench.owner.waits["attaching"] = attached
    start = asyncio.create_task(bench.containers.start(ID))
    await until(lambda: bench.tasks.count("create"))
    # Asked for first: else a shim might wait for a reader that a killed server never asked for.
    assert bench.owner.calls[-1] == ("attaching", ID)
    created.set()
    await asyncio.sleep(0.01)
    assert not bench.tasks.count("start")
    attached.set()
    await start
    assert bench.tasks.count("start") == 1


@pytest.mark.parametrize("first", ["create", "attaching"])
async def test_of_a_start_that_fails_twice_at_once_nothing_is_left(bench, first):
    await bench.create()
    bench.tasks.fail("create", Unavailable("no task"))
    bench.owner.failures["attaching"] = Unavailable("no log")
    gate = asyncio.Event()
    if first == "create":
        bench.owner.waits["attaching"] = gate
    else:
        gate = bench.tasks.hold("create")
    start = asyncio.create_task(bench.containers.start(ID))
    await asyncio.sleep(0.01)
    assert not start.done()  # neither is taken back while it is being made
    gate.set()
    with pytest.raises(Unavailable, match="no log"):
        await start
    assert bench.tasks.tasks == {}
    assert bench.status().message == "no log"


@pytest.mark.parametrize("stage", ["shim", "create", "start", "starting", "attaching"])
async def test_a_start_that_fails_is_told_as_an_exit(bench, stage):
    await bench.create()
    error = Unavailable("runc: it\nis broken")
    if stage == "shim":
        bench.shims.fail("start", error)
    elif stage in ("starting", "attaching"):
        bench.owner.failures[stage] = error
    else:
        bench.tasks.fail(stage, error)
    with pytest.raises(Unavailable, match="is broken"):
        await bench.containers.start(ID)
    status = bench.status()
    assert (status.state, status.exit_code) == (ContainerState.EXITED, 128)
    assert (status.reason, status.message) == ("StartError", "runc: it is broken")
    assert status.started_at == status.finished_at > 0
    assert bench.tasks.tasks == {}
    assert bench.owner.calls[-1] == ("exited", ID)
    assert bench.told() == ["created", "stopped"]
    await bench.containers.remove(ID)


async def test_a_failed_start_is_told_even_where_its_task_cannot_be_deleted(bench):
    await bench.create()
    bench.tasks.fail("start", Unavailable("broken"))
    bench.tasks.fail("delete", DeadlineExceeded("hangs"))
    with pytest.raises(Unavailable, match="broken"):
        await bench.containers.start(ID)
    assert bench.status().exit_code == 128
    await bench.containers.remove(ID)
    assert bench.tasks.tasks == {}


async def test_an_exit_before_the_starts_answer_is_told_after_it(bench):
    await bench.create()
    bench.tasks.exit_at_start = 7
    await bench.containers.start(ID)
    await until(lambda: bench.status().state is ContainerState.EXITED)
    status = bench.status()
    assert (status.exit_code, status.reason, status.pid) == (7, "Error", 0)
    await bench.containers.exits.settled(ID)
    assert bench.told() == ["created", "started", "stopped"]


# ---- stop


async def test_stop_sends_the_containers_own_signal(bench):
    await bench.run(stop_signal=2)
    await bench.containers.stop(ID)
    assert bench.status().exit_code == 130
    assert bench.tasks.count("kill") == 1


async def test_stop_escalates_to_sigkill(bench):
    bench.tasks.ignored = {TERM}
    await bench.run()
    await bench.containers.stop(ID, timeout=0.05)
    assert [call for call in bench.tasks.calls if call[0] == "kill"] == [
        ("kill", ID, TERM),
        ("kill", ID, KILL),
    ]
    assert bench.status().exit_code == 137


async def test_stop_without_time_kills_at_once_and_all_where_there_is_no_pid_namespace(bench):
    await bench.run(kill_all=True)
    await bench.containers.stop(ID, timeout=0)
    assert [call for call in bench.tasks.calls if call[0] == "kill"] == [("kill", ID, KILL, "all")]


async def test_a_second_stop_shortens_the_first_and_never_lengthens_it(bench):
    bench.tasks.ignored = {TERM}
    await bench.run()
    first = asyncio.create_task(bench.containers.stop(ID, timeout=30))
    await until(lambda: bench.tasks.count("kill"))
    second = asyncio.create_task(bench.containers.stop(ID, timeout=0.05))
    third = asyncio.create_task(bench.containers.stop(ID, timeout=60))
    async with asyncio.timeout(5):
        await asyncio.gather(first, second, third)
    assert bench.tasks.count("kill", ID, TERM) == bench.tasks.count("kill", ID, KILL) == 1


async def test_a_caller_that_leaves_takes_back_no_kill(bench):
    bench.tasks.ignored = {TERM}
    await bench.run()
    stop = asyncio.create_task(bench.containers.stop(ID, timeout=0.1))
    await until(lambda: bench.tasks.count("kill"))
    stop.cancel()
    await until(lambda: bench.status().state is ContainerState.EXITED)
    assert bench.status().exit_code == 137


async def test_what_outlives_sigkill_is_said_so_and_can_be_stopped_again(bench, monkeypatch):
    monkeypatch.setattr(ending, "KILL_TIMEOUT", 0.05)
    bench.tasks.ignored = {TERM, KILL}
    await bench.run()
    with pytest.raises(DeadlineExceeded, match=r"still there 0\.05 s after SIGKILL"):
        await bench.containers.stop(ID, timeout=0)
    bench.tasks.ignored = set()
    await bench.containers.stop(ID, timeout=5)
    assert bench.status().exit_code == 128 + TERM  # with a time of its own


async def test_a_stop_that_failed_does_not_take_the_next_ones_time(bench):
    await bench.run()
    bench.tasks.fail("kill", Unavailable("no answer"))
    with pytest.raises(Unavailable):
        await bench.containers.stop(ID, timeout=0.01)
    await asyncio.sleep(0.02)
    await bench.containers.stop(ID, timeout=5)
    assert bench.tasks.count("kill", ID, KILL) == 0


async def test_stop_of_a_process_that_is_gone_asks_how_it_ended(bench):
    await bench.run()
    gate = bench.tasks.hold("wait")  # nobody tells of it
    bench.containers.exits.watch(ID, bench.shims.get("pod"))
    bench.tasks.end(ID, 3)
    await bench.containers.stop(ID)
    assert (bench.status().exit_code, bench.status().reason) == (3, "Error")
    gate.set()


@pytest.mark.parametrize(
    "state",
    [ContainerState.CREATED, ContainerState.EXITED, ContainerState.REMOVING],
    ids=str,
)
async def test_stop_of_what_does_not_run_does_nothing(bench, state):
    containers = await in_state(bench, state)
    await containers.stop(ID)
    assert bench.tasks.calls == []
    with pytest.raises(NotFound):
        await containers.stop("f" * 64)


async def test_stop_waits_for_a_start_under_way(bench):
    await bench.create()
    gate = bench.tasks.hold("create")
    start = asyncio.create_task(bench.containers.start(ID))
    await until(lambda: bench.tasks.count("create"))
    stop = asyncio.create_task(bench.containers.stop(ID))
    await asyncio.sleep(0.02)
    assert not stop.done()
    gate.set()
    await asyncio.gather(start, stop)
    assert bench.status().state is ContainerState.EXITED


async def test_stop_where_the_shim_is_gone(bench):
    containers = await in_state(bench, ContainerState.RUNNING)
    with pytest.raises(FailedPrecondition, match="its shim is gone"):
        await containers.stop(ID)


# ---- signal, update


async def test_signals_are_for_what_runs(bench):
    await bench.create()
    with pytest.raises(FailedPrecondition, match="is created, not running"):
        await bench.containers.signal(ID, 1)
    await bench.containers.start(ID)
    bench.tasks.ignored = {1}
    await bench.containers.signal(ID, 1)
    assert bench.tasks.count("kill", ID, 1) == 1
    assert bench.containers.shim(ID) is bench.shims.get("pod")


def larger(spec):
    return {**spec, "linux": {"resources": {"memory": {"limit": 7}}}}


async def test_update_changes_spec_task_and_what_is_reported(bench):
    await bench.run()
    await bench.containers.update(ID, larger, lambda: b"7")
    assert bench.tasks.resources[ID] == {"memory": {"limit": 7}}
    assert b'"limit":7' in (bench.shims.bundles / ID / "config.json").read_bytes()
    assert bench.status().resources == b"7"


async def test_update_of_a_created_container_is_in_its_spec_only(bench):
    await bench.create()
    await bench.containers.update(ID, larger, lambda: b"7")
    assert bench.tasks.calls == []
    assert b'"limit":7' in (bench.shims.bundles / ID / "config.json").read_bytes()


async def test_what_else_an_update_does_is_for_what_runs_and_may_fail(bench):
    specs = []

    async def also(spec):
        specs.append(spec)
        raise Unavailable("not now")

    await bench.create()
    await bench.containers.update(ID, larger, lambda: b"7", also)
    assert specs == []
    await bench.containers.start(ID)
    with pytest.raises(Unavailable):
        await bench.containers.update(ID, larger, lambda: b"8", also)
    assert specs[0]["linux"] == {"resources": {"memory": {"limit": 7}}}
    assert bench.status().resources == b"7"


async def test_an_update_that_is_refused_changes_nothing(bench):
    await bench.run()
    before = (bench.shims.bundles / ID / "config.json").read_bytes()
    bench.tasks.fail("update", Unavailable("runc says no"))
    with pytest.raises(Unavailable):
        await bench.containers.update(ID, larger, lambda: b"7")
    assert (bench.shims.bundles / ID / "config.json").read_bytes() == before
    assert bench.status().resources == b""


async def test_an_update_goes_on_without_its_caller(bench):
    await bench.run()
    gate = bench.tasks.hold("update")
    update = asyncio.create_task(bench.containers.update(ID, larger, lambda: b"7"))
    await until(lambda: bench.tasks.count("update"))
    update.cancel()
    gate.set()
    await until(lambda: bench.status().resources == b"7")


async def test_no_update_of_what_has_ended(bench):
    containers = await in_state(bench, ContainerState.EXITED)
    with pytest.raises(FailedPrecondition, match="is exited"):
        await containers.update(ID, larger, lambda: b"7")


# ---- remove


async def test_remove_of_a_running_container_kills_it_and_leaves_nothing(bench):
    bench.tasks.ignored = {TERM}
    await bench.run()
    await bench.containers.remove(ID)
    assert bench.tasks.tasks == {}
    assert list(bench.shims.bundles.iterdir()) == []
    assert len(bench.containers.table) == 0
    assert bench.owner.calls[-1] == ("removed", ID)
    assert bench.told() == ["created", "started", "stopped", "deleted"]
    assert not bench.containers._locks
    assert not bench.containers.exits._watches
    assert bench.shims.get("pod") is not None  # it is the pod's
    await bench.containers.remove(ID)


async def test_the_shim_of_a_group_of_its_own_goes_with_it(bench):
    await bench.run(group=ID)
    await bench.containers.remove(ID)
    assert ("stop", ID) in bench.shims.calls
    assert bench.shims.shims == {}


@pytest.mark.parametrize(
    "state",
    [
        ContainerState.CREATING,
        ContainerState.CREATED,
        ContainerState.EXITED,
        ContainerState.REMOVING,
    ],
    ids=str,
)
async def test_remove_in_every_state_without_a_process(bench, state):
    containers = await in_state(bench, state)
    await containers.remove(ID)
    assert len(containers.table) == 0


async def test_the_owner_is_told_before_it_is_removed(bench):
    await bench.run()
    bench.tasks.end(ID)
    await bench.containers.remove(ID)
    assert bench.owner.calls[-2:] == [("removing", ID), ("removed", ID)]


async def test_the_owner_may_refuse_a_task_before_it_starts(bench):
    bench.owner.failures["task_created"] = InvalidArgument("not so")
    await bench.create()
    with pytest.raises(InvalidArgument, match="not so"):
        await bench.containers.start(ID)
    status = bench.status()
    assert (status.state, status.reason) == (ContainerState.EXITED, "StartError")
    assert [c[0] for c in bench.tasks.calls if c[0] in ("create", "start")] == ["create"]


async def test_limits_that_are_given_with_it_are_in_its_status(bench):
    await bench.create(resources=b"x")
    assert bench.status().resources == b"x"


async def test_remove_joins_a_remove_and_ends_a_stop(bench):
    bench.tasks.ignored = {TERM}
    await bench.run()
    stop = asyncio.create_task(bench.containers.stop(ID, timeout=60))
    await until(lambda: bench.tasks.count("kill"))
    async with asyncio.timeout(5):
        await asyncio.gather(stop, bench.containers.remove(ID), bench.containers.remove(ID))
    assert bench.told().count("deleted") == 1


@pytest.mark.parametrize("failing", ["delete", "shim", "owner"])
async def test_a_remove_that_failed_is_listed_still_and_goes_on_from_there(bench, failing):
    await bench.run(group=ID)
    bench.tasks.end(ID, 0)
    await until(lambda: bench.status().state is ContainerState.EXITED)
    await bench.containers.exits.settled(ID)
    error = Unavailable("not now")
    if failing == "delete":
        bench.tasks.fail("state", error)
    elif failing == "shim":
        bench.shims.fail("stop", error)
    else:
        bench.owner.failures["removed"] = error
    with pytest.raises(Unavailable, match="not now"):
        await bench.containers.remove(ID)
    assert bench.status().state is ContainerState.REMOVING
    bench.owner.failures.clear()
    await bench.containers.remove(ID)
    assert len(bench.containers.table) == 0
    assert bench.told().count("deleted") == 1


async def test_remove_waits_for_a_create_under_way(bench):
    create = asyncio.create_task(bench.containers.create(new()))
    await until(lambda: len(bench.containers.table))
    await bench.containers.remove(ID)
    await asyncio.gather(create, return_exceptions=True)
    assert len(bench.containers.table) == 0
    assert not any(bench.shims.bundles.glob("*"))


async def test_remove_of_what_could_not_be_created(bench, monkeypatch):
    gate, write = threading.Event(), bundles.write

    def wait_and_write(*args, **kwargs):
        assert gate.wait(5)
        write(*args, **kwargs)

    monkeypatch.setattr(bundles, "write", wait_and_write)
    create = asyncio.create_task(bench.create(spec={"process": object()}))
    await until(lambda: len(bench.containers.table))
    remove = asyncio.create_task(bench.containers.remove(ID))
    await asyncio.sleep(0)
    gate.set()
    await remove
    assert len(bench.containers.table) == 0
    with pytest.raises(TypeError):
        await create


async def test_a_create_goes_on_without_its_caller(bench):
    create = asyncio.create_task(bench.containers.create(new()))
    await until(lambda: len(bench.containers.table))
    create.cancel()
    await until(lambda: bench.status().state is ContainerState.CREATED)


# ---- the end


async def test_close_waits_for_the_steps_under_way_and_leaves_containers_running(bench):
    await bench.run()
    await bench.create("d" * 64)
    gate = bench.tasks.hold("create")
    start = asyncio.create_task(bench.containers.start("d" * 64))
    await until(lambda: bench.tasks.count("create", "d" * 64))
    close = asyncio.create_task(bench.containers.close())
    await asyncio.sleep(0.01)
    assert not close.done()
    gate.set()
    await close
    await start
    assert bench.tasks.running(ID)
    assert bench.tasks.running("d" * 64)


async def test_work_in_the_background_that_fails_is_logged(bench, caplog):
    async def fail():
        raise Unavailable("of no consequence")

    bench.containers.later(fail())
    await until(lambda: "work in the background failed" in caplog.text)
