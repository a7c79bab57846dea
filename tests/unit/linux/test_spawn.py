from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import pytest
import uvloop

from tests.descriptors import open_descriptors
from zos_cri.errors import DeadlineExceeded
from zos_cri.linux import spawn

if TYPE_CHECKING:
    from collections.abc import Callable

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
uvloop.new_event_loop().close()  # its first loop opens two descriptors for the process's life


@pytest.fixture(params=sorted(LOOPS))
def loop_run(request):
    """Runs a coroutine function in a new loop of each kind."""

    def run(main):
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            return runner.run(main())

    return run


def children() -> set[int]:
    """Our children, zombies too."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                    found.add(int(name))
    return found


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "condition never came true"
        await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def nothing_left():
    before, fds = children(), open_descriptors()
    yield
    assert children() <= before
    assert open_descriptors() <= fds


def test_output_and_exit_code(loop_run):
    async def main():
        return await spawn.run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout=10)

    done = loop_run(main)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
    assert not done.truncated
    assert not done.held_open
    assert done.failure() == "sh: exit code 3: err"


def test_a_signal_is_a_negative_code(loop_run):
    async def main():
        return await spawn.run(["sh", "-c", "kill -TERM $$"], timeout=10)

    done = loop_run(main)
    assert done.returncode == -signal.SIGTERM
    assert done.failure() == "sh: killed by SIGTERM"


def test_an_unnamed_signal_is_named_by_its_number():
    done = spawn.Completed(argv=("x",), returncode=-40, stdout=b"o" * 600, stderr=b"")
    assert done.failure() == f"x: killed by signal 40: …{'o' * 512}"


@pytest.mark.parametrize("size", [1, 65536, 3_000_000])
def test_stdin_of_any_size(loop_run, size):
    data = os.urandom(size)

    async def main():
        return await spawn.run(["cat"], stdin=data, timeout=20, max_output=4 << 20)

    assert loop_run(main).stdout == data


def test_a_child_that_does_not_read_its_stdin(loop_run):
    async def main():
        return await spawn.run(["true"], stdin=b"x" * 1_000_000, timeout=10)

    assert loop_run(main).returncode == 0


def test_output_is_bounded_and_flagged(loop_run):
    async def main():
        return await spawn.run(
            ["sh", "-c", "head -c 5000000 /dev/zero; echo done >&2"], timeout=20, max_output=1000
        )

    done = loop_run(main)
    assert len(done.stdout) == 1000
    assert done.truncated
    assert done.stderr == b"done\n"  # it was read to its end: the child wasn't stopped by us


def test_the_timeout_kills_the_whole_group_and_tells_what_was_said(loop_run):
    async def main():
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded) as caught:
            await spawn.run(
                ["sh", "-c", "echo waiting for the disk >&2; sleep 60 & sleep 60"], timeout=0.3
            )
        assert time.monotonic() - began < 3
        return str(caught.value)

    message = loop_run(main)
    assert message == (
        "sh: still running after 0.3 s, its process group was killed; stderr: waiting for the disk"
    )


def test_the_timeout_kills_grandchildren(loop_run, tmp_path):
    pid_file = tmp_path / "pid"

    async def main():
        with pytest.raises(DeadlineExceeded, match="wrote nothing to stderr"):
            await spawn.run(["sh", "-c", f"sleep 60 & echo $! > {pid_file}; wait"], timeout=0.5)
        grandchild = spawn.open_pid(int(pid_file.read_text()))
        if grandchild is not None:  # its new parent may have reaped it already
            with grandchild:
                assert await grandchild.wait(10)

    loop_run(main)


def test_a_grandchild_that_holds_the_pipe_does_not_hold_us(loop_run, tmp_path):
    pid_file = tmp_path / "pid"

    async def main():
        began = time.monotonic()
        done = await spawn.run(
            ["sh", "-c", f"echo said; sleep 60 & echo $! > {pid_file}"], timeout=10, linger=0.2
        )
        return done, time.monotonic() - began

    done, took = loop_run(main)
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    assert (done.returncode, done.stdout, done.held_open) == (0, b"said\n", True)
    assert took < 1.5
    assert spawn.LINGER <= 1


def test_no_linger_loses_nothing_the_program_wrote(loop_run, tmp_path):
    pid_file = tmp_path / "pid"

    async def main():
        return await spawn.run(
            ["sh", "-c", f"head -c 60000 /dev/zero; sleep 60 & echo $! > {pid_file}"],
            timeout=10,
            linger=0,
        )

    done = loop_run(main)
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    assert len(done.stdout) == 60000


def test_an_end_that_is_seen_before_the_output_loses_nothing(loop_run, monkeypatch):
    monkeypatch.setattr(spawn._Reader, "begin", lambda _self: None)  # the loop had no time to read

    async def main():
        return await spawn.run(["sh", "-c", "echo out; echo err >&2"], timeout=10, linger=0)

    done = loop_run(main)
    assert (done.stdout, done.stderr, done.held_open) == (b"out\n", b"err\n", False)


def test_directory_environment_and_descriptors(loop_run, tmp_path):
    inheritable = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(inheritable, True)  # as a C library may leave one

    async def main():
        return await spawn.run(
            ["/bin/sh", "-c", "pwd; echo $X; ls /proc/self/fd | tr '\\n' ' '"],
            cwd=tmp_path,
            env={"X": "y", "PATH": os.environ["PATH"]},
            timeout=10,
        )

    try:
        lines = loop_run(main).stdout.decode().splitlines()
    finally:
        os.close(inheritable)
    assert lines[:2] == [str(tmp_path), "y"]
    assert lines[2].split() == ["0", "1", "2", "3"]  # 3 is ls's own, for the directory


def test_what_is_missing_is_named(loop_run, tmp_path):
    async def main():
        with pytest.raises(FileNotFoundError) as program:
            await spawn.run(["/no/such/program"], timeout=5)
        with pytest.raises(FileNotFoundError) as directory:
            await spawn.run(["true"], cwd=tmp_path / "gone", timeout=5)
        return program.value.filename, directory.value.filename

    assert loop_run(main) == ("/no/such/program", tmp_path / "gone")


def test_fifty_at_once(loop_run):
    async def main():
        async def one(i: int) -> spawn.Completed:
            return await spawn.run(["sh", "-c", f"echo {i}; cat"], stdin=b"in", timeout=30)

        return await asyncio.gather(*(one(i) for i in range(50)))

    assert [done.stdout for done in loop_run(main)] == [b"%d\nin" % i for i in range(50)]


def test_cancelling_kills_and_reaps(loop_run):
    async def main():
        task = asyncio.create_task(spawn.run(["sleep", "60"], timeout=60))
        before = children()
        await until(lambda: children() - before)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    loop_run(main)  # `nothing_left` sees to the rest


def test_a_group_and_a_session_of_its_own(loop_run):
    async def main():
        plain = await spawn.start(["sleep", "60"])
        daemon = await spawn.start(["sleep", "60"], new_session=True)
        seen = [(os.getpgid(p.pid) == p.pid, os.getsid(p.pid) == p.pid) for p in (plain, daemon)]
        for process in (plain, daemon):
            process.kill(signal.SIGTERM)
        assert await plain.wait(10) == await daemon.wait(10) == -signal.SIGTERM
        plain.kill()  # after the end: nothing happens
        return seen

    assert loop_run(main) == [(True, False), (True, True)]


def test_a_daemon_is_given_its_descriptors(loop_run, tmp_path):
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)

    async def main():
        process = await spawn.start(["sh", "-c", "cat; echo hi"], stdout=log)
        code = await process.wait(10)
        assert process.returncode == code
        return code

    try:
        assert loop_run(main) == 0
    finally:
        os.close(log)
    assert (tmp_path / "log").read_text() == "hi\n"


def test_more_descriptors_have_the_same_numbers(loop_run):
    read, write = os.pipe()

    async def main():
        line = [sys.executable, "-c", f"import os; os.write({write}, b'hi')"]
        process = await spawn.start(line, pass_fds=(write,))
        return await process.wait(10)

    try:
        assert loop_run(main) == 0
        assert os.read(read, 10) == b"hi"
        assert not os.get_inheritable(write)
    finally:
        os.close(read)
        os.close(write)


def test_waiting_has_a_deadline_and_several_may_wait(loop_run):
    async def main():
        process = await spawn.start(["sleep", "60"])
        with pytest.raises(DeadlineExceeded, match=r"sleep: pid \d+ still runs after 0\.05 s"):
            await process.wait(0.05)
        waits = [asyncio.create_task(process.wait(10)) for _ in range(3)]
        await asyncio.sleep(0)
        process.kill()
        return await asyncio.gather(*waits)

    assert loop_run(main) == [-signal.SIGKILL] * 3


def test_a_released_process_outlives_the_loop(loop_run):
    async def main():
        process = await spawn.start(["sleep", "60"], new_session=True)
        process.release()
        process.release()
        return process.pid

    pid = loop_run(main)
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[0] == pid


def test_without_a_descriptor_for_the_pidfd_no_child_is_left(monkeypatch):
    def refuse(_pid):
        raise OSError(24, "too many open files")

    async def main() -> None:
        monkeypatch.setattr(os, "pidfd_open", refuse)
        with pytest.raises(OSError, match="too many"):
            await spawn.start(["sleep", "60"])

    asyncio.run(main())


def test_a_child_stuck_in_the_kernel_is_told_as_such(monkeypatch, loop_run):
    monkeypatch.setattr(spawn, "KILL_GRACE", 0.05)
    real = spawn.Process.kill

    async def main():
        monkeypatch.setattr(spawn.Process, "kill", lambda *_args, **_kw: None)
        try:
            with pytest.raises(DeadlineExceeded, match=r"pid \d+ is stuck in the kernel"):
                await spawn.run([sys.executable, "-c", "import time; time.sleep(1)"], timeout=0.1)
        finally:
            monkeypatch.setattr(spawn.Process, "kill", real)
        await until(lambda: not children())  # reaped all the same

    loop_run(main)
