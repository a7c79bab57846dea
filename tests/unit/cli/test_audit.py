"""`zos-cri audit` on directories of its own."""

from __future__ import annotations

import fcntl
import json
from typing import TYPE_CHECKING

import pytest

from zos_cri.audit import check, present
from zos_cri.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

A = "a" * 64


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(check.audit, "__kwdefaults__", {"settle": 0.0})
    # Another server of this host has containers there.
    monkeypatch.setattr(present, "OUR_CGROUPS", (f"/{tmp_path.name}",))
    path = tmp_path / "config.toml"
    path.write_text(
        f'[server]\nrun = "{tmp_path}/run"\nstate = "{tmp_path}/state"\n'
        f'[cni]\nconf_dir = "{tmp_path}/net.d"\n'
    )
    return path


def audit(settings: Path, *arguments: str) -> int:
    return main(["audit", "--config", str(settings), *arguments])


def test_no_difference(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(settings) == 0
    assert capsys.readouterr().out == "no difference\n"


def test_a_stray_is_told_and_left(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fifo = tmp_path / "run/fifo" / A
    fifo.mkdir(parents=True)
    assert audit(settings, "-o", "json") == 1
    (found,) = json.loads(capsys.readouterr().out)["findings"]
    assert (found["verdict"], found["kind"], found["where"]) == ("stray", "fifo", str(fifo))
    assert fifo.exists()


def test_a_stray_is_removed(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in ("run/fifo", "run/bundles", "state/images/containers"):
        (tmp_path / path / A).mkdir(parents=True)
    assert audit(settings, "--fix") == 0
    assert capsys.readouterr().out.count(" removed\n") == 3
    assert audit(settings) == 0


def test_a_running_servers_images_are_its_own(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "state/images/containers" / A).mkdir(parents=True)
    (tmp_path / "run").mkdir()
    with (tmp_path / "run/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert audit(settings, "--fix") == 1
    assert "the running server's" in capsys.readouterr().out
