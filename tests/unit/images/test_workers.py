"""Real workers, asked for what they can't do: no registry is needed for that."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from zos_cri.errors import InvalidArgument
from zos_cri.images.jobs import PullJob
from zos_cri.images.workers import Workers, environment
from zos_cri.linux import spawn

if TYPE_CHECKING:
    from collections.abc import Callable

JOB = PullJob(root="/nowhere", staging="", ref="a:b:c")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[spawn.Process]:
    """All processes that were started."""
    processes: list[spawn.Process] = []
    start = spawn.start

    async def watched(*args: Any, **kwargs: Any) -> spawn.Process:
        processes.append(await start(*args, **kwargs))
        return processes[-1]

    monkeypatch.setattr(spawn, "start", watched)
    return processes


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def do(workers: Workers) -> None:
    with pytest.raises(InvalidArgument, match="a:b:c"):
        await workers.run(JOB)


async def test_the_next_one_is_started_ahead(started: list[spawn.Process]) -> None:
    workers = Workers(after=0)
    await do(workers)
    await until(lambda: workers.spare)
    assert [process.returncode is None for process in started] == [False, True]
    spare = workers.spare
    await do(workers)
    assert len(started) == 2
    assert started[1].pid == spare
    assert started[1].returncode is not None  # one job each
    await until(lambda: workers.spare)
    assert len(started) == 3
    await workers.aclose()
    assert all(process.returncode is not None for process in started)
    assert workers.spare == 0


async def test_two_jobs_at_once_have_a_worker_each(started: list[spawn.Process]) -> None:
    workers = Workers(after=0)
    await do(workers)
    await until(lambda: workers.spare)
    await asyncio.gather(do(workers), do(workers))
    assert [process.returncode is None for process in started[:3]] == [False, False, False]
    await workers.aclose()


async def test_a_spare_that_died_is_replaced(started: list[spawn.Process]) -> None:
    workers = Workers(after=0)
    await do(workers)
    await until(lambda: workers.spare)
    os.kill(workers.spare, signal.SIGKILL)
    await do(workers)
    assert len(started) == 3
    await workers.aclose()


async def test_a_spare_goes_where_no_job_comes(started: list[spawn.Process]) -> None:
    workers = Workers(kept=0, after=0)
    await do(workers)
    await until(lambda: len(started) == 2 and started[1].returncode is not None)
    assert workers.spare == 0
    await do(workers)
    await workers.aclose()


async def test_none_is_started_after_the_end(started: list[spawn.Process]) -> None:
    workers = Workers(after=0)
    await do(workers)
    await workers.aclose()
    await asyncio.sleep(0)
    count = len(started)
    await do(workers)  # whoever is late is served, by a worker of its own
    await workers.aclose()
    await asyncio.sleep(0)
    assert len(started) == count + 1
    assert all(process.returncode is not None for process in started)


def test_a_worker_without_a_job_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zos_cri.images.worker", "pull"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(),
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
