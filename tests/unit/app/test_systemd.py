from __future__ import annotations

import asyncio
import os
import socket

import pytest

from zos_cri.app.systemd import keep_alive, watchdog_timeout


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    """A socket that stands for systemd's."""
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name)
        receiver.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield receiver


async def test_the_watchdog_hears_of_a_loop_that_turns(systemd):
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(keep_alive(0.02))
    async with asyncio.timeout(10):
        for _ in range(3):
            assert await loop.sock_recv(systemd, 100) == b"WATCHDOG=1"
    task.cancel()


@pytest.mark.parametrize(
    ("environ", "timeout"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_watchdog_timeout(environ, timeout):
    assert watchdog_timeout(environ) == timeout
