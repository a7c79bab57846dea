"""Which runtime a handler gets that names none. The crun here is a script that notes its calls."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from zos_cri.shim import probe
from zos_cri.shim.choice import Choice, choose
from zos_cri.shim.handler import Handler

if TYPE_CHECKING:
    from pathlib import Path

RUNS = 'echo "$@" >>"$0.calls"\n'


class Host:
    """A PATH with nothing on it, and the directories."""

    def __init__(self, root: Path) -> None:
        self.bin = root / "bin"
        self.scratch = root / "scratch"
        self.known = root / "state" / "runtime.json"
        self.crun = self.bin / "crun"
        self.bin.mkdir()
        self.scratch.mkdir()

    def install(self, script: str) -> None:
        # In place of the old one, and later: what a package manager does.
        before = self.crun.stat().st_mtime_ns if self.crun.exists() else 0
        self.crun.write_text(f"#!/bin/sh\n{script}")
        self.crun.chmod(0o755)
        os.utime(self.crun, ns=(before + 10**9, before + 10**9))

    async def choose(self, *, systemd: bool = False, oci_version: str = "1.0.2") -> Choice:
        handler = Handler(name="x", systemd_cgroup=systemd)
        return await choose(handler, self.scratch, oci_version=oci_version, known=self.known)

    def runs(self) -> list[list[str]]:
        calls = self.bin / "crun.calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return [line.split() for line in lines if " run " in f" {line} "]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(tmp_path)
    monkeypatch.setenv("PATH", str(host.bin))
    return host


async def test_crun_where_it_runs(host: Host) -> None:
    host.install(RUNS)
    choice = await host.choose()
    assert choice == Choice(runtime=str(host.crun), why=f"{host.crun} runs containers here")
    assert os.listdir(host.scratch) == []


async def test_runc_where_there_is_no_crun(host: Host) -> None:
    assert await host.choose() == Choice(runtime="runc", why="crun is nowhere on PATH")


async def test_runc_where_crun_fails_and_why(host: Host) -> None:
    host.install('echo "cgroups in hybrid mode not supported" >&2; exit 1')
    choice = await host.choose()
    assert choice.runtime == "runc"
    assert f"{host.crun} runs no container here" in choice.why
    assert "cgroups in hybrid mode not supported" in choice.why
    assert os.listdir(host.scratch) == []


@pytest.mark.parametrize("end", ["", "exit 1\n"])
async def test_it_is_tried_once(host: Host, end: str) -> None:
    host.install(RUNS + end)
    first = await host.choose()
    assert await host.choose() == first
    assert len(host.runs()) == 1


async def test_another_crun_or_handler_is_tried_anew(host: Host) -> None:
    host.install(RUNS + "exit 1\n")
    assert (await host.choose()).runtime == "runc"
    host.install(RUNS)
    assert (await host.choose()).runtime == str(host.crun)
    assert "--systemd-cgroup" not in host.runs()[-1]
    await host.choose(systemd=True)
    assert "--systemd-cgroup" in host.runs()[-1]
    await host.choose(systemd=True, oci_version="1.2.0")
    assert len(host.runs()) == 4


async def test_another_boot_is_another_try(host: Host) -> None:
    host.install(RUNS)
    await host.choose()
    kept = json.loads(host.known.read_text())
    host.known.write_text(json.dumps({**kept, "boot_id": "another"}))
    await host.choose()
    assert len(host.runs()) == 2


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff", b"[" * 100_000])
async def test_a_damaged_file_is_as_good_as_none(host: Host, text: bytes) -> None:
    host.install(RUNS)
    host.known.parent.mkdir()
    host.known.write_bytes(text)
    assert (await host.choose()).runtime == str(host.crun)
    assert len(host.runs()) == 1


async def test_a_file_that_can_not_be_kept_hinders_nothing(host: Host) -> None:
    host.install(RUNS)
    host.known.parent.write_text("not a directory")
    assert (await host.choose()).runtime == str(host.crun)


async def test_a_try_without_a_result_is_not_kept(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.install(f'{RUNS}case "$*" in *" run "*) exec /bin/sleep 100;; esac\n')
    monkeypatch.setattr(probe, "RUN_TIMEOUT", 0.2)
    choice = await host.choose()
    assert choice.runtime == "runc"
    assert "couldn't be tried" in choice.why
    assert not host.known.exists()
    assert os.listdir(host.scratch) == []
