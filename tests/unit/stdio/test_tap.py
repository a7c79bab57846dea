"""Subscribers."""

import os
from collections.abc import Iterator

import pytest

from tests.unit.stdio.conftest import Rig
from zos_cri.errors import FailedPrecondition, NotFound


class Reader:
    def __init__(self) -> None:
        self.fd, self.theirs = os.pipe()
        os.set_blocking(self.fd, False)
        self.data = b""
        self.ended = False

    def read(self) -> bytes:
        try:
            while chunk := os.read(self.fd, 65536):
                self.data += chunk
            self.ended = True
        except BlockingIOError:
            pass
        return self.data

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@pytest.fixture
def out() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.close()


@pytest.fixture
def err() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.close()


@pytest.fixture
def running(rig: Rig) -> Rig:
    rig.attach(rig.spec())
    rig.open()
    return rig


def test_it_gets_what_comes_from_now_on(running: Rig, out: Reader, err: Reader) -> None:
    running.write(b"before\nprompt> ")
    running.settle()
    running.logger.tap("c", [("stdout", out.theirs), ("stderr", err.theirs)])
    running.write(b"typed")
    running.write(b"oops\n", "stderr")
    running.settle()
    assert out.read() == b"typed", "an unterminated line is shown at once, and once"
    running.write(b" on\nnext\n")
    running.settle()
    assert out.read() == b"typed on\nnext\n"
    assert err.read() == b"oops\n"
    assert b"stdout F prompt> typed on" in running.entries()
    assert running.logger.status().taps == 2


def test_its_end_is_the_stream_s(running: Rig, out: Reader) -> None:
    running.logger.tap("c", [("stdout", out.theirs)])
    running.write(b"bye")
    running.hang_up()
    running.finish()
    assert out.read() == b"bye"
    assert out.ended


def test_several_get_the_same(running: Rig, out: Reader, err: Reader) -> None:
    for reader in (out, err):
        running.logger.tap("c", [("stdout", reader.theirs)])
    running.write(b"hello\n")
    running.settle()
    assert out.read() == err.read() == b"hello\n"


def test_a_slow_one_slows_its_container_alone(running: Rig, out: Reader) -> None:
    running.logger.tap("c", [("stdout", out.theirs)])
    block = b"x" * 4095 + b"\n"
    sent = 0
    try:
        for _ in range(10_000):
            sent += os.write(running.writers["stdout"], block)
            running.turn()
        pytest.fail("its container isn't slowed")
    except BlockingIOError:
        assert sent < 4 << 20
    running.write(b"still served\n", "stderr")
    running.settle()
    assert running.entries()[-1] == b"stderr F still served"
    running.until(lambda: len(out.read()) == sent)
    assert len([e for e in running.entries() if e.startswith(b"stdout")]) == sent // len(block)


def test_one_that_vanishes_is_removed_and_holds_nothing(running: Rig, out: Reader) -> None:
    running.logger.tap("c", [("stdout", out.theirs)])
    data = (b"x" * 99 + b"\n") * 5000
    os.write(running.writers["stdout"], data)
    running.settle()
    assert len(running.entries()) < 5000, "it is held"
    out.close()
    running.until(lambda: len(running.entries()) == 5000)
    assert running.logger.status().taps == 0


def test_an_idle_one_that_vanishes_is_removed_at_once(running: Rig, out: Reader) -> None:
    running.logger.tap("c", [("stdout", out.theirs)])
    out.close()
    running.settle()
    assert running.logger.status().taps == 0


def test_one_that_vanished_just_before_a_write_is_removed(running: Rig, out: Reader) -> None:
    running.logger.tap("c", [("stdout", out.theirs)])
    running.write(b"x\n")
    out.close()
    running.logger.finish("c", 30, lambda _: None)  # steps before the loop tells of the reader
    running.settle()
    assert running.logger.status().taps == 0


def test_a_slow_one_doesn_t_hold_the_log_s_end_back(running: Rig, out: Reader) -> None:
    running.logger.tap("c", [("stdout", out.theirs)])
    data = (b"x" * 99 + b"\n") * 9000
    os.write(running.writers["stdout"], data)
    running.settle()
    running.hang_up()
    assert running.finish().complete
    assert len(running.entries()) == 9000
    running.until(lambda: out.read() and out.ended)
    assert out.data == data, "and still gets all of it"


def test_without_a_log_file_taps_work(rig: Rig, out: Reader) -> None:
    rig.attach(rig.spec(log_path="", log_root=""))
    rig.open()
    rig.logger.tap("c", [("stdout", out.theirs)])
    rig.write(b"no newline")
    rig.settle()
    assert out.read() == b"no newline"


def test_tapping_what_isn_t_there(rig: Rig, out: Reader, err: Reader) -> None:
    with pytest.raises(NotFound):
        rig.logger.tap("c", [("stdout", out.theirs)])
    rig.attach(rig.spec())
    rig.open()
    rig.hang_up()
    rig.settle()
    with pytest.raises(FailedPrecondition):
        rig.logger.tap("c", [("stdout", out.theirs)])
    os.close(out.theirs)
    os.close(err.theirs)


def test_a_stream_that_the_container_hasn_t_got_ends_at_once(rig: Rig, err: Reader) -> None:
    rig.attach(rig.spec(stderr=""))
    rig.logger.tap("c", [("stderr", err.theirs)])
    err.read()
    assert err.ended
