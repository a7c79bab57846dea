from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
import weakref

import pytest

from zos_cri.linux.threads import Threads


@pytest.fixture
def threads():
    threads = Threads("test", 2)
    yield threads
    threads.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("test_")]


@pytest.fixture
def one():
    one = Threads("one", 1)
    yield one
    one.close()


async def test_results_and_errors_come_back(threads):
    assert await threads.submit(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await threads.submit(divmod, 7, 0)


async def test_a_stop_iteration_is_told_as_something_a_future_takes(threads):
    with pytest.raises(RuntimeError, match="StopIteration") as raised:
        await threads.submit(next, iter(()))
    assert isinstance(raised.value.__cause__, StopIteration)


async def test_calls_carry_the_context_and_do_not_change_it(threads):
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("v", default=0)
    variable.set(7)
    assert await threads.submit(variable.get) == 7
    await threads.submit(variable.set, 8)
    assert variable.get() == 7


async def test_no_more_threads_than_allowed_and_none_before_they_are_needed(threads):
    barrier = threading.Barrier(2)
    assert not [t for t in threading.enumerate() if t.name.startswith("test_")]
    await asyncio.gather(*(threads.submit(barrier.wait, 5) for _ in range(4)))
    assert len([t for t in threading.enumerate() if t.name.startswith("test_")]) == 2


async def test_one_thread_is_used_again_while_one_is_enough(threads):
    idents = {await threads.submit(threading.get_ident) for _ in range(20)}
    assert len(idents) <= 2


async def test_with_one_thread_the_order_is_kept(one):
    seen: list[int] = []
    await asyncio.gather(*(one.submit(seen.append, number) for number in range(100)))
    assert seen == list(range(100))


async def test_what_is_cancelled_is_done_all_the_same(one):
    release, done = threading.Event(), threading.Event()
    first = one.submit(release.wait, 5)
    queued = one.submit(done.set)
    queued.cancel()
    release.set()
    await first
    assert await one.submit(done.is_set)


async def test_an_error_nobody_waits_for_is_silent(one):
    release = threading.Event()

    def fail():
        release.wait(5)
        raise ValueError("nobody hears this")

    one.submit(fail).cancel()
    unheard = one.submit(fail)
    release.set()
    await one.submit(gc.collect)
    del unheard
    gc.collect()  # a future that complains would fail the test
    await asyncio.sleep(0)


async def test_arguments_are_not_kept(one):
    class Big:
        pass

    big = Big()
    seen = weakref.ref(big)
    await one.submit(id, big)
    del big
    await one.submit(id, 1)
    assert seen() is None


def test_a_loop_that_is_closed_meanwhile_does_not_end_the_thread(one):
    release = threading.Event()

    async def leave() -> None:
        one.submit(release.wait, 5)

    asyncio.run(leave())
    release.set()
    assert one.wait_for(divmod, 7, 2) == (3, 1)


def test_without_a_loop_the_caller_waits(one):
    assert one.wait_for(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        one.wait_for(divmod, 7, 0)


def test_close_waits_for_what_was_queued_and_takes_nothing_more():
    threads = Threads("closing", 1)
    seen: list[int] = []

    async def leave() -> None:
        threads.submit(time.sleep, 0.05)
        threads.submit(seen.append, 1)

    asyncio.run(leave())
    threads.close()
    threads.close()
    assert seen == [1]
    with pytest.raises(RuntimeError, match="closing: closed"):
        threads.wait_for(divmod, 7, 2)
