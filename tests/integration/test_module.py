"""The module by itself: `zos-cri run` of a directory, its log, inspect, delete; no CRI call."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.integration.test_crictl import wait_for
from zos_cri.cri import facts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.server import Server

pytestmark = [pytest.mark.root, pytest.mark.runtime]


@pytest.fixture
def network() -> Iterator[str]:
    """An existing network namespace, by its name."""
    name = f"zt-{secrets.token_hex(4)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root filesystem: a directory with a static busybox."""
    directory = tmp_path / "root"
    (directory / "bin").mkdir(parents=True)
    (directory / "data").mkdir()
    shutil.copy("/bin/busybox", directory / "bin/busybox")
    for applet in ("sh", "sleep", "cat", "ip", "stat", "readlink", "tty", "touch"):
        (directory / "bin" / applet).symlink_to("busybox")
    return directory


class Caller:
    """`zos-cri COMMAND --ns NS …` against one server."""

    def __init__(self, server: Server, ns: str) -> None:
        self._server = server
        self._ns = ns

    def __call__(self, command: str, *arguments: str, code: int = 0) -> str:
        done = self._server.cli(command, "--ns", self._ns, *arguments)
        assert done.returncode == code, done.stderr
        if code and command != "exec":
            assert done.stderr.startswith("zos-cri: ")
            assert done.stderr.count("\n") == 1, "an error is one line"
            return done.stderr
        return done.stdout.strip()


def test_whole_life(server: Server, network: str, root: Path) -> None:
    call = Caller(server, "tenant")
    id_ = call(
        *("run", "--name", "web", "--flist", str(root), "--net", network),
        *("-e", "GREETING=good day", "--memory", "64M", "--cpu", "0.5", "--tag", "of=test"),
        *("-v", f"{root}/data:/data:ro", "--tmpfs", "/scratch:size=1m", "-w", "/scratch"),
        *("--", "sh", "-c", "echo $GREETING from $(pwd); exec sleep 1000"),
    )
    log = server.logs / "tenant" / "web.log"
    wait_for(lambda: log.read_text() == "good day from /scratch\n")
    assert call("logs", "web") == "good day from /scratch"
    inspection = json.loads(call("inspect", "web"))
    assert inspection["state"] == "running"
    assert inspection["log_path"] == str(log)
    assert inspection["container"]["tags"] == {"of": "test"}
    # What the kernel says: the namespace given, others of its own, limits, a read-only mount.
    pid = inspection["pid"]
    assert os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat(f"/run/netns/{network}").st_ino
    for kind in ("pid", "mnt", "ipc", "uts"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    status = call("exec", "web", "--", "cat", "/proc/self/status")
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status
    assert "CapEff:\t00000000a80425fb" in status
    call("exec", "web", "--", "touch", "/data/x", code=1)
    assert call("exec", "web", "--", "sh", "-c", "echo $GREETING; exit 3", code=3) == "good day"
    assert ["tenant", "web", id_[:13], "running"] == call("ps").splitlines()[1].split()[:4]
    assert int(json.loads(call("stats", "-o", "json", "web"))["pids"]) == 1
    call("signal", "web", "KILL")
    ended = wait_for(lambda: (i := json.loads(call("inspect", "web")))["pid"] == 0 and i)
    assert (ended["state"], ended["exit_code"]) == ("exited", 137)
    call("delete", "web")
    call("inspect", "web", code=4)
    assert log.exists(), "the log outlives the container"
    assert not list(root.glob("scratch*")), "the directory given was not written to"
    assert server.leftovers() == []


def test_survives_kill(server: Server, network: str, root: Path) -> None:
    call = Caller(server, "tenant")
    run = ("--flist", str(root), "--net", network, "--")
    call("run", "--name", "long", *run, "sh", "-c", "while sleep 0.1; do echo tick; done")
    call("run", "--name", "short", *run, "sh", "-c", "sleep 1; exit 9")
    before = json.loads(call("inspect", "long"))
    log = server.logs / "tenant" / "long.log"
    server.kill()
    size = log.stat().st_size
    wait_for(lambda: log.stat().st_size > size + 20)  # written without any process of ours
    wait_for(lambda: not [p for p, line in server.processes() if line == "sleep 1"])
    server.start()
    after = json.loads(call("inspect", "long"))
    assert (after["pid"], after["started_at"]) == (before["pid"], before["started_at"])
    short = json.loads(call("inspect", "short"))
    assert (short["state"], short["exit_code"], short["reason"]) == ("exited", 9, "Error")
    assert short["started_at"] < short["finished_at"] < after["created_at"] + 60 * 10**9
    assert call("exec", "long", "--", "sh", "-c", "echo still here") == "still here"
    call("delete", "long")
    call("delete", "short")
    assert server.leftovers() == []


def test_stop_signal_then_kill(server: Server, network: str, root: Path) -> None:
    call = Caller(server, "tenant")
    run = ("--flist", str(root), "--net", network, "--shutdown-timeout")
    call("run", "--name", "deaf", *run, "0.5", "--", "sh", "-c", "trap '' TERM; sleep 1000")
    call(
        "run",
        "--name",
        "polite",
        *run,
        "60",
        "--",
        "sh",
        "-c",
        "trap 'exit 5' TERM; sleep 99 & wait",
    )
    call("delete", "deaf")
    call("delete", "polite")  # would take a minute otherwise
    assert server.leftovers() == []


def test_terminal(server: Server, network: str, root: Path) -> None:
    call = Caller(server, "tenant")
    call(
        *("run", "--name", "t", "--flist", str(root), "--net", network, "-i", "--", "sh", "-c"),
        "tty; sleep 1000",
    )
    wait_for(lambda: "/dev/" in call("logs", "t"))
    call("delete", "t")
    assert server.leftovers() == []


def test_errors_leave_nothing(server: Server, network: str, root: Path) -> None:
    call = Caller(server, "tenant")
    net = ("--net", network, "--", "sleep", "9")
    flist = ("--flist", str(root))
    call("run", "--name", "taken", *flist, *net)
    assert "taken" in call("run", "--name", "taken", *flist, *net, code=5)
    assert "flist" in call("run", "--name", "a", "--flist", f"{root}/none", *net, code=4)
    assert "flist" in call("run", "--name", "a", "--flist", "no/image", *net, code=4)
    assert "network" in call("run", "--name", "a", *flist, "--net", "none", "--", "sleep", code=4)
    assert "source" in call("run", "--name", "a", *flist, "-v", "/none:/x", *net, code=4)
    assert "target" in call("run", "--name", "a", *flist, "-v", "/tmp:x", *net, code=3)
    assert "target" in call("run", "--name", "a", *flist, "-v", "/tmp:/../x", *net, code=3)
    assert "name" in call("run", "--name", "a/b", *flist, *net, code=3)
    assert "no-such" in call(
        *("run", "--name", "a", *flist, "--net", network, "--", "/no-such"), code=1
    )
    assert "unknown" in call("inspect", "unknown", code=4)
    call("delete", "taken")
    call("delete", "taken", code=4)
    assert server.leftovers() == []


def test_elevated_has_the_hosts_devices(server: Server, network: str, root: Path) -> None:
    call = Caller(server, "tenant")
    usual = {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"}
    others = [node for node in facts.host_devices() if node.path not in usual]
    if not others:
        pytest.skip("this host has no device but the usual ones")
    node = others[0]
    for name, flags in (("plain", ()), ("elevated", ("--elevated",))):
        call(
            *("run", "--name", name, "--flist", str(root), "--net", network, *flags),
            *("--", "sleep", "1000"),
        )
    show = ("--", "stat", "-c", "%t:%T", node.path)
    assert call("exec", "elevated", *show) == f"{node.major:x}:{node.minor:x}"
    call("exec", "plain", *show, code=1)
    for name in ("plain", "elevated"):
        call("delete", name)
