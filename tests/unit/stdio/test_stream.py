"""From a FIFO into the log: what is written, what stays, what a killed logger leaves."""

import os
import random
from pathlib import Path

import pytest

from tests.unit.stdio.conftest import Rig
from zos_cri.errors import InvalidArgument, NotFound
from zos_cri.stdio import stream
from zos_cri.stdio.stream import Pipe, set_capacity, unread


def test_looking_takes_nothing_and_taking_takes_exactly() -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    pipe = Pipe()
    assert pipe.look(reader, 100) is None
    os.write(writer, b"0123456789")
    assert pipe.look(reader, 100) == pipe.look(reader, 100) == b"0123456789"
    assert pipe.look(reader, 4) == b"0123"
    pipe.take(reader, 3)
    assert unread(reader) == 7
    assert pipe.look(reader, 100) == b"3456789"
    os.close(writer)
    pipe.take(reader, 7)
    assert pipe.look(reader, 100) == b""
    os.close(reader)
    pipe.close()


def test_a_pipe_is_made_larger_but_never_smaller() -> None:
    reader, writer = os.pipe()
    assert set_capacity(reader, 1 << 18) == 1 << 18
    assert set_capacity(reader, 1 << 16) == 1 << 18
    os.close(reader)
    os.close(writer)


def test_lines_of_both_streams(rig: Rig) -> None:
    rig.attach(rig.spec())
    rig.open()
    rig.write(b"a\nb\n")
    rig.write(b"oops\n", "stderr")
    rig.until(lambda: len(rig.entries()) == 3)
    assert sorted(rig.entries()) == [b"stderr F oops", b"stdout F a", b"stdout F b"]


def test_an_unterminated_line_stays_in_the_fifo(rig: Rig) -> None:
    rig.attach(rig.spec())
    rig.open()
    rig.write(b"whole\nhalf")
    rig.settle()
    assert rig.entries() == [b"stdout F whole"]
    assert unread(rig.writers["stdout"]) == 4
    rig.write(b" and half\n")
    rig.settle()
    assert rig.entries() == [b"stdout F whole", b"stdout F half and half"]
    assert unread(rig.writers["stdout"]) == 0


def test_the_end_writes_it_as_partial(rig: Rig) -> None:
    rig.attach(rig.spec())
    rig.open()
    rig.write(b"half")
    rig.hang_up()
    rig.settle()
    assert rig.entries() == [b"stdout P half"]
    assert rig.finish().complete


def test_long_lines_are_cut_at_the_container_s_limit(rig: Rig) -> None:
    rig.attach(rig.spec(max_line=100))
    rig.open()
    rig.write(b"x" * 250 + b"\n" + b"y" * 100 + b"\n")
    rig.settle()
    x = b"x" * 100
    assert rig.entries() == [
        b"stdout P " + x,
        b"stdout P " + x,
        b"stdout F " + b"x" * 50,
        b"stdout F " + b"y" * 100,
    ]


@pytest.mark.parametrize("max_line", [0, -1])
def test_without_a_limit_lines_longer_than_any_pipe_are_whole(rig: Rig, max_line: int) -> None:
    rig.attach(rig.spec(max_line=max_line))
    rig.open()
    long = random.Random(1).randbytes(3 << 20).replace(b"\n", b" ")
    rig.write(b"before\n" + long + b"\nafter\n")
    rig.settle()
    assert rig.entries() == [b"stdout F before", b"stdout F " + long, b"stdout F after"]
    assert not list((rig.directory / "state").glob("*.part"))


def test_a_gathered_line_survives_the_logger(rig: Rig) -> None:
    rig.attach(rig.spec(max_line=0))
    rig.open()
    rig.write(b"l" * (2 << 20))
    rig.until(lambda: list((rig.directory / "state").glob("*.part")))
    rig.succeed()
    rig.write(b"end\n")
    rig.settle()
    assert rig.entries() == [b"stdout F " + b"l" * (2 << 20) + b"end"]


def test_a_gathered_line_s_end_without_newline(rig: Rig) -> None:
    rig.attach(rig.spec(max_line=0))
    rig.open()
    rig.write(b"l" * (2 << 20))
    rig.hang_up()
    assert rig.finish().complete
    assert rig.entries() == [b"stdout P " + b"l" * (2 << 20)]


def test_many_empty_lines_go_in_smaller_steps(rig: Rig) -> None:
    rig.attach(rig.spec())
    rig.open()
    rig.write(b"\n" * 300_000)
    rig.settle()
    assert rig.log.read_bytes().count(b" stdout F \n") == 300_000


def test_what_a_dead_logger_left_is_written_by_the_next(rig: Rig) -> None:
    rig.attach(rig.spec())
    rig.open()
    rig.write(b"first\nsec")
    rig.settle()
    keep = os.open(rig.directory / "stdout", os.O_RDONLY | os.O_NONBLOCK)
    rig.die()
    rig.write(b"ond\nthird")
    rig.hang_up()
    rig.succeed()
    assert rig.finish().complete
    assert rig.entries() == [b"stdout F first", b"stdout F second", b"stdout P third"]
    os.close(keep)


def test_killed_between_write_and_take_only_whole_entries_are_repeated(rig: Rig) -> None:
    rig.attach(rig.spec())
    rig.open()
    rig.write(b"a\nb\nc")
    keep = os.open(rig.directory / "stdout", os.O_RDONLY | os.O_NONBLOCK)
    before = rig.log.read_bytes()
    assert before == b""
    # What the killed one had written, and a torn entry of what it was about to.
    rig.log.write_bytes(b"T" * 30 + b" stdout F a\n" + b"T" * 30 + b" stdout F b\n" + b"T" * 20)
    rig.succeed()
    rig.settle()
    assert rig.entries() == [b"stdout F a", b"stdout F b"] * 2
    os.close(keep)


def test_no_log_path_drains_and_drops(rig: Rig) -> None:
    rig.attach(rig.spec(log_path="", log_root=""))
    rig.open()
    rig.write(b"x" * (3 << 20))
    rig.hang_up()
    finished = rig.finish()
    assert finished.complete
    assert finished.dropped == 0
    assert not (rig.directory / "logs").exists()


def test_what_isn_t_a_fifo_is_refused(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument, match="no FIFO"):
        rig.attach(rig.spec(stdout=str(tmp_path / "file")))
    with pytest.raises(NotFound, match="absent"):
        rig.attach(rig.spec(stdout=str(tmp_path / "absent")))
    assert rig.logger.list() == []


def test_a_step_is_bounded(rig: Rig) -> None:
    assert stream.QUANTUM * 4 <= stream.PIPE_SIZE
    rig.attach(rig.spec())
    rig.open()
    set_capacity(rig.writers["stdout"], 1 << 20)
    os.write(rig.writers["stdout"], b"x" * 99 + b"\n")
    data = (b"y" * 99 + b"\n") * 9000
    os.write(rig.writers["stdout"], data)
    rig.until(lambda: len(rig.entries()) == 9001)
