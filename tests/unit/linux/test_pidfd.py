from __future__ import annotations

import asyncio
import os
import signal
import threading

import pytest

from tests.descriptors import open_descriptors
from zos_cri.linux import spawn
from zos_cri.linux.pidfd import PidFd, readable, start_time


@pytest.fixture
async def sleeper():
    process = await spawn.start(["sleep", "60"])
    yield process
    process.kill()
    await process.wait(10)


async def test_it_opens_waits_and_ends(sleeper):
    opened = PidFd.open(sleeper.pid, start_time(sleeper.pid))
    assert opened is not None
    with opened as held:
        states = [held.alive]
        assert not await held.wait(0.02)
        waits = [asyncio.create_task(held.wait(10)) for _ in range(3)]
        await asyncio.sleep(0)
        held.send_signal(signal.SIGTERM)
        assert await asyncio.gather(*waits) == [True] * 3
        states.append(held.alive)
        assert states == [True, False]
        assert await sleeper.wait(10) == -signal.SIGTERM
        with pytest.raises(ProcessLookupError):
            held.send_signal(0)
        assert held.fileno() >= 0
    held.close()  # twice is nothing


async def test_another_process_with_the_same_pid_is_refused(sleeper):
    assert PidFd.open(sleeper.pid, start_time(sleeper.pid) - 1) is None


async def test_a_reaped_process_is_none():
    process = await spawn.start(["true"])
    began = start_time(process.pid)
    await process.wait(10)
    assert PidFd.open(process.pid) is None
    assert PidFd.open(process.pid, began) is None
    with pytest.raises(ProcessLookupError):
        start_time(process.pid)


def test_a_zombie_is_found_but_not_alive():
    pid = os.posix_spawn("/bin/true", ["true"], {})
    held = PidFd.open(pid, start_time(pid))
    assert held is not None
    assert asyncio.run(held.wait(10))
    again = PidFd.open(pid, start_time(pid))
    assert again is not None
    assert not again.alive
    os.waitpid(pid, 0)
    assert not held._started_at(1)
    held.close()
    again.close()


def test_what_is_no_process_is_none():
    assert PidFd.open(-1) is None
    assert PidFd.open(0) is None
    ids: list[int] = []
    release = threading.Event()

    def body():
        ids.append(threading.get_native_id())
        release.wait(10)

    thread = threading.Thread(target=body)
    thread.start()
    while not ids:
        pass
    assert PidFd.open(ids[0]) is None
    release.set()
    thread.join()


def test_lack_of_descriptors_is_an_error_not_an_absence(monkeypatch):
    def refuse(_pid):
        raise OSError(24, "too many open files")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(OSError, match="too many"):
        PidFd.open(1)


def test_a_process_named_like_a_trap(tmp_path):
    program = tmp_path / "a) R 1 (b"
    program.symlink_to("/bin/sleep")
    pid = os.posix_spawn(str(program), ["x", "60"], {})
    try:
        with open("/proc/uptime") as file:
            uptime = float(file.read().split()[0])
        assert abs(start_time(pid) / os.sysconf("SC_CLK_TCK") - uptime) < 5
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


async def test_readable_leaves_no_descriptor():
    read_end, write_end = os.pipe()
    before = open_descriptors()
    assert not await readable(read_end, 0.01)
    os.write(write_end, b"x")
    assert await readable(read_end, 5)
    assert open_descriptors() <= before
    os.close(read_end)
    os.close(write_end)
