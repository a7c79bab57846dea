from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from zos_cri.linux.cgroup import Cgroups
from zos_cri.linux.moves import Moves, _groups, _own, stay

PATIENCE = 10  # seconds, for a thread's next step


class Kernel:
    """Counts moves; each waits for `go`."""

    def __init__(self):
        self.made = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.failure = None
        self.threads = set()

    def move(self):
        self.threads.add(threading.current_thread())
        self.made.release()
        assert self.go.acquire(timeout=PATIENCE)
        if self.failure is not None:
            raise self.failure

    def moved(self, timeout=PATIENCE):
        return self.made.acquire(timeout=timeout)


@pytest.fixture
def kernel():
    return Kernel()


@pytest.fixture
def moves(kernel):
    moves = Moves(kernel.move)
    yield moves
    moves.close()
    kernel.go.release(1000)
    for thread in kernel.threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_nothing_moves_where_nothing_is_expected(kernel, moves):
    assert not kernel.threads
    with moves.expected():
        assert kernel.moved()
    kernel.go.release(1)
    # The one that was under way was the last: no second one comes for the next to find.
    with moves.expected():
        assert kernel.moved()
        kernel.go.release(1)
        assert kernel.moved()  # again and again while it lasts
    assert len(kernel.threads) == 1


def test_what_is_expected_twice_ends_with_the_last(kernel, moves):
    with moves.expected():
        with moves.expected():
            assert kernel.moved()
        kernel.go.release(1)
        assert kernel.moved()


def test_a_start_that_hangs_does_not_go_on_for_ever(kernel):
    kernel.go.release(1000)
    moves = Moves(kernel.move, longest=0.05)
    with moves.expected():
        assert len(moves) == 1
        deadline = time.monotonic() + PATIENCE
        while len(moves) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert len(moves) == 0
    moves.close()


def test_a_start_that_is_announced_is_waited_for_a_moment(kernel, monkeypatch):
    kernel.go.release(1000)
    monkeypatch.setattr("zos_cri.linux.moves.SOON", 0.05)
    moves = Moves(kernel.move)
    moves.soon()
    assert kernel.moved()
    deadline = time.monotonic() + PATIENCE
    while moves._wanted.is_set() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not moves._wanted.is_set()  # none came
    monkeypatch.setattr("zos_cri.linux.moves.SOON", PATIENCE)
    moves.soon()
    with moves.expected():
        pass
    while moves._wanted.is_set() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not moves._wanted.is_set()  # the one that came ends it
    moves.close()


def test_a_kernel_that_refuses_is_asked_once(kernel, moves, caplog):
    kernel.failure = PermissionError(1, "no")
    with moves.expected():
        assert kernel.moved()
        kernel.go.release(10)
        (thread,) = kernel.threads
        thread.join(PATIENCE)
        assert not thread.is_alive()
    with moves.expected():
        assert not kernel.moved(timeout=0)
    assert "cgroup moves are not prepared" in caplog.text


def test_where_moves_do_not_wait_there_is_no_thread():
    before = threading.active_count()
    moves = Moves(None)
    moves.soon()
    with moves.expected():
        assert threading.active_count() == before


def test_no_cgroup(tmp_path):
    with pytest.raises(FileNotFoundError, match="no cgroup of this process"):
        stay(Cgroups(str(tmp_path)))()


@pytest.mark.root
def test_this_process_stays_where_it_is_now():
    before = _groups()
    move = stay(Cgroups())
    move()
    assert _groups() == before
    directory = Path(_own(Cgroups(), before.decode()))
    elsewhere = directory / f"moved-{os.getpid()}"
    elsewhere.mkdir()
    try:
        for name in ("cpuset.cpus", "cpuset.mems"):  # without them v1's cpuset takes nobody
            if (directory / name).exists():
                (elsewhere / name).write_text((directory / name).read_text())
        (elsewhere / "cgroup.procs").write_text("0")  # by somebody else
        after = _groups()
        assert after != before
        move()
        assert _groups() == after
    finally:
        (directory / "cgroup.procs").write_text("0")
        elsewhere.rmdir()
