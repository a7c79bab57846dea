"""The Python API, and the worked example of docs/module.md."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import ROOT
from tests.fakes.registry import Registry
from tests.integration.server import DEBIAN, IMAGE, serving
from zos_cri import errors
from zos_cri.client import Client, Container, Network

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.server import Server

pytestmark = [pytest.mark.root, pytest.mark.runtime]

# What redis does as far as the example can see.
REDIS = b"""#!/bin/sh
trap 'echo "User requested shutdown"; exit 0' TERM
echo "* Ready to accept connections"
while :; do sleep 0.1; done
"""


def executables(files: dict[str, bytes]) -> bytes:
    """An archive of programs."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def server(own_network: None) -> Iterator[Server]:
    with serving(DEBIAN) as started:
        yield started


@pytest.fixture
def netns(server: Server) -> Iterator[str]:
    name = f"{server.tag}-client"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(str(server.socket), ns="example") as connected:
        yield connected


def sleeper(netns: str, command: str = "sleep 1000") -> Container:
    return Container(
        name="x", flist=IMAGE, network=Network(netns), entrypoint=command, shutdown_timeout=0.1
    )


def test_the_worked_example(server: Server, netns: str, tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/module.md").read_text(), re.S)
    busybox = Path("/bin/busybox").read_bytes()
    with Registry() as registry:
        programs = {"bin/sh": busybox, "bin/sleep": busybox, "usr/bin/redis-server": REDIS}
        registry.add_image("library/redis", "alpine", [executables(programs)])
        for there, here in (
            ("docker.io/library/redis", f"{registry.address}/library/redis"),
            ("/run/zos-cri/zos-cri.sock", str(server.socket)),
            ('Network("redis")', f'Network("{netns}")'),
        ):
            assert there in example
            example = example.replace(there, here)
        script = tmp_path / "example.py"
        script.write_text(example)
        done = subprocess.run(
            [sys.executable, script],
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    pulled, runs, ready, bye, status = done.stdout.splitlines()
    assert pulled.startswith("pulled sha256:")
    assert int(runs.removeprefix("runs as process ")) > 1
    assert ready == "* Ready to accept connections"
    assert bye == "User requested shutdown"
    assert status == "redis-server exited with status 0"
    assert server.leftovers() == []


def test_each_call(client: Client, netns: str, server: Server) -> None:
    id_ = client.run(sleeper(netns))
    try:
        assert client.inspect("x").container.id == id_
        assert [each.container.name for each in client.list()] == ["x"]
        done = client.exec(id_, ["sh", "-c", "echo out; echo err >&2; exit 3"])
        assert done == (b"out\n", b"err\n", 3, False)
        assert client.stats(id_).pids >= 1
        with pytest.raises(errors.DeadlineExceeded):
            client.wait(id_, timeout=0.2)
        client.signal(id_, 9)
        ended = client.wait(id_, timeout=30)
        assert (ended.state, ended.exit_code) == ("exited", 137)
        # Whoever comes late hears it all the same.
        assert client.wait(id_) == ended
        with pytest.raises(errors.FailedPrecondition):
            client.signal(id_, "TERM")
    finally:
        client.delete(id_)
    assert client.list() == []
    assert server.leftovers() == []


def test_what_is_wrong_raises_ours(client: Client, netns: str, tmp_path: Path) -> None:
    for call in (client.inspect, client.delete, client.stats, client.wait):
        with pytest.raises(errors.NotFound, match="none-such"):
            call("none-such")
    with pytest.raises(errors.NotFound):
        list(client.logs("none-such"))
    with pytest.raises(errors.InvalidArgument, match="entrypoint"):
        client.run(sleeper(netns, ""))
    with pytest.raises(errors.NotFound, match="no-such-netns"):
        client.run(sleeper("no-such-netns"))
    client.remove_image("localhost/none:1")
    with (
        Client(str(tmp_path / "none")) as nobody,
        pytest.raises(errors.Unavailable, match="no server answers"),
    ):
        nobody.list()
