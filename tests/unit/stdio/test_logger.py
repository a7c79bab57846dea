"""What the logger is asked for."""

import contextlib
import os
import random
import resource
from pathlib import Path

import pytest

from tests.unit.stdio.conftest import Rig
from zos_cri.errors import AlreadyExists, InvalidArgument, NotFound
from zos_cri.stdio.messages import Finished
from zos_cri.stdio.stream import unread


def test_attaching_twice_is_nothing_and_to_something_else_refused(rig: Rig) -> None:
    rig.attach(rig.spec())
    rig.attach(rig.spec())
    rig.attach(rig.spec(max_line=99))  # by a server that is configured otherwise
    with pytest.raises(AlreadyExists):
        rig.attach(rig.spec(log_path=str(rig.log) + "2"))
    assert rig.logger.status().containers == 1


def test_attaching_again_after_the_end_reads_again(rig: Rig) -> None:
    """The shim's Create failed half-way, and is tried again."""
    rig.attach(rig.spec())
    rig.open()
    rig.hang_up()
    rig.until(lambda: rig.logger.list()[0].ended)
    rig.attach(rig.spec())
    rig.open()
    rig.write(b"second\n")
    rig.settle()
    assert rig.entries() == [b"stdout F second"]


def test_attaching_again_before_the_end_was_seen_reads_again(rig: Rig) -> None:
    """The end of the first try's writers is news to us only when the second try has begun."""
    rig.attach(rig.spec())
    rig.open()
    rig.write(b"first, cut ")
    rig.hang_up()
    rig.attach(rig.spec())
    rig.settle()
    rig.open()
    rig.write(b"off\nsecond\n")
    rig.settle()
    rig.hang_up()
    assert rig.finish().complete
    assert rig.entries() == [b"stdout F first, cut off", b"stdout F second"]


def test_writers_of_the_first_try_that_go_late_end_nothing(rig: Rig) -> None:
    rig.attach(rig.spec())
    rig.open()
    rig.attach(rig.spec())
    rig.hang_up()
    rig.settle()
    rig.open()
    rig.write(b"second\n")
    rig.settle()
    rig.hang_up()
    rig.settle()
    assert rig.finish().complete
    assert rig.entries() == [b"stdout F second"]


def test_a_tiny_line_limit_is_refused(rig: Rig) -> None:
    with pytest.raises(InvalidArgument, match="max_line"):
        rig.attach(rig.spec(max_line=1))


def test_a_refused_log_path_leaves_nothing(rig: Rig) -> None:
    with pytest.raises(InvalidArgument):
        rig.attach(rig.spec(log_path=str(rig.directory / "elsewhere")))
    assert rig.logger.list() == []
    assert not list((rig.directory / "state").iterdir())


def test_reopening_switches_files_at_an_entry_s_boundary(rig: Rig) -> None:
    rig.attach(rig.spec())
    rig.open()
    rig.write(b"old\nbegun in the old")
    rig.settle()
    rig.log.rename(rig.log.with_name("1.log"))
    rig.reopen()
    rig.write(b", ended in the new\n")
    rig.settle()
    assert rig.entries(rig.log.with_name("1.log")) == [b"stdout F old"]
    assert rig.entries() == [b"stdout F begun in the old, ended in the new"]


def test_reopening_what_isn_t_there(rig: Rig) -> None:
    with pytest.raises(NotFound):
        rig.reopen()


def test_a_log_rotated_while_no_logger_was_there(rig: Rig) -> None:
    rig.attach(rig.spec())
    rig.open()
    rig.write(b"one\n")
    rig.settle()
    old = rig.log.with_name("0.log.1")
    rig.log.rename(old)
    with old.open("ab") as file:
        file.write(b"torn")
    rig.succeed()
    rig.write(b"two\n")
    rig.settle()
    assert rig.entries(old) == [b"stdout F one"]
    assert rig.entries() == [b"stdout F two"]


def test_finishing_waits_for_the_last_writer(rig: Rig) -> None:
    rig.attach(rig.spec())
    rig.open()
    answers: list[Finished] = []
    rig.logger.finish("c", 30, answers.append)
    rig.write(b"last words")
    rig.hang_up("stdout")
    rig.settle()
    assert answers == []
    rig.write(b"very last", "stderr")
    rig.hang_up("stderr")
    rig.until(lambda: answers)
    assert answers == [Finished(known=True, complete=True)]
    assert sorted(rig.entries()) == [b"stderr P very last", b"stdout P last words"]
    assert rig.logger.list() == []
    assert not list((rig.directory / "state").iterdir())


def test_finishing_is_bounded_though_somebody_holds_the_fifo(rig: Rig) -> None:
    rig.attach(rig.spec())
    rig.open()
    rig.write(b"line\nhalf a line")
    finished = rig.finish(0.05)
    assert finished == Finished(known=True, complete=False)
    assert rig.entries() == [b"stdout F line", b"stdout P half a line"]
    assert unread(rig.writers["stdout"]) == 0


def test_a_container_that_was_never_started_is_finished_at_once(rig: Rig) -> None:
    rig.attach(rig.spec())
    assert rig.finish(30).complete
    assert not rig.finish(30).known, "and then it is unknown"


def test_several_may_wait_for_the_same_end(rig: Rig) -> None:
    rig.attach(rig.spec())
    rig.open()
    answers: list[Finished] = []
    rig.logger.finish("c", 30, answers.append)
    rig.logger.finish("c", 30, answers.append)
    rig.hang_up()
    rig.until(lambda: len(answers) == 2)


def test_detaching_writes_what_is_there(rig: Rig) -> None:
    rig.attach(rig.spec())
    rig.open()
    rig.write(b"a\nb")
    rig.logger.detach("c")
    rig.logger.detach("c")
    assert rig.entries() == [b"stdout F a", b"stdout P b"]
    assert rig.logger.list() == []


def test_a_container_whose_fifos_are_gone_isn_t_taken_over(rig: Rig) -> None:
    rig.attach(rig.spec())
    rig.die()
    (rig.directory / "stdout").unlink()
    rig.succeed()
    assert rig.logger.list() == []
    assert not list((rig.directory / "state").iterdir())


def test_a_full_disk_keeps_output_in_the_fifo_until_there_is_room(rig: Rig) -> None:
    rig.attach(rig.spec(drop_after=0))
    rig.open()
    rig.write(b"first\n")
    rig.settle()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    data = b"".join(b"%d\n" % n for n in range(5000))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # for log and notes alike
    try:
        rig.write(data)
        rig.until(lambda: rig.logger.list()[0].failing)
        rig.settle()
        assert rig.entries() == [b"stdout F first"]
        assert unread(rig.writers["stdout"]) == len(data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    rig.until(lambda: unread(rig.writers["stdout"]) == 0)
    wanted = [b"stdout F first", *(b"stdout F %d" % n for n in range(5000))]
    assert rig.entries() == wanted
    status = rig.logger.status()
    assert status.write_errors > 0
    assert status.bytes_dropped == 0


def test_a_disk_that_stays_full_doesn_t_hold_the_container_for_ever(rig: Rig) -> None:
    rig.attach(rig.spec(drop_after=0.01))
    rig.open()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    data = (b"x" * 99 + b"\n") * 30_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        rig.write(data)
        rig.until(lambda: unread(rig.writers["stdout"]) == 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    while b"stdout F again" not in rig.entries():
        rig.write(b"again\n")
        rig.turn()
    assert set(rig.entries()) == {b"stdout F again"}
    rig.hang_up()
    dropped = rig.finish().dropped
    assert dropped >= len(data)
    assert rig.logger.status().bytes_dropped == dropped


def test_what_a_full_disk_wouldn_t_take_by_the_end_is_counted(rig: Rig) -> None:
    rig.attach(rig.spec(drop_after=0))
    rig.open()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        rig.write(b"lost\n" * 10)
        rig.hang_up()
        assert rig.finish(0.05) == Finished(known=True, complete=False, dropped=50)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_busy_container_doesn_t_starve_another(rig: Rig, tmp_path: Path) -> None:
    rig.attach(rig.spec())
    os.mkfifo(tmp_path / "other")
    log = tmp_path / "other.log"
    rig.attach(
        rig.spec(id="o", log_path=str(log), log_root="", stdout=str(tmp_path / "other"), stderr="")
    )
    rig.open()
    other = os.open(tmp_path / "other", os.O_WRONLY)
    block = (b"x" * 99 + b"\n") * 300

    def keep_full() -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(rig.writers["stdout"], block)

    for n in range(20):
        keep_full()
        rig.turn()
        keep_full()
        os.write(other, b"%d\n" % n)
        for _ in range(3):
            if log.read_bytes().endswith(b"F %d\n" % n):
                break
            keep_full()
            rig.turn()
        else:
            pytest.fail(f"line {n} isn't written after three turns")
    os.close(other)


def test_numbers(rig: Rig) -> None:
    rig.attach(rig.spec())
    rig.open()
    rig.write(b"12345\n")
    rig.settle()
    status = rig.logger.status()
    assert (status.containers, status.bytes_in, status.bytes_out) == (1, 6, 6 + 40)
    assert status.pid == os.getpid()
    (attached,) = rig.logger.list()
    assert (attached.spec, attached.bytes_in, attached.ended) == (rig.spec(), 6, False)
    rig.hang_up()
    rig.finish()
    assert rig.logger.status().bytes_in == 6, "what is forgotten still counts"


@pytest.mark.parametrize("kind", ["rig", "distant"])
def test_random_pieces_on_both_streams(kind: str, request: pytest.FixtureRequest) -> None:
    rig: Rig = request.getfixturevalue(kind)
    rng = random.Random(5)
    rig.attach(rig.spec(max_line=64))
    rig.open()
    sent = {"stdout": b"", "stderr": b""}
    for _ in range(2000):
        name = rng.choice(list(sent))
        piece = bytes(rng.choice(b"ab\n\r\xff\x00") for _ in range(rng.randrange(40)))
        sent[name] += piece
        rig.write(piece, name)
        if rng.random() < 0.5:
            rig.turn()
        if rng.random() < 0.02:
            rig.reopen()
    rig.hang_up()
    assert rig.finish().complete
    for name, data in sent.items():
        back = b""
        for entry in rig.entries():
            stream, tag, line = entry.split(b" ", 2)
            if stream == name.encode():
                back += line + (b"\n" if tag == b"F" else b"")
        assert back == data


def test_a_distant_log_s_life(distant: Rig) -> None:
    distant.attach(distant.spec())
    distant.open()
    distant.write(b"one\nhalf")
    distant.settle()
    assert distant.entries() == [b"stdout F one"]
    distant.log.rename(distant.log.with_name("1.log"))
    distant.reopen()
    distant.write(b" and half\n")
    distant.write(b"err\n", "stderr")
    distant.settle()
    assert sorted(distant.entries()) == [b"stderr F err", b"stdout F half and half"]
    distant.succeed()
    distant.write(b"after\nend")
    distant.hang_up()
    assert distant.finish().complete
    assert distant.entries()[-2:] == [b"stdout F after", b"stdout P end"]


def test_a_distant_log_is_finished_in_time_though_somebody_holds_the_fifo(distant: Rig) -> None:
    distant.attach(distant.spec())
    distant.open()
    distant.write(b"one\nhalf")
    finished = distant.finish(0.05)
    assert (finished.complete, finished.dropped) == (False, 0)
    assert distant.entries() == [b"stdout F one", b"stdout P half"]
    assert distant.logger.list() == []
