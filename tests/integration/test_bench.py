"""The benchmark works, and leaves nothing behind. Times are not judged here, memory is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hack.benchmark.place import PREFIX, placed
from tests.conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go]

BENCH = [sys.executable, str(ROOT / "hack" / "bench")]
TIMEOUT = 120  # seconds; a quick run takes 15
# MiB: what an idle server may hold. The goal is 60; the pages of libraries that are in it vary by
# 5 with what the kernel has of those files in its cache.
RSS_LIMIT = 65


def places() -> set[Path]:
    """Directories and cgroups of runs, of others at work at the same time too."""
    roots = [Path("/run"), Path("/var/lib"), *Path("/sys/fs/cgroup").iterdir()]
    return {path for root in roots for path in root.glob(f"{PREFIX}*")}


@pytest.fixture
def nothing_left() -> Iterator[None]:
    before = places()
    yield
    assert places() <= before


@pytest.mark.usefixtures("nothing_left")
def test_quick_run_measures_everything(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    done = subprocess.run(
        [*BENCH, "--quick", "--json", found, "zos-cri"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    assert "| RunPodSandbox, host network | ms | " in done.stdout
    result = json.loads(found.read_text())
    (samples,) = result["rounds"]["zos-cri"]
    assert result["errors"] == {"zos-cri": {}}
    for step in ("RunPodSandbox", "CreateContainer", "StartContainer", "ExecSync", "cycle"):
        assert len(samples[f"host/{step}"]) == len(samples[f"bridge/{step}"]) == 3
    for key in ("host/cpu", "at-once/3/rate", "rss/idle", "pods/3/fill", "pods/3/drain"):
        assert samples[key][0] > 0, key
    for kind in ("server", "logger", "shims"):
        assert samples[f"pods/3/pss/{kind}"][0] > 0, kind
    assert samples["pods/3/pss/pause"] == [0]
    assert len(samples["pods/3/ListContainerStats"]) == 3


@pytest.mark.usefixtures("nothing_left")
def test_idle_server_is_small() -> None:
    done = subprocess.run([*BENCH, "rss"], capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    assert 10 < float(done.stdout) <= RSS_LIMIT


def begun_run(tmp_path: Path) -> subprocess.Popen[bytes]:
    """A run that is in its first round."""
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*BENCH, "zos-cri"], stdout=file, stderr=file, start_new_session=True
        )
    deadline = time.monotonic() + TIMEOUT
    while b"round 1" not in log.read_bytes():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("nothing_left")
def test_interrupted_run_cleans_up(tmp_path: Path, number: signal.Signals) -> None:
    process = begun_run(tmp_path)
    os.killpg(process.pid, number)  # as a terminal does it, to all of its group
    assert process.wait(TIMEOUT) == 128 + number


@pytest.mark.usefixtures("nothing_left")
def test_next_run_cleans_up_after_a_killed_one(tmp_path: Path) -> None:
    before = places()
    process = begun_run(tmp_path)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(TIMEOUT)
    assert places() > before
    with placed() as place:
        assert places() - before == {place.run, place.state}
