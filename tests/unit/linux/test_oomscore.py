from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from zos_cri.errors import PermissionDenied, ResourceExhausted
from zos_cri.linux import oomscore

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def sleepers(count: int) -> Iterator[list[int]]:
    children = [subprocess.Popen(["sleep", "1000"]) for _ in range(count)]
    try:
        yield [child.pid for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()


def score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def test_all_of_them_and_those_that_come_meanwhile() -> None:
    with sleepers(3) as pids:
        listed = iter([pids[:1], pids[:1], pids, pids, pids])
        oomscore.set_oom_score_adj(lambda: next(listed), 700)
        assert [score(pid) for pid in pids] == [700, 700, 700]
        assert score(os.getpid()) != 700


def test_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oomscore, "_BATCH", 2)
    with sleepers(5) as pids:
        oomscore.set_oom_score_adj(lambda: pids, 650)
        assert {score(pid) for pid in pids} == {650}


def test_who_is_not_listed_any_more_is_somebody_else() -> None:
    with sleepers(2) as pids:
        before = score(pids[0])
        listed = iter([pids, pids[1:], pids[1:]])
        oomscore.set_oom_score_adj(lambda: next(listed), 640)
        assert [score(pid) for pid in pids] == [before, 640]


def test_who_has_ended_is_passed_over() -> None:
    with sleepers(1) as pids:
        gone = subprocess.Popen(["true"])
        gone.wait()
        oomscore.set_oom_score_adj(lambda: [gone.pid, *pids], 630)
        assert score(pids[0]) == 630


def test_forks_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oomscore, "_PASSES", 3)
    calls = iter(range(2**30, 2**31))
    with pytest.raises(ResourceExhausted, match="still become more"):
        oomscore.set_oom_score_adj(lambda: [next(calls)], 600)


def test_a_score_that_the_kernel_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(fd: int, data: bytes) -> int:
        raise PermissionError(13, "Permission denied")

    with sleepers(1) as pids, monkeypatch.context() as patch:
        patch.setattr(os, "write", deny)
        with pytest.raises(PermissionDenied, match="-900 is lower than this host lets us"):
            oomscore.set_oom_score_adj(lambda: pids, -900)


def test_a_process_and_its_descendants_follow() -> None:
    script = "sh -c 'sleep 1000 & wait' & echo $!; wait"
    parent = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        oomscore.follow_oom_score_adj(parent.pid, 620)
        assert (score(parent.pid), score(child)) == (620, 620)
        # Where the process has it already, nobody is looked at.
        oomscore.set_oom_score_adj(lambda: [child], 630)
        oomscore.follow_oom_score_adj(parent.pid, 620)
        assert score(child) == 630
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.communicate()
    oomscore.follow_oom_score_adj(parent.pid, 640)  # it has ended
