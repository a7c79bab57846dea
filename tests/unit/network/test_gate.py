"""Who waits for whom."""

from __future__ import annotations

import asyncio

import pytest

from zos_cri.errors import Unavailable
from zos_cri.network.gate import Gate, PodLocks


async def test_one_pod_waits_and_others_do_not() -> None:
    locks = PodLocks()
    order: list[str] = []
    release = asyncio.Event()

    async def work(pod: str, name: str, *, wait: bool = False) -> None:
        async with locks.hold(pod):
            order.append(f"{name} begins")
            if wait:
                await release.wait()
            order.append(f"{name} ends")

    async with asyncio.TaskGroup() as group:
        group.create_task(work("a", "first", wait=True))
        await asyncio.sleep(0)
        group.create_task(work("a", "second"))
        group.create_task(work("b", "other"))
        for _ in range(5):
            await asyncio.sleep(0)
        assert order == ["first begins", "other begins", "other ends"]
        release.set()
    assert order[3:] == ["first ends", "second begins", "second ends"]
    assert locks._locks == {}


async def test_a_cancelled_waiter_leaves_the_lock_to_the_next() -> None:
    locks = PodLocks()
    async with locks.hold("a"):
        waiter = asyncio.create_task(locks.hold("a").__aenter__())
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
    async with asyncio.timeout(5), locks.hold("a"):
        pass
    assert locks._locks == {}


async def test_collection_waits_for_quiet_and_then_everybody_for_it() -> None:
    gate = Gate()
    order: list[str] = []

    async def share(name: str) -> None:
        async with gate.shared():
            order.append(name)

    async with asyncio.TaskGroup() as group:
        async with gate.shared():
            collecting, done = asyncio.Event(), asyncio.Event()

            async def collect() -> None:
                async with gate.exclusive(wait=5):
                    order.append("collect")
                    collecting.set()
                    await done.wait()

            group.create_task(collect())
            await asyncio.sleep(0)
            await share("not held up by one who waits")
            assert not collecting.is_set()
        await collecting.wait()
        group.create_task(share("after"))
        for _ in range(5):
            await asyncio.sleep(0)
        assert order == ["not held up by one who waits", "collect"]
        done.set()
    assert order[-1] == "after"


async def test_collection_gives_up() -> None:
    gate = Gate()
    async with gate.shared():
        with pytest.raises(Unavailable, match=r"no quiet moment in 0.01 s"):
            async with gate.exclusive(wait=0.01):
                raise AssertionError
    async with gate.exclusive(wait=1):
        with pytest.raises(Unavailable):
            async with gate.exclusive(wait=0.01):
                raise AssertionError
    async with gate.shared():
        pass
