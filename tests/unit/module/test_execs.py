from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest

from tests.descriptors import open_descriptors
from tests.fakes.containers import ID
from tests.fakes.shim import until
from zos_cri import failpoints
from zos_cri.errors import DeadlineExceeded, FailedPrecondition, NotFound, Unavailable
from zos_cri.linux.moves import Moves
from zos_cri.module.execs import Execs


@pytest.fixture
def execs(bench, tmp_path):
    return Execs(
        containers=bench.containers,
        directory=tmp_path / "exec",
        metrics=bench.metrics,
        moves=Moves(None),
        drain_timeout=0.2,
    )


def shell(script):
    return lambda spec: {"args": ["/bin/sh", "-c", script]}


def leftovers(bench, tmp_path):
    found = [leads_to for _, leads_to in open_descriptors() if str(tmp_path / "exec") in leads_to]
    found += [str(key) for key in bench.tasks.tasks if key[1]]
    if (tmp_path / "exec").exists():
        found += [str(path) for path in (tmp_path / "exec").iterdir()]
    return found


async def test_output_and_exit_code(bench, execs, tmp_path):
    await bench.run()
    result = await execs.run(ID, shell("echo out; echo err >&2; exit 3"), timeout=10)
    assert (result.stdout, result.stderr, result.exit_code) == (b"out\n", b"err\n", 3)
    assert not result.truncated
    assert leftovers(bench, tmp_path) == []


async def test_the_process_is_made_from_the_containers_spec(bench, execs):
    await bench.run(spec={"process": {"env": ["A=b"]}, "linux": {}})
    seen = []

    def process(spec):
        seen.append(spec["process"])
        return {"args": ["/bin/true"]}

    assert (await execs.run(ID, process, timeout=None)).exit_code == 0
    assert seen == [{"env": ["A=b"]}]


async def test_what_a_signal_ended_says_so(bench, execs):
    await bench.run()
    assert (await execs.run(ID, shell("kill -9 $$"), timeout=10)).exit_code == 137


async def test_all_output_is_read_and_no_more_kept_than_the_limit(bench, execs):
    await bench.run()
    script = "head -c 1000000 /dev/zero; head -c 10 /dev/zero >&2"
    result = await execs.run(ID, shell(script), timeout=30, limit=1000)
    assert (len(result.stdout), len(result.stderr)) == (1000, 10)
    assert result.truncated
    result = await execs.run(ID, shell("head -c 1000 /dev/zero"), timeout=30, limit=1000)
    assert (len(result.stdout), result.truncated) == (1000, False)


async def test_a_child_that_keeps_the_output_open_delays_the_result_within_bounds(bench, execs):
    await bench.run()
    result = await execs.run(ID, shell("sleep 100 & echo $!"), timeout=60)
    child = int(result.stdout)
    assert running(child)  # so it wasn't waited for
    os.kill(child, signal.SIGKILL)


async def test_at_the_timeout_the_whole_process_group_is_killed(bench, execs, tmp_path):
    await bench.run()
    pids = tmp_path / "pids"
    script = f"sleep 100 & echo $! $$ > {pids}; wait"
    with pytest.raises(DeadlineExceeded, match=r"did not end within 0\.5 s and was killed"):
        await execs.run(ID, shell(script), timeout=0.5)
    started = [int(pid) for pid in pids.read_text().split()]
    await until(lambda: not any(map(running, started)))
    assert leftovers(bench, tmp_path) == []


async def test_a_timeout_in_the_midst_of_the_start_kills_what_was_started(bench, execs, tmp_path):
    await bench.run()
    gate = bench.tasks.hold("start")
    pids = tmp_path / "pids"
    run = asyncio.create_task(
        execs.run(ID, shell(f"echo $$ > {pids}; exec sleep 100"), timeout=0.1)
    )
    await until(lambda: pids.exists() and pids.read_text())
    await asyncio.sleep(0.2)  # the timeout runs out while the shim has not answered
    gate.set()
    with pytest.raises(DeadlineExceeded):
        await run
    assert not running(int(pids.read_text()))
    assert leftovers(bench, tmp_path) == []


async def test_a_caller_that_leaves_leaves_nothing_behind(bench, execs, tmp_path):
    await bench.run()
    pids = tmp_path / "pids"
    run = asyncio.create_task(execs.run(ID, shell(f"echo $$ > {pids}; exec sleep 100"), timeout=60))
    await until(lambda: pids.exists() and pids.read_text())
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await until(lambda: not running(int(pids.read_text())))
    await until(lambda: leftovers(bench, tmp_path) == [])


@pytest.mark.parametrize("method", ["exec", "start"])
async def test_a_start_that_fails_leaves_nothing_behind(bench, execs, tmp_path, method):
    await bench.run()
    bench.tasks.fail(method, Unavailable("runc says no"))
    with pytest.raises(Unavailable, match="runc says no"):
        await execs.run(ID, shell("exec sleep 100"), timeout=60)
    await until(lambda: leftovers(bench, tmp_path) == [])


async def test_a_shim_that_does_not_delete_is_logged(bench, execs, tmp_path, caplog):
    await bench.run()
    bench.tasks.fail("delete", Unavailable("no answer"))
    assert (await execs.run(ID, shell("exit 0"), timeout=10)).exit_code == 0
    assert "exec not deleted" in caplog.text
    assert not any((tmp_path / "exec").iterdir())


async def test_only_in_running_containers(bench, execs):
    with pytest.raises(NotFound):
        await execs.run("f", shell("exit 0"), timeout=1)
    await bench.create()
    with pytest.raises(FailedPrecondition, match="is created, not running"):
        await execs.run(ID, shell("exit 0"), timeout=1)


async def test_a_timeout_error_of_another_kind_is_not_mistaken_for_ours(bench, execs):
    await bench.run()
    bench.tasks.fail("exec", TimeoutError("ETIMEDOUT"))
    with pytest.raises(TimeoutError, match="ETIMEDOUT"):
        await execs.run(ID, shell("exit 0"), timeout=None)


async def test_streams_are_what_was_asked_for(bench, execs):
    await bench.run()
    exec_ = await execs.open(ID, shell("echo x"), streams=("stdout", "stderr"), terminal=False)
    try:
        assert exec_.stdin == -1
        assert exec_.pid > 0
        assert await exec_.wait() == 0
        assert os.read(exec_.stdout, 100) == b"x\n"
        taken = exec_.take("stdout")
        assert exec_.stdout == -1
        os.close(taken)
    finally:
        await exec_.aclose()
    await exec_.aclose()


def running(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


@pytest.mark.parametrize("point", ["exec.kill.before", "exec.remove.before"])
async def test_what_fails_at_its_end_is_gone_with_the_container(bench, execs, tmp_path, point):
    await bench.run()
    failpoints.arm({point: "error"})
    try:
        result = await execs.run(ID, shell("echo out"), timeout=10)
    finally:
        failpoints.arm({})
    assert result.stdout == b"out\n"
    await bench.containers.remove(ID)
    assert leftovers(bench, tmp_path) == []
