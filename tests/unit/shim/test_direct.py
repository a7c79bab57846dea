"""Shims whose server is started without their `start`; a fake one says that it is containerd's."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.descriptors import open_descriptors
from tests.fakes.shim import Behaviour, calls, install, until
from zos_cri import errors
from zos_cri._pb import types_pb2
from zos_cri.linux import openfiles
from zos_cri.shim import bundle, direct, processes
from zos_cri.shim.bootstrap import DialectCache
from zos_cri.shim.handler import Handler
from zos_cri.shim.launch import Launcher, StartFailed
from zos_cri.shim.manager import ShimManager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GROUP = "f" * 64
OURS: dict[str, Any] = {"name": "io.containerd.runc.v2", "release": "2.4.2"}


class Fixture:
    def __init__(self, tmp_path: Path, sockets: Path) -> None:
        self.directory = tmp_path / "fake"
        self.sockets = sockets / "s"
        self.bundles = tmp_path / "bundles"
        self.binary = str(install(self.directory, Behaviour(**OURS)))
        self.launcher = self.launch()
        self.manager = ShimManager(
            bundles=self.bundles, launcher=self.launcher, namespace="zos", connect_timeout=10
        )

    @property
    def socket(self) -> Path:
        """Where the group's shim listens: Go's shims name it so."""
        return self.sockets / hashlib.sha256(f"/a/zos/{GROUP}".encode()).hexdigest()

    def launch(self, **changes: Any) -> Launcher:
        return Launcher(
            namespace="zos",
            events_address="/e",
            grpc_address="/a",
            publish_binary="/p",
            socket_dir=str(self.sockets),
            dialects=DialectCache(None),
            **changes,
        )

    def behave(self, **behaviour: Any) -> None:
        install(self.directory, Behaviour(**{**OURS, **behaviour}))

    def handler(self, **options: Any) -> Handler:
        return Handler(name="fake", shim=self.binary, **options)

    @property
    def actions(self) -> list[str]:
        """How the binary was run: "" is the server that was started directly."""
        return [
            argv[-1] if argv[-1] in {"start", "delete"} else ""
            for argv in (call["argv"] for call in calls(self.directory))
        ]

    def left(self) -> list[str]:
        found = [str(path) for path in (*self.bundles.glob("*"), *self.sockets.glob("*"))]
        return found + [str(pid) for pid in processes.of_bundle(self.bundles / GROUP, GROUP)]


@pytest.fixture
async def fixture(tmp_path: Path) -> AsyncIterator[Fixture]:
    before = open_descriptors()
    sockets = Path(tempfile.mkdtemp(prefix="zt"))  # their paths must be short
    fixture = Fixture(tmp_path, sockets)
    yield fixture
    shutil.rmtree(sockets)
    await fixture.manager.close()
    processes.kill_of_bundle(fixture.bundles / GROUP, GROUP)
    assert open_descriptors() <= before


async def test_its_server_is_started_and_ended(fixture: Fixture) -> None:
    shim = await fixture.manager.start(GROUP, fixture.handler())
    assert fixture.actions == [""]
    assert shim.address == f"unix://{fixture.socket}"
    assert stat.S_IMODE(fixture.socket.stat().st_mode) == 0o600
    (call,) = calls(fixture.directory)
    assert call["argv"] == ["-namespace", "zos", "-id", GROUP, "-address", "/a"]
    assert call["env"]["TTRPC_ADDRESS"] == "/e"
    assert call["env"]["OTEL_SERVICE_NAME"] == f"containerd-shim-{GROUP}"
    await fixture.manager.stop(GROUP)
    assert fixture.left() == []


async def test_it_is_no_child_of_ours_and_has_the_limits_of_one(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openfiles, "inherited_limit", lambda: 321)
    shim = await fixture.manager.start(GROUP, fixture.handler())
    fields = _read(f"/proc/{shim.pid}/stat").rpartition(")")[2].split()
    assert int(fields[1]) != os.getpid()
    assert int(fields[2]) != os.getpgrp()
    limits = _read(f"/proc/{shim.pid}/limits").splitlines()
    assert next(x.split()[3] for x in limits if x.startswith("Max open files")) == "321"
    ours = int(_read("/proc/self/oom_score_adj"))
    assert int(_read(f"/proc/{shim.pid}/oom_score_adj")) == min(ours + 1, 1000)


@pytest.mark.parametrize(
    "says",
    [
        {"name": "io.containerd.runc.v2-rs", "release": "2.0.0"},
        {"name": "io.containerd.runc.v2", "release": "3.0.0"},
        {"name": "io.containerd.runc.v2", "release": ""},
        {"info": False},
    ],
)
async def test_any_other_is_told_to_start_itself(fixture: Fixture, says: dict[str, Any]) -> None:
    fixture.behave(**says)
    await fixture.manager.start(GROUP, fixture.handler())
    assert fixture.actions == ["start"]


async def test_so_is_one_that_is_given_a_cgroup_or_another_log(fixture: Fixture) -> None:
    await fixture.manager.start(GROUP, fixture.handler(shim_cgroup="/shims"))
    assert fixture.actions == ["start"]
    await fixture.manager.stop(GROUP)
    path = bundle.create(fixture.bundles, GROUP, group=GROUP)
    await fixture.launch(debug=True).start(GROUP, path, fixture.binary, None)
    assert fixture.actions == ["start", "start"]


async def test_one_that_does_not_serve_so_is_told_to_start_itself_the_next_time(
    fixture: Fixture,
) -> None:
    fixture.behave(dies=True)
    with pytest.raises(errors.Unavailable, match=f"shim {GROUP}"):
        await fixture.manager.start(GROUP, fixture.handler())
    assert fixture.left() == []
    await fixture.manager.start(GROUP, fixture.handler())
    assert fixture.actions == ["", "start"]


async def test_where_its_socket_is_taken_it_finds_out_itself_by_whom(fixture: Fixture) -> None:
    fixture.sockets.mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(fixture.socket))
        await fixture.manager.start(GROUP, fixture.handler())
    assert fixture.actions == ["start"]


async def test_a_shell_that_fails(fixture: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openfiles, "inherited_limit", lambda: "many")
    with pytest.raises(StartFailed, match="/bin/sh: exit code"):
        await fixture.manager.start(GROUP, fixture.handler())
    assert fixture.left() == []
    await fixture.manager.start(GROUP, fixture.handler())
    assert fixture.actions == ["start"]


async def test_no_socket_can_be_made(fixture: Fixture) -> None:
    fixture.sockets.write_text("a file in its place")
    with pytest.raises(StartFailed, match=r"File exists|Not a directory"):
        await fixture.manager.start(GROUP, fixture.handler())
    assert fixture.actions == []


async def test_a_start_that_is_cancelled_leaves_nothing(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "_SCRIPT", "sleep 600; :")
    path = bundle.create(fixture.bundles, GROUP, group=GROUP)
    starting = asyncio.create_task(fixture.launcher.start(GROUP, path, fixture.binary, None))
    await until(lambda: processes.of_bundle(path, GROUP))
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert processes.of_bundle(path, GROUP) == []
    assert list(fixture.sockets.iterdir()) == []
    monkeypatch.undo()
    await fixture.launcher.start(GROUP, path, fixture.binary, None)
    await until(lambda: fixture.actions)
    assert fixture.actions == [""]  # a caller that went away says nothing of the shim


async def test_a_shell_that_hangs_is_killed(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "_SCRIPT", "sleep 600; :")
    path = bundle.create(fixture.bundles, GROUP, group=GROUP)
    with pytest.raises(errors.DeadlineExceeded, match="still runs after"):
        await fixture.launcher.start(GROUP, path, fixture.binary, None, timeout=0.2)
    assert processes.of_bundle(path, GROUP) == []


@pytest.mark.parametrize(
    ("version", "possible"), [("v2.0.1", True), ("2.4.2+unknown", True), ("20.1", False)]
)
def test_versions(version: str, possible: bool) -> None:
    info = types_pb2.RuntimeInfo(name="io.containerd.runc.v2")
    info.version.version = version
    assert direct.possible(info) is possible
    assert not direct.possible(None)


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()
