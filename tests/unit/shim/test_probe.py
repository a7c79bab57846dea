"""The container that tells whether a runtime works."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from zos_cri.shim import probe
from zos_cri.shim.handler import Handler

# Keeps the specification, and says how it was called.
RUNTIME = """#!/bin/sh
case "$*" in *" run "*)
    while [ "$1" != --bundle ]; do shift; done
    cp "$2/config.json" "$0.json"
esac
echo "$@" >>"$0.calls"
"""


async def test_what_it_runs(tmp_path: Path) -> None:
    runtime, scratch = tmp_path / "runtime", tmp_path / "scratch"
    runtime.write_text(RUNTIME)
    runtime.chmod(0o755)
    scratch.mkdir()
    handler = Handler(runtime=str(runtime), systemd_cgroup=True)
    assert await probe.failure(handler, scratch, oci_version="1.0.2") == ""
    spec = json.loads((tmp_path / "runtime.json").read_text())
    assert spec["ociVersion"] == "1.0.2"
    assert spec["linux"]["cgroupsPath"].startswith("system.slice:zos-cri:zos-probe-")
    assert spec["linux"]["resources"]["memory"]["limit"] == 64 << 20
    assert "delete --force zos-probe-" in (tmp_path / "runtime.calls").read_text()
    assert os.listdir(scratch) == []


async def test_a_runtime_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no-such-runtime"):
        await probe.failure(
            Handler(runtime=str(tmp_path / "no-such-runtime")), tmp_path, oci_version="1.0.2"
        )
    assert os.listdir(tmp_path) == []


@pytest.mark.root
@pytest.mark.runtime
async def test_runc_runs_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runc = shutil.which("runc", path=f"{os.environ['PATH']}:/usr/sbin")
    assert runc
    before = set(Path("/sys/fs/cgroup").glob("*/zos-probe-*"))
    assert await probe.failure(Handler(runtime=runc), tmp_path, oci_version="1.0.2") == ""
    # In so little nothing can be run.
    monkeypatch.setattr(probe, "MEMORY", 1)
    assert await probe.failure(Handler(runtime=runc), tmp_path, oci_version="1.0.2")
    assert os.listdir(tmp_path) == []
    assert set(Path("/sys/fs/cgroup").glob("*/zos-probe-*")) <= before
