"""The policy for a disk that refuses."""

import errno
import os
from collections.abc import Callable
from typing import Any

from zos_cri.errors import ResourceExhausted
from zos_cri.stdio.sink import FIRST_PAUSE, LONGEST_PAUSE, Sink


class FakeLog:
    """A log file that refuses when told to."""

    inode = 7
    is_open = True

    def __init__(self, *, is_local: bool = True) -> None:
        self.is_local = is_local
        self.full = False
        self.tries = 0
        self.content = b""

    def open(self, taken_over: int | None = None) -> None:
        self.is_open = True

    def append(self, entries: bytes) -> None:
        self.tries += 1
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/log")
        self.content += entries

    def close(self) -> None:
        self.is_open = False


class FakeBackground:
    """Does what it is given when it is told to."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Callable[[], object], Callable[[Exception | None], None] | None]] = []
        self.refuses = False

    def run(
        self, job: Callable[[], object], done: Callable[[Exception | None], None] | None = None
    ) -> None:
        if self.refuses:
            raise ResourceExhausted("too many are stuck")
        self.jobs.append((job, done))

    def work(self) -> None:
        """Comes to the end of the one that is under way."""
        (job, done), *self.jobs = self.jobs
        error = None
        try:
            job()
        except OSError as raised:
            error = raised
        if done is not None:
            done(error)


def sink(drop_after: float) -> tuple[Sink, FakeLog]:
    log = FakeLog()
    return make(log, drop_after)[0], log


def make(log: FakeLog | None, drop_after: float) -> tuple[Sink, FakeBackground, list[None]]:
    """A sink, its background, and what `on_landed` appends to."""
    background, landed = FakeBackground(), list[None]()
    made: Any = Sink
    out: Sink = made(
        *("c", log, drop_after), background=background, on_landed=lambda: landed.append(None)
    )
    return out, background, landed


def distant(drop_after: float) -> tuple[Sink, FakeLog, FakeBackground, list[None]]:
    """One whose file lies on a file system that may hang."""
    log = FakeLog(is_local=False)
    out, background, landed = make(log, drop_after)
    return out, log, background, landed


def test_it_writes() -> None:
    out, log = sink(0)
    assert out.put(b"2026 stdout F x\n", 2, 1.0, "stdout")
    assert (log.content, out.written, out.failing) == (b"2026 stdout F x\n", 16, "")


def test_without_a_file_all_is_done_with_and_nothing_counted() -> None:
    out, _, _ = make(None, 0)
    assert out.discards
    assert out.put(b"", 5, 1.0, "stdout")
    out.drop(5)
    assert out.dropped == 0


def test_a_full_disk_is_tried_again_with_growing_pauses() -> None:
    out, log = sink(0)
    log.full = True
    now, pauses = 100.0, []
    for _ in range(8):
        assert not out.put(b"x\n", 2, now, "stdout")
        pauses.append(out.retry_at - now)
        assert not out.put(b"x\n", 2, out.retry_at - 0.001, "stdout"), "not before its time"
        now = out.retry_at
    assert log.tries == out.errors == 8
    assert abs(pauses[0] - FIRST_PAUSE) < 1e-6
    assert abs(pauses[-1] - LONGEST_PAUSE) < 1e-6
    assert "No space" in out.failing
    assert out.dropped == 0, "0 seconds is never"
    log.full = False
    assert out.put(b"x\n", 2, now, "stdout")
    assert (out.failing, log.content) == ("", b"x\n")


def test_after_the_time_output_is_dropped_counted_and_the_log_goes_on_by_itself() -> None:
    out, log = sink(10)
    log.full = True
    assert not out.put(b"a\n", 2, 0.0, "stdout")
    assert not out.put(b"a\n", 2, 5.0, "stdout")
    assert out.put(b"a\n", 2, 10.0, "stdout")
    assert out.put(b"b\n", 3, 10.0 + FIRST_PAUSE, "stdout")
    assert out.dropped == 5
    assert log.tries == 3, "the disk isn't asked for every entry"
    log.full = False
    assert out.put(b"c\n", 2, 20.0, "stdout")
    assert (out.dropped, log.content) == (5, b"c\n")
    log.full = True
    assert not out.put(b"d\n", 2, 21.0, "stdout"), "a new failure has its own time"


def test_reopening_tries_at_once() -> None:
    out, log = sink(0)
    log.full = True
    assert not out.put(b"a\n", 2, 1.0, "stdout")
    log.full = False
    out.reopen(lambda _error: None)
    assert out.put(b"a\n", 2, 1.0, "stdout")


def test_a_file_that_could_not_be_opened_is_opened_later() -> None:
    out, background, _ = make(log := FakeLog(), 0)
    log.is_open = False
    assert not out.put(b"a\n", 2, 1.0, "stdout")
    background.work()
    assert out.landed("stdout") == 2
    assert (log.is_open, log.content) == (True, b"a\n")
    assert out.put(b"b\n", 2, 1.0, "stdout")


def test_a_distant_file_is_written_in_the_background_and_the_stream_told() -> None:
    out, log, background, landed = distant(0)
    assert not out.put(b"P a\n", 2, 1.0, "stdout")
    assert out.busy
    assert not out.put(b"P a\nP b\n", 4, 1.1, "stdout"), "one at a time"
    assert not out.put(b"P c\n", 2, 1.1, "stderr")
    assert (out.landed("stdout"), log.content) == (0, b"")
    background.work()
    assert log.content == b"P a\n"
    assert landed == [None]
    assert (out.landed("stderr"), out.landed("stdout"), out.landed("stdout")) == (0, 2, 0)
    assert (out.written, out.dropped, out.retry_at) == (4, 0, 0.0)
    assert not out.put(b"P b\n", 2, 1.2, "stdout")
    background.work()
    assert out.landed("stdout") == 2


def test_a_distant_file_that_refuses_is_tried_again() -> None:
    out, log, background, landed = distant(0)
    log.full = True
    assert not out.put(b"P a\n", 2, 1.0, "stdout")
    background.work()
    assert "No space" in out.failing
    assert out.landed("stdout") == 0
    assert landed == [None]
    assert not out.put(b"P a\n", 2, out.retry_at - 0.01, "stdout")
    assert not background.jobs
    log.full = False
    assert not out.put(b"P a\n", 2, out.retry_at, "stdout")
    background.work()
    assert (out.landed("stdout"), out.failing, out.dropped) == (2, "", 0)


def test_a_file_system_that_does_not_answer_holds_the_container_only_so_long() -> None:
    out, log, background, _ = distant(10)
    now = 1.0
    while not out.put(b"P a\n", 2, now, "stdout"):
        assert now < 20, "it holds the container for ever"
        assert out.retry_at > now
        now = out.retry_at
    assert now >= 10 - 2 * LONGEST_PAUSE
    assert "no answer" in out.failing
    assert out.put(b"P b\n", 2, now + 1, "stdout")
    assert out.dropped == 4
    assert len(background.jobs) == 1, "one call is stuck, not one for each attempt"
    background.work()  # it answers after all
    assert out.landed("stdout") == 0, "the stream hasn't waited"
    assert (log.content, out.failing) == (b"P a\n", "")
    assert not out.put(b"P c\n", 2, now + 2, "stdout")
    background.work()
    assert out.landed("stdout") == 2


def test_zero_seconds_wait_for_a_silent_file_system_for_ever() -> None:
    out, _, _, _ = distant(0)
    assert not any(out.put(b"P a\n", 2, float(now), "stdout") for now in range(1, 1000))


def test_a_file_is_opened_in_the_background_and_then_written_to_directly() -> None:
    out, background, landed = make(log := FakeLog(), 0)
    log.is_open = False
    answers: list[Exception | None] = []
    out.open(answers.append)
    assert not out.put(b"P a\n", 2, 1.0, "stdout")
    assert answers == []
    background.work()
    assert (answers, landed) == ([None], [None])
    assert out.put(b"P a\n", 2, 1.0, "stdout")
    assert not background.jobs


def test_a_reopen_waits_for_the_write_that_is_under_way() -> None:
    out, log, background, _ = distant(0)
    answers: list[Exception | None] = []
    out.put(b"P a\n", 2, 1.0, "stdout")
    out.reopen(answers.append)
    log.is_open = False
    background.work()
    assert answers == []
    background.work()
    assert answers == [None]
    assert log.is_open


def test_it_is_closed_once_nobody_uses_it() -> None:
    out, log, background, landed = distant(0)
    out.put(b"P a\n", 2, 1.0, "stdout")
    out.close()
    assert log.is_open
    background.work()
    background.work()
    assert not bool(log.is_open)
    assert landed == [], "nobody is there any more"


def test_too_many_stuck_calls_are_a_refusal() -> None:
    out, log, background, _ = distant(0)
    background.refuses = True
    assert not out.put(b"P a\n", 2, 1.0, "stdout")
    assert not out.busy
    assert "stuck" in out.failing
    assert not out.put(b"P a\n", 2, 1.0 + FIRST_PAUSE, "stdout")
    background.refuses = False
    assert not out.put(b"P a\n", 2, out.retry_at, "stdout")
    background.work()
    assert (out.landed("stdout"), log.content) == (2, b"P a\n")
