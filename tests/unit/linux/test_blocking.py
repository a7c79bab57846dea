from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from zos_cri.errors import DeadlineExceeded, ResourceExhausted
from zos_cri.linux import blocking

if TYPE_CHECKING:
    from collections.abc import Callable


async def until(condition: Callable[[], object], timeout: float = 5.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "condition never came true"
        await asyncio.sleep(0.005)


async def test_call_gives_the_result_from_another_thread():
    assert await blocking.call(threading.get_ident) != threading.get_ident()


async def test_call_passes_arguments_and_errors():
    assert await blocking.call(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await blocking.call(divmod, 7, 0, timeout=5)


async def test_call_carries_the_context():
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("v", default=0)
    variable.set(7)
    assert await blocking.call(variable.get) == 7
    assert await blocking.call_abandonable(variable.get, timeout=5) == 7


async def test_call_names_the_function_at_its_deadline():
    release = threading.Event()
    try:
        with pytest.raises(DeadlineExceeded, match=r"Event\.wait: not done within 0\.05 s"):
            await blocking.call(release.wait, timeout=0.05)
    finally:
        release.set()


async def test_call_keeps_the_functions_own_timeout_error():
    def fail():
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        await blocking.call(fail, timeout=5)
    with pytest.raises(TimeoutError, match="mine"):
        await blocking.call_abandonable(fail, timeout=5)


async def test_an_abandoned_call_fails_in_silence():
    release = threading.Event()
    ran = threading.Event()

    def fail_late():
        release.wait(5)
        ran.set()
        raise ValueError("nobody hears this")

    with pytest.raises(DeadlineExceeded):
        await blocking.call(fail_late, timeout=0.02)
    release.set()
    await until(ran.is_set)
    await asyncio.sleep(0)  # a warning about an unseen exception would fail the test


async def test_abandonable_gives_result_and_error():
    assert await blocking.call_abandonable(divmod, 7, 2, timeout=5) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await blocking.call_abandonable(divmod, 7, 0, timeout=5)
    await until(lambda: not blocking.left_behind())


async def test_the_loop_does_not_wait_until_an_abandonable_thread_runs(monkeypatch):
    ready = []

    def start(run, args):
        ready.append(run)  # as on a busy host, which runs it much later

    monkeypatch.setattr(blocking, "_thread", SimpleNamespace(start_new_thread=start))
    call = asyncio.create_task(blocking.call_abandonable(divmod, 7, 2, timeout=5))
    await asyncio.sleep(0)
    (run,) = ready
    run()
    assert await call == (3, 1)


async def test_where_no_thread_can_be_had_nothing_is_left(monkeypatch):
    def start(run, args):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(blocking, "_thread", SimpleNamespace(start_new_thread=start))
    with pytest.raises(RuntimeError, match="can't start new thread"):
        await blocking.call_abandonable(divmod, 7, 2, timeout=5)
    assert not blocking._running


async def test_a_stuck_call_is_left_behind_counted_and_gone_when_it_ends():
    release = threading.Event()
    with pytest.raises(DeadlineExceeded, match=r"/mnt/dead: no answer .* within 0\.05 s"):
        await blocking.call_abandonable(release.wait, timeout=0.05, what="/mnt/dead")
    assert blocking.left_behind() == ["/mnt/dead"]
    release.set()
    await until(lambda: not blocking.left_behind())


async def test_a_cancelled_abandonable_call_is_counted_too():
    release = threading.Event()
    task = asyncio.create_task(
        blocking.call_abandonable(release.wait, timeout=60, what="/mnt/slow")
    )
    await until(lambda: any(call.what == "/mnt/slow" for call in blocking._running))
    assert blocking.left_behind() == []
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert blocking.left_behind() == ["/mnt/slow"]
    release.set()
    await until(lambda: not blocking.left_behind())


async def test_a_call_that_is_about_several_things_says_which_it_is_stuck_in() -> None:
    release, at = threading.Event(), ""

    def look() -> None:
        nonlocal at
        for at in ("/fine", "/mnt/dead", "/never"):
            if at == "/mnt/dead":
                release.wait(10)

    with pytest.raises(DeadlineExceeded, match=r"^/mnt/dead: no answer"):
        await blocking.call_abandonable(look, timeout=0.1, what=lambda: at)
    assert blocking.left_behind() == ["/mnt/dead"]
    release.set()
    await until(lambda: blocking.left_behind() == [])


async def test_each_of_several_things_has_its_own_time() -> None:
    release = threading.Event()
    names: list[str] = []

    def at() -> str:
        names.append(f"/slow/{len(names)}")
        if len(names) == 4:
            release.set()
        return names[-1]

    assert await blocking.call_abandonable(release.wait, 10, timeout=0.02, what=at)
    assert len(names) >= 4
    assert blocking.left_behind() == []


async def test_too_many_stuck_calls_are_refused(monkeypatch):
    monkeypatch.setattr(blocking, "MAX_STUCK", 1)
    release = threading.Event()
    with pytest.raises(DeadlineExceeded):
        await blocking.call_abandonable(release.wait, timeout=0.02)
    with pytest.raises(ResourceExhausted, match="1 earlier calls"):
        await blocking.call_abandonable(divmod, 7, 2, timeout=5)
    release.set()
    await until(lambda: not blocking.left_behind())


def test_a_thread_that_outlives_its_loop_ends_quietly():
    release = threading.Event()

    async def leave() -> None:
        with pytest.raises(DeadlineExceeded):
            await blocking.call_abandonable(release.wait, timeout=0.02)

    asyncio.run(leave())
    release.set()
    deadline = time.monotonic() + 5
    while blocking.left_behind() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert blocking.left_behind() == []


@pytest.mark.parametrize("turns", range(5))
@pytest.mark.parametrize("how", [blocking.call, blocking.call_abandonable])
async def test_a_cancellation_as_the_result_comes_is_not_forgotten(
    how: Callable[..., Any], turns: int
):
    """A session whose client goes away in that instant would go on without one, for ever."""
    may_end = threading.Event()
    task = asyncio.create_task(how(may_end.wait, timeout=60))
    await asyncio.sleep(0)
    may_end.set()
    time.sleep(0.01)  # noqa: ASYNC251 the loop stands: it learns of the result in its next turn
    for _ in range(turns):
        await asyncio.sleep(0)
    if task.cancel():
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        assert await task
