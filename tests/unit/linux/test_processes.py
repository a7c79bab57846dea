from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from zos_cri.linux.processes import signal_in_cgroup


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "100"])
    yield process
    process.kill()
    process.wait()


def name_of(pid):
    """Something that the names of its cgroups surely have."""
    return Path(f"/proc/{pid}/cgroup").read_text().splitlines()[0].split(":", 1)[1]


def test_the_process_in_that_cgroup_gets_it(sleeper):
    assert signal_in_cgroup(sleeper.pid, signal.SIGTERM, name_of(sleeper.pid))
    assert sleeper.wait(10) == -signal.SIGTERM


def test_any_other_process_does_not(sleeper):
    assert not signal_in_cgroup(sleeper.pid, signal.SIGKILL, "c" * 64)
    assert sleeper.poll() is None


def test_one_that_is_gone_gets_nothing(sleeper):
    name = name_of(sleeper.pid)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert not signal_in_cgroup(sleeper.pid, signal.SIGKILL, name)  # a zombie
    sleeper.wait()
    assert not signal_in_cgroup(sleeper.pid, signal.SIGKILL, name)
    assert not signal_in_cgroup(0, signal.SIGKILL, name)
    assert not signal_in_cgroup(2**22 + 1, signal.SIGKILL, name)
