"""A real server's loop comes before what runs beside it, and nothing that it starts does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from zos_cri.linux.priority import NICE

if TYPE_CHECKING:
    from tests.integration.server import Server

pytestmark = [pytest.mark.root, pytest.mark.runtime]


def nice(pid: int) -> dict[int, int]:
    """Of each thread, by its number."""
    threads = (int(each.name) for each in Path(f"/proc/{pid}/task").iterdir())
    return {thread: os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}


def test_only_the_loop_comes_first(server: Server) -> None:
    assert server.process is not None
    with server.cri() as cri:
        server.run_container(cri, server.run_pod(cri), "sleep", "1000")
        threads = nice(server.process.pid)
        assert threads.pop(server.process.pid) == NICE
        assert set(threads.values()) == {0}
        started = [pid for pid, _ in server.processes()]
        assert len(started) >= 2  # a shim, a container
        for pid in (*started, server.logger_pid()):
            assert set(nice(pid).values()) == {0}
        server.remove_pods()
