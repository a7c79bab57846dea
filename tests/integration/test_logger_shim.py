"""The logger behind real shims: killed under a container, and its end after the exit."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.shim_harness import Harness
from zos_cri.stdio.client import LoggerClient

pytestmark = [pytest.mark.root, pytest.mark.runtime]

LINES = 20_000
COUNT = f"i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); done"


@pytest.fixture
async def logger(tmp_path: Path) -> AsyncIterator[LoggerClient]:
    client = LoggerClient(tmp_path / "logger.sock", state_dir=tmp_path / "state")
    yield client
    pid = (await client.status()).pid
    await client.aclose()
    os.kill(pid, signal.SIGTERM)


async def run(
    harness: Harness, logger: LoggerClient, directory: Path, script: str, *, kills: int = 0
) -> list[bytes]:
    """Runs a script in a container while the logger is killed; its log without the times."""
    for name in ("stdout", "stderr"):
        os.mkfifo(directory / name)
    out, err = str(directory / "stdout"), str(directory / "stderr")
    log = directory / "log"
    await logger.attach("c", log_path=str(log), stdout_fifo=out, stderr_fifo=err)
    shim = await harness.manager.start(harness.new_group(), harness.handler)
    container = await harness.create(shim, ["sh", "-c", script], stdout=out, stderr=err)
    await shim.task.start(container)
    waiting = asyncio.create_task(shim.task.wait(container, timeout=60))
    for _ in range(kills):
        await asyncio.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.kill((await logger.status()).pid, signal.SIGKILL)
    exit_ = await waiting
    assert exit_.status == 0
    finished = await logger.finish("c", timeout=30)
    assert finished.complete, "the shim closes its ends when the container is gone"
    await harness.remove(shim, container)
    return [line[31:] for line in log.read_bytes().splitlines()]


async def test_every_line_is_there_when_finish_answers(
    harness: Harness, logger: LoggerClient, tmp_path: Path
) -> None:
    entries = await run(harness, logger, tmp_path, f"{COUNT}; echo -n done; echo oops >&2")
    assert [e for e in entries if e.startswith(b"stdout")] == [
        *(b"stdout F line %d" % n for n in range(LINES)),
        b"stdout P done",
    ]
    assert [e for e in entries if e.startswith(b"stderr")] == [b"stderr F oops"]


async def test_the_container_outlives_killed_loggers_and_loses_nothing(
    harness: Harness, logger: LoggerClient, tmp_path: Path
) -> None:
    entries = await run(harness, logger, tmp_path, f"{COUNT}; {COUNT}", kills=4)
    numbers = [int(entry.removeprefix(b"stdout F line ")) for entry in entries]
    wanted = [*range(LINES), *range(LINES)]
    at = 0
    for number in numbers:
        if at < len(wanted) and number == wanted[at]:
            at += 1
            continue
        # Only what was already written may come again.
        back = at - 1
        while back >= 0 and wanted[back] != number:
            back -= 1
        assert back >= 0, f"line {number} after {at} lines"
        at = back + 1
    assert at == len(wanted)
