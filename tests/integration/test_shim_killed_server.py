"""We are killed at some instant of starting shims: whatever there is then, is found and removed."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

import pytest

from tests.integration.shim_harness import Harness, shim_processes
from zos_cri.shim.manager import DeadShim, Shim

pytestmark = [pytest.mark.root, pytest.mark.runtime]

GROUPS = 4
ROUNDS = 6
# Starting four shims takes about 80 ms.
LATEST = 0.12


async def test_killed_while_starting(harness: Harness) -> None:
    running = dead = 0
    for delay in (random.uniform(0, LATEST) for _ in range(ROUNDS)):
        groups = [harness.new_group() for _ in range(GROUPS)]
        server = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", __name__, str(harness.root), harness.runtime, *groups),
            cwd=Path(__file__).parents[2],
            stdout=asyncio.subprocess.PIPE,
        )
        assert server.stdout is not None
        assert await server.stdout.readline() == b"ready\n"
        await asyncio.sleep(delay)  # the instant is what the test is about
        server.kill()
        await server.wait()

        found = await harness.restart()
        for item in found:
            if isinstance(item, Shim):
                running += 1
                assert (await item.task.connect(item.group)).shim_pid == item.pid
                assert len(shim_processes(item.group)) == 1
            else:
                dead += 1
                assert isinstance(item, DeadShim)
                assert shim_processes(item.group) == []
        found_groups = {item.group for item in found}
        assert all(shim_processes(group) == [] for group in set(groups) - found_groups)
        await asyncio.gather(*(harness.manager.stop(group) for group in found_groups))
        harness.assert_nothing_left()
    print(f"{harness.runtime}: {running} were running, {dead} were about to be started")


async def _start_all(root: str, runtime: str, groups: list[str]) -> None:
    harness = Harness(runtime, root=Path(root))
    manager = harness.new_manager()
    print("ready", flush=True)
    await asyncio.gather(*(manager.start(group, harness.handler) for group in groups))
    await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(_start_all(sys.argv[1], sys.argv[2], sys.argv[3:]))
