"""hack/cluster as README shows it. By its name before the others, which have a cluster running."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hack.clusters.main import PLACE
from tests.conftest import ROOT

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go, pytest.mark.timeout(900)]


def test_readme_cluster(own_network: None) -> None:
    section = (ROOT / "README.md").read_text().split("\n## A cluster\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    shown, end = block.rsplit("\n", 2)[:2]
    assert end == "hack/cluster down"
    script = shown + "\nhack/cluster on node1 ip -brief address\n"
    # Our environment instead of the one that hack/cluster would set up: there is no network here.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    try:
        done = subprocess.run(
            ["bash", "-euc", script],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=800,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        running = re.findall(r"^web-\S+ +1/1 +Running +0 .* (node\d)", done.stdout, re.MULTILINE)
        assert len(running) == 50
        assert set(running) == {"node1", "node2"}
        assert re.search(r"^eth0\S* +UP +10\.97\.0\.11/24", done.stdout, re.MULTILINE)
    finally:
        subprocess.run(
            [ROOT / "hack" / "cluster", "down"], env=environment, check=True, timeout=300
        )
    assert not list(Path("/run").glob(f"{PLACE.tag}*"))
    assert not list(Path("/var/lib").glob(f"{PLACE.tag}*"))
    assert not list(Path("/sys/fs/cgroup").glob(f"*/{PLACE.tag}"))
