"""hack/cluster as README shows it. By its name before the others, which have a cluster running."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from hack.clusters.main import PLACE
from tests.conftest import ROOT

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go, pytest.mark.timeout(900)]


def test_readme_cluster(own_network: None) -> None:
    section = (ROOT / "README.md").read_text().split("\n## A cluster\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    shown, down = block.rsplit("\n", 2)[0], "hack/cluster down"
    assert block.endswith(f"{down}\n")
    script = shown + "\nhack/cluster on node1 ip -brief address\n"
    try:
        done = subprocess.run(
            ["bash", "-euc", script], cwd=ROOT, capture_output=True, text=True, timeout=800
        )
        assert done.returncode == 0, done.stdout + done.stderr
        running = re.findall(r"^web-\S+ +1/1 +Running +0 .* (node\d)", done.stdout, re.MULTILINE)
        assert len(running) == 50
        assert set(running) == {"node1", "node2"}
        assert re.search(r"^eth0\S* +UP +10\.97\.0\.11/24", done.stdout, re.MULTILINE)
    finally:
        subprocess.run(down, shell=True, cwd=ROOT, check=True, timeout=300)
    assert not list(Path("/run").glob(f"{PLACE.tag}*"))
    assert not list(Path("/var/lib").glob(f"{PLACE.tag}*"))
    assert not list(Path("/sys/fs/cgroup").glob(f"*/{PLACE.tag}"))
