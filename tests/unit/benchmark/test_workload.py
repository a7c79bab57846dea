"""Work spread over threads."""

from __future__ import annotations

import threading

import pytest

from hack.benchmark.workload import Recorder, spread


def test_every_number_once() -> None:
    done: list[int] = []
    spread(4, 20, done.append)
    assert sorted(done) == list(range(20))


def test_as_many_at_once_as_asked_for() -> None:
    meeting = threading.Barrier(3, timeout=10)
    spread(3, 6, lambda _: meeting.wait())


def test_the_first_failure_ends_it() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        done.append(number)
        raise ValueError(f"number {number}")

    with pytest.raises(ValueError, match="number"):
        spread(2, 1000, work)
    assert len(done) <= 2


def test_recorder_notes_no_failures() -> None:
    recorder = Recorder()
    with pytest.raises(ValueError, match="no"), recorder.time("a"):
        raise ValueError("no")
    with recorder.time("b"):
        pass
    assert list(recorder.samples) == ["b"]
