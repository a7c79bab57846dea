from __future__ import annotations

import asyncio

import pytest

from zos_cri.errors import AlreadyExists, Unavailable
from zos_cri.store.joins import Joins


class Operation:
    """Ends when it is told to; counts how often it was begun."""

    def __init__(self, result: str = "done") -> None:
        self.begun = 0
        self.ended = 0
        self.release = asyncio.Event()
        self.result: str | BaseException = result

    async def __call__(self) -> str:
        self.begun += 1
        await self.release.wait()
        self.ended += 1
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


async def begun(joins, operation, key="pod", fingerprint=b"1"):
    task = asyncio.create_task(joins.run(key, fingerprint, operation))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


async def test_a_repeated_call_joins_the_one_under_way():
    joins, operation = Joins[str](), Operation()
    tasks = [await begun(joins, operation) for _ in range(3)]
    operation.release.set()
    assert await asyncio.gather(*tasks) == ["done"] * 3
    assert operation.begun == 1


async def test_another_configuration_is_refused_while_one_is_under_way():
    joins, operation = Joins[str](), Operation()
    task = await begun(joins, operation)
    with pytest.raises(AlreadyExists, match="another configuration"):
        await joins.run("pod", b"2", operation)
    operation.release.set()
    await task
    assert await joins.run("pod", b"2", operation) == "done"


async def test_other_keys_run_side_by_side():
    joins, operation = Joins[str](), Operation()
    tasks = [await begun(joins, operation, key=key) for key in "ab"]
    assert operation.begun == 2
    operation.release.set()
    await asyncio.gather(*tasks)


async def test_a_caller_that_leaves_ends_its_waiting_only():
    joins, operation = Joins[str](), Operation()
    first, joined, last = [await begun(joins, operation) for _ in range(3)]
    for leaving in (first, joined):
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    operation.release.set()
    assert await last == "done"
    assert operation.begun == operation.ended == 1


async def test_an_operation_goes_on_when_every_caller_has_left():
    joins, operation = Joins[str](), Operation()
    operation.result = Unavailable("nobody hears this")
    task = await begun(joins, operation)
    task.cancel()
    operation.release.set()
    await joins.settle()
    assert operation.ended == 1


async def test_a_failure_reaches_all_who_joined_and_is_not_kept():
    joins, operation = Joins[str](), Operation()
    operation.result = Unavailable("the shim is gone")
    tasks = [await begun(joins, operation) for _ in range(2)]
    operation.release.set()
    for task in tasks:
        with pytest.raises(Unavailable, match="the shim is gone"):
            await task
    operation.result = "done"
    assert await joins.run("pod", b"2", operation) == "done"
    assert operation.begun == 2


async def test_alone_is_joined_by_none_and_outlives_its_caller():
    joins, operation = Joins[str](), Operation()
    tasks = [asyncio.create_task(joins.alone(operation)) for _ in range(2)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert operation.begun == 2
    tasks[0].cancel()
    operation.release.set()
    await joins.settle()
    assert operation.ended == 2
    assert await tasks[1] == "done"


async def test_ended_waits_for_the_end_whatever_it_is():
    joins, operation = Joins[str](), Operation()
    operation.result = Unavailable("no")
    await joins.ended("pod")  # nothing is under way
    task = await begun(joins, operation)
    waiting = asyncio.create_task(joins.ended("pod"))
    await asyncio.sleep(0)
    assert not waiting.done()
    operation.release.set()
    await waiting
    with pytest.raises(Unavailable):
        await task
