"""The policy for a disk that refuses."""

import errno
import os

from zos_cri.stdio.sink import FIRST_PAUSE, LONGEST_PAUSE, Sink


class FakeLog:
    """A log file that refuses when told to."""

    inode = 7
    is_open = True

    def __init__(self) -> None:
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


def sink(drop_after: float) -> tuple[Sink, FakeLog]:
    log = FakeLog()
    return Sink("c", log, drop_after), log  # type: ignore[arg-type]


def test_it_writes() -> None:
    out, log = sink(0)
    assert out.put(b"2026 stdout F x\n", 2, 1.0)
    assert (log.content, out.written, out.failing) == (b"2026 stdout F x\n", 16, "")


def test_without_a_file_all_is_done_with_and_nothing_counted() -> None:
    out = Sink("c", None, 0)
    assert out.discards
    assert out.put(b"", 5, 1.0)
    out.drop(5)
    assert out.dropped == 0


def test_a_full_disk_is_tried_again_with_growing_pauses() -> None:
    out, log = sink(0)
    log.full = True
    now, pauses = 100.0, []
    for _ in range(8):
        assert not out.put(b"x\n", 2, now)
        pauses.append(out.retry_at - now)
        assert not out.put(b"x\n", 2, out.retry_at - 0.001), "not before its time"
        now = out.retry_at
    assert log.tries == out.errors == 8
    assert abs(pauses[0] - FIRST_PAUSE) < 1e-6
    assert abs(pauses[-1] - LONGEST_PAUSE) < 1e-6
    assert "No space" in out.failing
    assert out.dropped == 0, "0 seconds is never"
    log.full = False
    assert out.put(b"x\n", 2, now)
    assert (out.failing, log.content) == ("", b"x\n")


def test_after_the_time_output_is_dropped_counted_and_the_log_goes_on_by_itself() -> None:
    out, log = sink(10)
    log.full = True
    assert not out.put(b"a\n", 2, 0.0)
    assert not out.put(b"a\n", 2, 5.0)
    assert out.put(b"a\n", 2, 10.0)
    assert out.put(b"b\n", 3, 10.0 + FIRST_PAUSE)
    assert out.dropped == 5
    assert log.tries == 3, "the disk isn't asked for every entry"
    log.full = False
    assert out.put(b"c\n", 2, 20.0)
    assert (out.dropped, log.content) == (5, b"c\n")
    log.full = True
    assert not out.put(b"d\n", 2, 21.0), "a new failure has its own time"


def test_reopening_tries_at_once() -> None:
    out, log = sink(0)
    log.full = True
    assert not out.put(b"a\n", 2, 1.0)
    log.full = False
    out.reopen()
    assert out.put(b"a\n", 2, 1.0)


def test_a_file_that_could_not_be_opened_is_opened_later() -> None:
    out, log = sink(0)
    log.is_open = False
    assert out.put(b"a\n", 2, 1.0)
    assert log.is_open
