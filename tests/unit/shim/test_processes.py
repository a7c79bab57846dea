"""Which process is whose."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from zos_cri.shim import processes

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUP = "g" * 64


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    path.mkdir()
    return path


@pytest.fixture
def sleeper(bundle: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the bundle with the group among its arguments."""
    with subprocess.Popen(["sh", "-c", "read x", "-id", GROUP], cwd=bundle, stdin=-1) as process:
        yield process
        process.kill()


def test_a_shim_is_known_by_bundle_and_group(
    bundle: Path, tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    assert processes.of_bundle(bundle, GROUP) == [sleeper.pid]
    assert processes.of_bundle(tmp_path, GROUP) == []
    assert processes.of_bundle(bundle, GROUP[:-1]) == []
    assert not processes.is_shim(1 << 22, bundle, GROUP)


def test_shims_are_killed_and_others_not(bundle: Path, sleeper: subprocess.Popen[bytes]) -> None:
    with subprocess.Popen(["sh", "-c", "read x"], cwd=bundle, stdin=-1) as shell:
        assert processes.kill_of_bundle(bundle, GROUP) == [sleeper.pid]
        assert sleeper.wait(10) == -9
        assert shell.poll() is None
        shell.kill()
    assert processes.kill_of_bundle(bundle, GROUP) == []


@pytest.mark.parametrize("name", ["{}/socket", "\0zos-test-{}"])
def test_who_listens(tmp_path: Path, name: str) -> None:
    path = name.format(tmp_path if name.startswith("{") else os.getpid())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        assert not processes.listens_on(os.getpid(), path)
        listener.listen()
        assert processes.listens_on(os.getpid(), path)
        assert not processes.listens_on(os.getppid(), path)
        assert not processes.listens_on(1 << 22, path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
    assert not processes.listens_on(os.getpid(), path)


def test_a_process_without_a_command_line_is_no_shim() -> None:
    """As in the midst of an exec, but for ever: it is asked for a while, no longer."""
    assert not processes.is_shim(2, Path("/"), GROUP)  # the kernel's own


def test_what_runs_for_a_container(sleeper: subprocess.Popen[bytes]) -> None:
    assert processes.runs_for(os.getpid(), GROUP) == [sleeper.pid]
    assert processes.runs_for(os.getpid(), "another") == []
    assert processes.runs_for(1, GROUP) == []
