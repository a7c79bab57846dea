"""Tasks that end in order."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from zos_cri.streaming import tasks
from zos_cri.streaming.tasks import cancel_all, uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable


async def test_cancelled_tasks_are_waited_for() -> None:
    ended: list[int] = []

    async def work(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            ended.append(number)

    async def fail() -> None:
        raise ValueError("nobody asks")

    made = [asyncio.create_task(work(n)) for n in range(3)] + [asyncio.create_task(fail())]
    await asyncio.sleep(0)
    await cancel_all(made)
    assert sorted(ended) == [0, 1, 2]
    await cancel_all([])


async def test_clean_up_survives_any_number_of_cancellations() -> None:
    finish, done = asyncio.Event(), []

    async def clean() -> None:
        await finish.wait()
        done.append(True)

    task = asyncio.create_task(uninterrupted(clean, "test"))
    for _ in range(3):
        await asyncio.sleep(0.001)
        task.cancel()
    assert not done
    finish.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done


async def test_clean_up_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def clean() -> None:
        raise OSError("no such thing")

    await uninterrupted(clean, "test")
    assert "clean-up failed" in caplog.text


async def test_clean_up_that_sticks_is_left_behind(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "CLEANUP_TIMEOUT", 0.05)
    finish = asyncio.Event()
    sticks: Callable[[], object] = finish.wait
    await uninterrupted(sticks, "test")  # type: ignore[arg-type]
    assert "goes on behind" in caplog.text
    finish.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
