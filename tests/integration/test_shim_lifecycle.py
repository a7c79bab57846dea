"""Tasks over real shims: Debian's (bootstrap by text, Task v2) and the current one (protobuf, v3)."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.integration.shim_harness import RUNTIMES, Harness
from zos_cri import errors
from zos_cri.shim.task import TaskStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.runtime]


@pytest.fixture(params=RUNTIMES)
async def harness(request: pytest.FixtureRequest) -> AsyncIterator[Harness]:
    harness = Harness(request.param)
    await harness.start()
    yield harness
    await harness.close()


async def test_a_container_from_start_to_delete(harness: Harness) -> None:
    shim = await harness.manager.start(harness.new_group(), harness.handler)
    assert shim.version == harness.version
    container = await harness.create(shim, ["sleep", "100"])
    assert (await shim.task.state(container)).status is TaskStatus.CREATED

    pid = await shim.task.start(container)
    state = await shim.task.state(container)
    assert (state.status, state.pid) == (TaskStatus.RUNNING, pid)
    assert await shim.task.pids(container) == [pid]
    assert (await shim.task.connect(container)).task_pid == pid

    waiting = asyncio.create_task(shim.task.wait(container))
    await shim.task.kill(container, signal.SIGKILL)
    exit_ = await waiting
    assert exit_.status == 137
    assert exit_.exited_at_ns > 0
    deleted = await shim.task.delete(container)
    assert (deleted.status, deleted.pid) == (137, pid)
    with pytest.raises(errors.NotFound):
        await shim.task.state(container)

    # The current shim may say that a task is deleted before it says that it exited.
    topics = {"/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"}
    exited = await harness.event(lambda event: event.topic == "/tasks/exit")
    await harness.event(lambda event: event.topic == "/tasks/delete")
    assert {event.topic for event in harness.events} == topics
    assert {event.message.container_id for event in harness.events} == {container}
    assert (exited.message.exit_status, exited.message.pid) == (137, pid)
