"""The event loop."""

import os
import select
from collections.abc import Iterator
from functools import partial

import pytest

from zos_cri.stdio import loop as loop_module
from zos_cri.stdio.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("patient", [False, True])
def test_events_are_told(loop: Loop, pipe: tuple[int, int], patient: bool) -> None:
    events: list[int] = []
    loop.register(pipe[0], select.EPOLLIN, events.append, patient=patient)
    loop.poll(block=False)
    assert events == []
    os.write(pipe[1], b"x")
    loop.poll(block=True)
    assert events == [select.EPOLLIN]
    loop.modify(pipe[0], 0)
    loop.poll(block=False)
    assert len(events) == 1
    loop.unregister(pipe[0])


def test_timers_run_in_order_and_cancelled_ones_don_t(loop: Loop) -> None:
    ran: list[str] = []
    loop.call_later(0.02, lambda: ran.append("second"))
    loop.call_later(0.01, lambda: ran.append("first"))
    loop.call_later(0.0, lambda: ran.append("never")).cancel()
    while len(ran) < 2:
        loop.poll(block=True)
    assert ran == ["first", "second"]


def test_a_timer_that_sets_itself_anew_doesn_t_keep_the_loop(loop: Loop) -> None:
    ran: list[int] = []

    def again() -> None:
        ran.append(1)
        loop.call_later(0.0, again)

    again()
    for _ in range(5):
        loop.poll(block=False)
    assert 1 <= len(ran) <= 6


def test_an_event_of_a_closed_descriptor_isn_t_told_to_its_number_s_next_owner(
    loop: Loop,
) -> None:
    told: list[str] = []
    pipes = [os.pipe(), os.pipe()]
    quiet = os.pipe()

    def replace(other: int, _events: int) -> None:
        """Whichever is told first gives the other's number to a descriptor with no event."""
        told.append("first")
        loop.unregister(other)
        os.dup2(quiet[0], other)
        loop.register(other, select.EPOLLIN, lambda _: told.append("stale"))

    for n, (reader, writer) in enumerate(pipes):
        loop.register(reader, select.EPOLLIN, partial(replace, pipes[1 - n][0]))
        os.write(writer, b"x")
    loop.poll(block=True)
    assert told == ["first"]
    for fd in (*pipes[0], *pipes[1], *quiet):
        os.close(fd)


def test_a_busy_patient_descriptor_rests_and_a_prompt_one_doesn_t(
    loop: Loop, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    loop.register(pipe[0], select.EPOLLIN | select.EPOLLET, seen.append, patient=True)
    for n in range(3):
        os.write(pipe[1], b"x")
        loop.poll(block=True)
        assert len(seen) == n + 1
    monkeypatch.setattr(loop_module, "REST", 3600.0)
    reader, writer = os.pipe()
    prompt: list[int] = []
    loop.register(reader, select.EPOLLIN, prompt.append)
    os.write(writer, b"x")
    loop.poll(block=True)
    assert prompt
    loop.unregister(reader)
    os.close(reader)
    os.close(writer)
