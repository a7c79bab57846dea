from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.fakes.containers import HANDLER, ID, Bench
from tests.fakes.shim import until
from zos_cri.errors import DeadlineExceeded, Internal, Unavailable
from zos_cri.module import exits as exits_module
from zos_cri.shim.task import Exit, TaskStatus
from zos_cri.store.lifecycle import ContainerState
from zos_cri.store.model import ContainerStatus

EXIT_AT = 1_700_000_000_000_000_000


def exited(bench, id_=ID):
    return bench.status(id_).state is ContainerState.EXITED


@pytest.mark.parametrize(
    ("code", "oom", "reason"),
    [
        (0, 0, "Completed"),
        (3, 0, "Error"),
        (137, 0, "Error"),
        (137, 1, "OOMKilled"),
        (0, 2, "OOMKilled"),
    ],
)
async def test_an_exit_is_told_with_its_code_time_and_reason(bench, code, oom, reason):
    bench.oom_kills["/c"] = oom
    await bench.run(cgroup="/c")
    bench.tasks.end(ID, code, at=EXIT_AT)
    await until(lambda: bench.told()[-1] == "stopped")
    status = bench.status()
    assert (status.exit_code, status.reason, status.pid) == (code, reason, 0)
    assert status.finished_at == EXIT_AT
    assert bench.metric("zos_cri_container_exits_total", reason=reason) == 1


SCOPE = "/pod.slice/c.scope"


@pytest.fixture
def impatient(monkeypatch):
    """Shims' events don't come late."""
    monkeypatch.setattr("zos_cri.module.oom.EVENT_TIMEOUT", 0.05)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("code", "killed", "told", "reason"),
    [
        (137, 1, True, "OOMKilled"),
        (0, 1, True, "OOMKilled"),  # a child
        (137, 1, False, "OOMKilled"),  # nobody else kills it
        (3, 1, False, "Error"),  # somebody else's child
        (137, 0, False, "Error"),
        (0, 0, False, "Completed"),
    ],
)
async def test_a_scope_that_is_gone_with_its_count(bench, code, killed, told, reason):
    bench.oom_kills |= {"/pod.slice": 2, "": 7}
    await bench.run(cgroup=SCOPE)
    bench.oom_kills[""] = 8  # another pod's doesn't count
    bench.oom_kills["/pod.slice"] += killed
    if told:
        bench.containers.exits.oom_told(ID)
    bench.containers.exits.oom_told("unknown")
    bench.tasks.end(ID, code)
    await until(lambda: exited(bench))
    assert bench.status().reason == reason


@pytest.mark.usefixtures("impatient")
async def test_a_stopped_container_was_not_killed_for_memory(bench):
    """A stop's SIGKILL, and somebody else's kill: nothing says that they are one."""
    bench.oom_kills |= {"/pod.slice": 0}
    await bench.run(cgroup=SCOPE)
    bench.oom_kills["/pod.slice"] = 1
    bench.containers.exits.shorten(ID, time.monotonic())
    bench.tasks.end(ID, 137)
    await until(lambda: exited(bench))
    assert bench.status().reason == "Error"


async def test_a_scope_whose_count_is_there_still(bench):
    bench.oom_kills |= {SCOPE: 0, "/pod.slice": 0}
    await bench.run(cgroup=SCOPE)
    bench.oom_kills |= {SCOPE: 0, "/pod.slice": 1}
    bench.tasks.end(ID, 137)
    await until(lambda: exited(bench))
    assert bench.status().reason == "Error"


async def test_an_unreadable_oom_count_holds_nothing_up(bench):
    def gone(cgroup):
        raise FileNotFoundError(cgroup)

    bench.containers.exits._oom_counts = gone
    await bench.run(cgroup="/c")
    bench.tasks.end(ID, 1)
    await until(lambda: exited(bench))
    assert bench.status().reason == "Error"


async def test_the_first_report_counts_whichever_way_it_comes(bench):
    await bench.run()
    shim = bench.shims.get("pod")
    bench.containers.exits.handle(ID, Exit(5, EXIT_AT), shim)
    bench.tasks.end(ID, 6)
    bench.containers.exits.handle(ID, None, None)
    await until(lambda: exited(bench))
    await bench.containers.exits.settled(ID)
    assert bench.status().exit_code == 5
    assert bench.told().count("stopped") == 1


async def test_an_exit_that_nobody_saw_is_unknown(bench):
    await bench.run()
    before = time.time_ns()
    bench.containers.exits.handle(ID, None, None)
    await until(lambda: exited(bench))
    status = bench.status()
    assert (status.exit_code, status.reason) == (255, "Unknown")
    assert status.finished_at >= before


async def test_a_shim_without_a_time_of_the_exit_gets_ours(bench):
    await bench.run()
    bench.tasks.end(ID, 0, at=0)
    await until(lambda: exited(bench))
    assert time.time_ns() - bench.status().finished_at < 60e9


async def test_the_task_is_deleted_after_the_exit(bench):
    await bench.run()
    bench.tasks.end(ID, 0)
    await until(lambda: exited(bench))
    await bench.containers.exits.settled(ID)
    assert bench.tasks.tasks == {}


async def test_the_exit_is_noted_before_the_shim_forgets_it(bench):
    await bench.run()
    gate = bench.tasks.hold("delete")
    bench.owner.failures["exited"] = asyncio.CancelledError()  # as a kill in the midst of it
    bench.tasks.end(ID, 9, at=EXIT_AT)
    await until(lambda: bench.tasks.count("delete") or ("exited", ID) in bench.owner.calls)
    status = bench.status()
    assert status.state is ContainerState.RUNNING
    assert (status.noted_exit.code, status.noted_exit.at) == (9, EXIT_AT)
    del bench.owner.failures["exited"]
    gate.set()
    await bench.containers.exits.close()
    # The next server: the shim has forgotten the task, or is gone.
    bench.containers = bench.serve()
    bench.containers.exits.started(ID)
    bench.containers.exits.handle(ID, None, None)
    await until(lambda: exited(bench))
    assert (bench.status().exit_code, bench.status().reason) == (9, "Error")
    assert bench.status().finished_at == EXIT_AT
    assert bench.status().noted_exit is None


async def test_a_delete_that_fails_holds_no_exit_back(bench):
    await bench.run()
    bench.tasks.fail("delete", DeadlineExceeded("busy"))
    bench.tasks.end(ID, 4)
    await until(lambda: exited(bench))
    await bench.containers.exits.settled(ID)
    assert (ID, "") in bench.tasks.tasks
    await bench.containers.remove(ID)
    assert bench.tasks.tasks == {}


async def test_the_owner_takes_in_the_last_output_before_the_exit_is_told(bench):
    order = []
    bench.containers.subscribe(lambda notice: order.append(notice.kind.value))
    original = bench.owner.exited

    async def drain(record):
        await original(record)
        assert record.status.state is ContainerState.RUNNING
        await asyncio.sleep(0.01)
        order.append("drained")

    bench.owner.exited = drain
    await bench.run()
    bench.tasks.end(ID, 0)
    await until(lambda: order[-1] == "stopped")
    assert order == ["created", "started", "drained", "stopped"]


async def test_an_owner_that_fails_holds_no_exit_back(bench, caplog):
    bench.owner.failures["exited"] = RuntimeError("a bug")
    await bench.run()
    bench.tasks.end(ID, 4)
    await until(lambda: exited(bench))
    assert "owner failed" in caplog.text


@pytest.mark.parametrize("owner", ["", "owner"])
async def test_where_the_shim_writes_the_log_its_deletion_comes_first(bench, owner):
    bench.owner.shim_writes_log = True
    gate = bench.tasks.hold("delete")
    await bench.run(owner=owner)
    bench.tasks.end(ID, 0)
    await until(lambda: bench.tasks.count("delete"))
    assert not exited(bench)
    gate.set()
    await until(lambda: exited(bench))


async def test_a_child_that_keeps_the_log_open_delays_the_exit_within_bounds(bench):
    bench.owner.shim_writes_log = True
    gate = bench.tasks.hold("delete")
    await bench.run()
    bench.tasks.end(ID, 0)
    await until(lambda: exited(bench), timeout=5)  # after the drain timeout of 0.2 s
    gate.set()


# ---- watching


async def test_a_connection_that_breaks_is_dialled_again(bench, monkeypatch):
    monkeypatch.setattr(exits_module, "REDIAL_PAUSE", 0.01)
    bench.tasks.fail("wait", Unavailable("reset"), times=3)
    await bench.run()
    await until(lambda: bench.tasks.count("wait") == 4)
    bench.tasks.end(ID, 2)
    await until(lambda: exited(bench))
    assert bench.status().exit_code == 2


async def test_a_wait_that_the_shim_refuses_is_asked_again(bench, monkeypatch):
    monkeypatch.setattr(exits_module, "FAILED_PAUSE", 0.01)
    bench.tasks.fail("wait", Internal("a bug of the shim's"), times=2)
    await bench.run()
    bench.tasks.end(ID, 2)
    await until(lambda: exited(bench))


async def test_a_shim_that_is_gone_is_not_asked_again(bench, monkeypatch):
    monkeypatch.setattr(exits_module, "REDIAL_PAUSE", 0.01)
    await bench.run()
    shim = bench.shims.get("pod")
    shim.die()
    bench.tasks.fail("wait", Unavailable("gone"))
    bench.containers.exits.watch(ID, shim)
    await asyncio.sleep(0.03)
    assert bench.tasks.count("wait") == 2
    assert not exited(bench)  # its manager tells, after `delete`


async def test_a_task_that_the_shim_does_not_know_is_unknown(bench):
    await bench.put(ContainerStatus(state=ContainerState.RUNNING))
    shim = bench.shims.add("pod", HANDLER)
    bench.containers.exits.watch(ID, shim)
    bench.containers.exits.started(ID)
    await until(lambda: exited(bench))
    assert bench.status().exit_code == 255


async def test_ask_finds_an_exit_that_nobody_told_of_and_leaves_what_runs(bench):
    await bench.run()
    gate = bench.tasks.hold("wait")
    record = bench.containers.find(ID)
    shim = bench.shims.get("pod")
    bench.containers.exits.watch(ID, shim)
    await bench.containers.exits.ask(record.meta, shim)
    assert not exited(bench)
    bench.tasks.end(ID, 8)
    await bench.containers.exits.ask(record.meta, shim)
    await until(lambda: exited(bench))
    assert bench.status().exit_code == 8
    gate.set()


# ---- waiting


async def test_wait_tells_an_exit_from_the_time_running_out(bench):
    await bench.run()
    exits = bench.containers.exits
    assert not await exits.wait(ID, timeout=0.01)
    bench.tasks.end(ID, 0)
    assert await exits.wait(ID, timeout=5)
    assert await exits.wait(ID, timeout=None)


async def test_shorten_only_ever_shortens(bench):
    await bench.run()
    exits = bench.containers.exits
    for at, expected in ((50.0, 50.0), (60.0, 50.0), (40.0, 40.0)):
        exits.shorten(ID, at)
        assert exits.kill_at(ID) == expected


# ---- deleting


async def test_a_task_that_runs_is_killed_to_be_deleted(bench):
    await bench.run(kill_all=True)
    record = bench.containers.find(ID)
    await bench.containers.exits.delete_task(record.meta, bench.shims.get("pod"), kill=True)
    assert bench.tasks.count("kill", ID, 9, "all") == 1
    assert bench.tasks.tasks == {}


async def test_deleting_what_is_not_there_is_nothing(bench):
    await bench.create()
    shim = bench.shims.add("pod", HANDLER)
    meta = bench.containers.find(ID).meta
    for kill in (False, True):
        await bench.containers.exits.delete_task(meta, shim, kill=kill)


async def test_a_created_task_is_deleted_too(bench):
    await bench.create()
    shim = bench.shims.add("pod", HANDLER)
    bench.tasks.add(ID, status=TaskStatus.CREATED)
    await bench.containers.exits.delete_task(bench.containers.find(ID).meta, shim, kill=True)
    assert bench.tasks.tasks == {}


async def test_a_shim_that_does_not_answer_is_an_error_only_while_it_runs(bench):
    await bench.run()
    meta, shim = bench.containers.find(ID).meta, bench.shims.get("pod")
    bench.tasks.fail("delete", Unavailable("no answer"), times=2)
    with pytest.raises(Unavailable):
        await bench.containers.exits.delete_task(meta, shim, kill=False)
    shim.die()
    await bench.containers.exits.delete_task(meta, shim, kill=False)


async def test_the_clean_up_of_a_dead_shim_is_waited_for(bench):
    """It needs the container's bundle, which whoever removes the container takes away next."""
    await bench.create()
    shim = bench.shims.add("pod", HANDLER)
    bench.tasks.fail("state", Unavailable("no answer"))
    shim.die(cleaned=False)
    removal = asyncio.create_task(bench.containers.remove(ID))
    for _ in range(20):
        await asyncio.sleep(0.005)
    assert Path(bench.containers.find(ID).meta.bundle).exists()
    shim.cleaned.set()
    await removal
    assert bench.containers.get(ID) is None


async def test_a_clean_up_that_does_not_end_is_told(bench, monkeypatch):
    monkeypatch.setattr(exits_module, "CLEAN_UP_TIMEOUT", 0.02)
    await bench.run()
    meta, shim = bench.containers.find(ID).meta, bench.shims.get("pod")
    bench.tasks.fail("delete", Unavailable("no answer"), times=1)
    shim.die(cleaned=False)
    with pytest.raises(DeadlineExceeded, match="what its shim left when it died isn't removed"):
        await bench.containers.exits.delete_task(meta, shim, kill=False)


async def test_settled_gives_up_on_a_deletion_that_hangs(bench, monkeypatch):
    monkeypatch.setattr(exits_module, "DELETE_TIMEOUT", 0.05)
    await bench.run()
    gate = bench.tasks.hold("delete")
    bench.tasks.end(ID, 0)
    await until(lambda: exited(bench))
    with pytest.raises(DeadlineExceeded, match="still being deleted"):
        await bench.containers.exits.settled(ID)
    gate.set()


async def test_close_leaves_no_task_and_tells_nothing(tmp_path):
    bench = Bench(tmp_path)
    await bench.run()
    gate = bench.tasks.hold("delete")
    before = bench.told()
    await bench.containers.close()
    gate.set()
    await bench.aclose()
    assert bench.told() == before
    assert [t for t in asyncio.all_tasks() if t is not asyncio.current_task()] == []
