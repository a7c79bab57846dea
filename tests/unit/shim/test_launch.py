"""Launching a fake shim that speaks whatever dialect a test wants."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes.shim import Behaviour, calls, install, options
from zos_cri import errors
from zos_cri.shim import bundle, processes
from zos_cri.shim.bootstrap import Dialect, DialectCache, Encoding, Identity
from zos_cri.shim.launch import Launcher, StartFailed, features, find_binary
from zos_cri.shim.task import Exit

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUP = "f" * 64


class Fixture:
    """A fake binary, its launcher and a bundle."""

    def __init__(self, tmp_path: Path) -> None:
        self.directory = tmp_path / "fake"
        self.binary = str(install(self.directory))
        self.bundle = bundle.create(tmp_path / "bundles", GROUP, group=GROUP)
        self.dialects = DialectCache(None)
        self.launcher = self.make()

    def make(self, **changes: Any) -> Launcher:
        arguments = {
            "namespace": "zos",
            "events_address": "/run/events",
            "grpc_address": "/run/zos",
            "publish_binary": "/run/publish",
            "socket_dir": "/s",
            "dialects": self.dialects,
            **changes,
        }
        return Launcher(**arguments)

    def behave(self, **behaviour: Any) -> None:
        install(self.directory, Behaviour(**behaviour))

    async def start(self, timeout: float = 20) -> Any:
        return await self.launcher.start(
            GROUP, self.bundle, self.binary, options("o"), timeout=timeout
        )

    @property
    def stdins(self) -> list[str]:
        return [call["stdin"] for call in calls(self.directory)]

    @property
    def running(self) -> list[int]:
        return processes.of_bundle(self.bundle, GROUP)

    async def ends(self) -> None:
        """Waits for what was killed: on a busy host that takes longer than anyone waits for it."""
        async with asyncio.timeout(20):
            while self.running:
                await asyncio.sleep(0.01)


@pytest.fixture
def fixture(tmp_path: Path) -> Iterator[Fixture]:
    fixture = Fixture(tmp_path)
    yield fixture
    processes.kill_of_bundle(fixture.bundle, GROUP)


async def test_a_current_shim(fixture: Fixture) -> None:
    result = await fixture.start()
    assert result.address == f"unix://{fixture.directory}/socket"
    assert (result.protocol, result.version, result.encoding) == ("ttrpc", 3, Encoding.PROTOBUF)
    assert len(fixture.running) == 1
    (call,) = calls(fixture.directory)
    want = "-namespace zos -address /run/zos -publish-binary /run/publish -id"
    assert " ".join(call["argv"]) == f"{want} {GROUP} start"
    assert call["cwd"] == str(fixture.bundle)


async def test_the_environment_is_minimal(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "x")
    fixture.launcher = fixture.make(environment={"OTEL_SDK_DISABLED": "true"}, debug=True)
    await fixture.start()
    (call,) = calls(fixture.directory)
    environment = {
        key: value
        for key, value in call["env"].items()
        # what sh and Python, which the fake is made of, add
        if key not in {"PATH", "PWD", "OLDPWD", "SHLVL", "_", "FAKE_SHIM", "PYTHONPATH", "LC_CTYPE"}
    }
    assert environment == {
        "TTRPC_ADDRESS": "/run/events",
        "GRPC_ADDRESS": "/run/zos",
        "NAMESPACE": "zos",
        "MAX_SHIM_VERSION": "2",
        "GOMAXPROCS": "2",
        "OTEL_SDK_DISABLED": "true",
    }
    assert call["argv"][-2:] == ["-debug", "start"]


@pytest.mark.parametrize(
    ("accepts", "replies", "dialect"),
    [
        ("params", "protobuf", Dialect.PARAMS),
        ("any", "text", Dialect.ANY),
        ("any", "json", Dialect.ANY),
        ("none", "text", Dialect.NONE),
    ],
)
async def test_the_dialect_is_found_out_once(
    fixture: Fixture, accepts: str, replies: str, dialect: Dialect
) -> None:
    fixture.behave(accepts=accepts, replies=replies)
    await fixture.start()
    tried = ["params", "any", "none"][: list(Dialect).index(dialect) + 1]
    assert fixture.stdins == tried
    assert fixture.dialects.get(Identity.of(fixture.binary)) is dialect
    await fixture.launcher.kill(GROUP, fixture.bundle)
    await fixture.start()
    assert fixture.stdins == [*tried, accepts]


async def test_a_shim_that_did_not_see_its_options_is_started_again(fixture: Fixture) -> None:
    """2.0 to 2.2 take BootstrapParams, see no options in them, and start nonetheless."""
    fixture.behave(replies="json")
    result = await fixture.start()
    assert result.encoding is Encoding.JSON
    assert fixture.stdins == ["params", "any"]
    assert len(fixture.running) == 1


async def test_what_a_failed_try_left_is_killed(fixture: Fixture) -> None:
    fixture.behave(accepts="any", replies="text", leaves=True)
    await fixture.start()
    assert fixture.stdins == ["params", "any"]
    assert len(fixture.running) == 1


async def test_a_failure_tells_of_every_try_and_forgets(fixture: Fixture) -> None:
    fixture.behave(accepts="nothing", leaves=True)
    with pytest.raises(StartFailed) as raised:
        await fixture.start()
    message = str(raised.value)
    assert message.startswith(f"shim {fixture.binary} for {GROUP}: start failed: given Bootstrap")
    assert message.count("this was not for me") == 3
    assert fixture.running == []
    assert fixture.dialects.get(Identity.of(fixture.binary)) is None


async def test_a_known_dialect_that_fails_is_forgotten(fixture: Fixture) -> None:
    fixture.dialects.learn(Identity.of(fixture.binary), Dialect.PARAMS)
    fixture.behave(accepts="any", replies="text")  # upgraded behind its wrapper
    with pytest.raises(StartFailed):
        await fixture.start()
    assert fixture.stdins == ["params"]
    await fixture.start()
    assert fixture.stdins == ["params", "params", "any"]


async def test_an_answer_without_an_address(fixture: Fixture) -> None:
    fixture.behave(replies="no address here")
    with pytest.raises(StartFailed, match="no address in the shim's answer"):
        await fixture.start()
    assert fixture.running == []


async def test_a_shim_that_speaks_grpc(fixture: Fixture) -> None:
    fixture.behave(protocol="grpc")
    with pytest.raises(errors.Unimplemented, match="speaks grpc, not ttrpc"):
        await fixture.start()
    assert fixture.running == []


async def test_a_start_that_hangs_is_killed_with_its_group(fixture: Fixture) -> None:
    fixture.behave(hangs=("start",))
    started = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded):
        await fixture.start(timeout=1)
    assert time.monotonic() - started < 8
    assert fixture.running == []


async def test_delete(fixture: Fixture, caplog: pytest.LogCaptureFixture) -> None:
    exit_ = await fixture.launcher.delete(GROUP, fixture.bundle, fixture.binary)
    assert exit_ == Exit(137, 5, 77)
    (call,) = calls(fixture.directory)
    assert call["argv"][-5:] == ["-id", GROUP, "-bundle", str(fixture.bundle), "delete"]
    assert call["cwd"] == str(fixture.bundle)
    assert any(getattr(r, "fields", {}).get("said") == "a warning\n" for r in caplog.records)


async def test_delete_that_fails_or_hangs(fixture: Fixture) -> None:
    fixture.behave(delete_fails=True)
    with pytest.raises(StartFailed, match="it can't be deleted"):
        await fixture.launcher.delete(GROUP, fixture.bundle, fixture.binary)
    fixture.behave(hangs=("delete",))
    with pytest.raises(errors.DeadlineExceeded):
        await fixture.launcher.delete(GROUP, fixture.bundle, fixture.binary, timeout=1)
    await fixture.ends()


async def test_info(fixture: Fixture) -> None:
    info = await fixture.launcher.info(fixture.binary, options("o"))
    assert info is not None
    known = features(info)
    assert (known.name, known.version) == ("fake", "9.9")
    assert known.oci == {"mountOptions": ["ro"]}
    assert known.annotations == {"a": "b"}
    info.features.value = b"{"
    assert features(info).oci == {}


async def test_no_info(fixture: Fixture) -> None:
    fixture.behave(info=False)
    assert await fixture.launcher.info(fixture.binary, None) is None


def test_sockets_of_a_dead_shim(fixture: Fixture) -> None:
    """By the address that is known, by what 1.6 notes down, and by the name Go's shims make."""
    digest = hashlib.sha256(f"/run/zos/zos/{GROUP}".encode()).hexdigest()
    directory = Path("/tmp") / f"zs{os.getpid()}"
    directory.mkdir()
    try:
        known, noted, computed = directory / "a", directory / "b", directory / digest
        for path in (known, noted, computed):
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
        (directory / "file").write_text("precious")
        (fixture.bundle / "address").write_text(f"unix://{noted}")
        launcher = fixture.make(socket_dir=str(directory))
        launcher.remove_sockets(GROUP, fixture.bundle, f"unix://{known}")
        launcher.remove_sockets(GROUP, fixture.bundle, f"unix://{directory / 'file'}")
        launcher.remove_sockets(GROUP, fixture.bundle, "vsock://1:2")
        assert os.listdir(directory) == ["file"]
    finally:
        (directory / "file").unlink(missing_ok=True)
        directory.rmdir()


def test_a_socket_directory_that_is_too_long(fixture: Fixture) -> None:
    fixture.make(socket_dir="/" + "x" * 40)
    with pytest.raises(errors.InvalidArgument, match="longer than 41 bytes"):
        fixture.make(socket_dir="/" + "x" * 41)


class TestFindBinary:
    def test_by_type_name(self, tmp_path: Path) -> None:
        path = install(tmp_path / "fake")
        assert find_binary("io.containerd.fake.v2", path=f":relative:{path.parent}") == str(path)

    def test_by_path_through_links(self, tmp_path: Path) -> None:
        path = install(tmp_path / "fake")
        (tmp_path / "link").symlink_to(path)
        assert find_binary(str(tmp_path / "link")) == str(path)

    def test_none(self, tmp_path: Path) -> None:
        with pytest.raises(errors.NotFound) as raised:
            find_binary("io.containerd.none.v9", path=str(tmp_path))
        assert f"{tmp_path}/containerd-shim-none-v9, " in str(raised.value)
        assert "/usr/bin/containerd-shim-none-v9" in str(raised.value)

    def test_one_that_is_not_executable(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(errors.NotFound):
            find_binary(str(tmp_path / "file"))

    @pytest.mark.parametrize("shim", ["", "runc", "a/b.c", ".v2", "a..v2", "a."])
    def test_what_is_no_name(self, shim: str) -> None:
        with pytest.raises(errors.InvalidArgument, match="want a type name"):
            find_binary(shim)
