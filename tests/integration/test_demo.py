"""What README tells a new user to type, typed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import ROOT, TOOLS
from tests.integration.server import DEBIAN, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.server import Server

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go]

DEMO = ROOT / "hack" / "demo"
DEMO_TIMEOUT = 240  # seconds; the first time it makes its virtual environment
DEMO_PLACES = (Path("/run/zos-demo"), Path("/var/lib/zos-demo"))


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DEMO, *arguments], capture_output=True, text=True, timeout=DEMO_TIMEOUT, check=False
    )


def remains_of_demo() -> list[str]:
    """Its directories, mounts, cgroups and processes."""
    found = [str(path) for path in DEMO_PLACES if path.exists()]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [line for line in mounts if "/zos-demo" in line]
    roots = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]
    found += [str(path) for root in roots if (path := root / "zos-demo").exists()]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if "zos-demo" in command:
            found.append(f"{process.name}: {command}")
    return found


@pytest.fixture
def no_demo() -> Iterator[None]:
    """None runs before, and none after, whatever the test did."""
    assert remains_of_demo() == []
    yield
    if remains_of_demo():
        demo()


def test_demo_ends_with_0_and_leaves_nothing(no_demo: None) -> None:
    done = demo()
    assert done.returncode == 0, done.stdout + done.stderr
    for shown in (
        "RuntimeName:  zos-cri",
        "hello from a pod",
        "I am root, process 1 is sh -c",
        "StartContainer",
        "the first process of the container is the same",
    ):
        assert shown in done.stdout
    assert remains_of_demo() == []


def test_kept_demo_serves_until_the_next_one(no_demo: None) -> None:
    done = demo("--keep")
    assert done.returncode == 0, done.stdout + done.stderr
    (command,) = re.findall(r"^\S+/crictl --config .* ps$", done.stdout, re.MULTILINE)
    listed = subprocess.run(command.split(), capture_output=True, text=True, check=True, timeout=60)
    assert "counter" in listed.stdout
    again = demo()
    assert again.returncode == 0, again.stdout + again.stderr
    assert remains_of_demo() == []


def test_demo_says_how_it_is_used() -> None:
    done = demo("--unknown")
    assert (done.returncode, done.stderr) == (64, "usage: hack/demo [--keep]\n")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(DEBIAN) as started:
        yield started


def block(heading: str) -> str:
    """The last shell block of a section of README."""
    section = (ROOT / "README.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    blocks: list[str] = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    return blocks[-1]


def run(script: str, directory: Path, server: Server) -> str:
    """Runs a block's lines with the commands of this tree, speaking to this server."""
    # The options that name the server are what README's reader has in configuration files.
    commands = f"""
zos-cri() {{ local command=$1; shift; '{sys.executable}' -m zos_cri $command --socket '{server.socket}' "$@"; }}
crictl() {{ '{TOOLS}/crictl' --runtime-endpoint 'unix://{server.socket}' --image-endpoint 'unix://{server.socket}' "$@"; }}
"""  # noqa: E501
    done = subprocess.run(
        ["bash", "-euc", commands + script],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_readme_crictl(server: Server, tmp_path: Path) -> None:
    script = block("crictl").replace("/var/log/pods", str(server.logs))
    shown = run(script, tmp_path, server)
    assert "uid=0(root)" in shown
    assert re.search(r"^hello$", shown, re.MULTILINE)
    assert "Removed sandbox" in shown
    assert server.leftovers() == []


@pytest.mark.usefixtures("own_network")
def test_readme_command_line(server: Server, tmp_path: Path) -> None:
    shown = run(block("The command line"), tmp_path, server)
    assert re.search(r"^ready$", shown, re.MULTILINE)
    assert re.search(r"^blue$", shown, re.MULTILINE)
    assert "1: lo:" in shown
    assert '"memory": ' in shown
    assert server.leftovers() == []
