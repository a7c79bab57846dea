import os
import resource
import socket

import pytest

from zos_cri.stats import processes


def test_descriptors_and_sockets_of_this_process() -> None:
    before, sockets = processes.descriptors([os.getpid()])
    one, other = socket.socketpair()
    with one, other, open("/dev/null"):
        assert processes.descriptors([os.getpid()]) == (before + 3, sockets + 2)


def test_processes_that_are_gone_hold_nothing() -> None:
    assert processes.descriptors([1 << 30]) == (0, 0)
    assert processes.file_limit(1 << 30) is None


def test_links_are_read_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MAX_LINKS", 0)
    total, sockets = processes.descriptors([os.getpid()])
    assert total > 0
    assert sockets == 0


def test_the_limit_of_open_files() -> None:
    assert processes.file_limit(os.getpid()) == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
