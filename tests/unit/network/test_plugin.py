"""Running one plugin: what it is given, and every way in which it can go wrong."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.cni import FakeCni
from zos_cri.errors import DeadlineExceeded, grpc_code
from zos_cri.linux.spawn import Completed
from zos_cri.network import plugin as plugin_
from zos_cri.network.conf import parse_list
from zos_cri.network.plugin import (
    MAX_OUTPUT,
    BadReply,
    Call,
    PluginFailed,
    PluginMissing,
    Plugins,
    PluginTimeout,
    request,
)


@pytest.fixture
def fake(tmp_path: Path) -> FakeCni:
    return FakeCni(tmp_path)


def plugins(fake: FakeCni, **options: Any) -> Plugins:
    return Plugins([str(fake.bin)], **{"timeout": 20.0, **options})


def call(command: str = "ADD", **keys: Any) -> Call:
    stdin = json.dumps({"cniVersion": "1.0.0", "name": "net"} | keys).encode()
    return Call(command, "net", "bridge", stdin, {"CNI_IFNAME": "eth0"})


async def run(fake: FakeCni, command: str = "DEL", **options: Any) -> bytes:
    return await plugins(fake, **options).run(call(command), deadline=soon())


async def add(fake: FakeCni) -> bytes:
    return await plugins(fake).add(call(), version="1.0.0", ifname="eth0", deadline=soon())


def soon(seconds: float = 30) -> float:
    return asyncio.get_running_loop().time() + seconds


def living(group: int) -> list[str]:
    """The processes of a group that run still: not those that nobody has reaped yet."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, pgrp = path.read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == group and state != "Z":
                found.append(str(path))
    return found


class TestRequest:
    def made(self, plugin: str, **options: Any) -> dict[str, Any]:
        conf = parse_list(b'{"name":"n","plugins":[' + plugin.encode() + b"]}", source="f")
        out = request(conf.plugins[0], network="n", version="1.0.0", **options)
        decoded: dict[str, Any] = json.loads(out)
        return decoded

    def test_the_protocols_keys(self) -> None:
        made = self.made('{"type":"x","a":[1,{"b":null}],"args":{"c":1}}')
        assert made == {
            "cniVersion": "1.0.0",
            "name": "n",
            "type": "x",
            "a": [1, {"b": None}],
            "args": {"c": 1},
        }

    def test_capabilities_become_runtime_config(self) -> None:
        offered = {"portMappings": [1], "dns": {"x": 1}, "mac": "m"}
        wanted = '"capabilities":{"portMappings":true,"dns":false,"ips":true}'
        made = self.made(f'{{"type":"x",{wanted}}}', capabilities=offered)
        assert made["runtimeConfig"] == {"portMappings": [1]}
        assert "capabilities" not in made
        assert "runtimeConfig" not in self.made('{"type":"x"}', capabilities=offered)

    def test_reserved_keys_of_a_file_go_no_further(self) -> None:
        made = self.made(
            '{"type":"x","name":"other","cniVersion":"9","prevResult":{},'
            '"cni.dev/valid-attachments":[],"cni.dev/x":1}'
        )
        assert made == {"cniVersion": "1.0.0", "name": "n", "type": "x"}

    def test_previous_result_and_numbers_of_any_size(self) -> None:
        conf = parse_list(
            b'{"name":"n","plugins":[{"type":"x","n":123456789012345678901}]}', source="f"
        )
        out = request(conf.plugins[0], network="n", version="1.0.0", prev_result=b'{"y":1e400}')
        assert b'"n":123456789012345678901' in out
        assert b'"prevResult":{"y":1e400}' in out

    def test_attachments_under_both_names(self) -> None:
        made = self.made('{"type":"x"}', attachments=[("a", "eth0")])
        expected = [{"containerID": "a", "ifname": "eth0"}]
        assert made["cni.dev/valid-attachments"] == made["cni.dev/attachments"] == expected


class TestGiven:
    async def test_environment_and_input(
        self, fake: FakeCni, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        fake.plugin("bridge")
        monkeypatch.setenv("CNI_NETNS", "/somebody's")
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
        other = str(tmp_path / "other")
        runner = Plugins([other, str(fake.bin)], timeout=20)
        await runner.run(call("DEL"), deadline=soon())
        (seen,) = fake.calls()
        assert seen.env == {
            "CNI_COMMAND": "DEL",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": f"{other}:{fake.bin}",
            "PATH": "/usr/bin:/bin",
        }
        assert seen.request == {"cniVersion": "1.0.0", "name": "net"}

    async def test_what_systemd_meant_for_us_stays_with_us(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: dict[str, str] = {}

        async def fake_run(argv: Any, *, env: Any, **_: Any) -> Completed:
            seen.update(env)
            return Completed(tuple(argv), 0, b"", b"")

        for key in ("NOTIFY_SOCKET", "LISTEN_FDS", "WATCHDOG_USEC"):
            monkeypatch.setenv(key, "x")
        monkeypatch.setenv("HTTPS_PROXY", "p")
        monkeypatch.delenv("PATH")
        runner = Plugins(["/usr/bin"], timeout=1, run=fake_run)
        await runner.run(Call("DEL", "n", "env", b"{}"), deadline=soon())
        assert not {"NOTIFY_SOCKET", "LISTEN_FDS", "WATCHDOG_USEC"} & set(seen)
        assert seen["HTTPS_PROXY"] == "p"
        assert "/usr/sbin" in seen["PATH"]

    def test_the_first_directory_that_has_it(self, fake: FakeCni, tmp_path: Path) -> None:
        fake.plugin("bridge")
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "bridge").write_text("not executable")
        runner = Plugins([str(tmp_path / "other"), str(fake.bin)], timeout=1)
        assert runner.find("bridge") == str(fake.bin / "bridge")
        with pytest.raises(PluginMissing, match=rf"plugin ptp: no such program in .*, {fake.bin}"):
            runner.find("ptp")


class TestFailure:
    async def test_its_own_error_on_one_line(self, fake: FakeCni) -> None:
        error = {"cniVersion": "1.0.0", "code": 11, "msg": "no\naddress", "details": "of\n10/8"}
        fake.plugin("bridge", ADD={"exit": 1, "result": error, "stderr": "noise"})
        with pytest.raises(PluginFailed) as caught:
            await run(fake, "ADD")
        head, _, tail = str(caught.value).partition(" after ")
        assert head == "network net: CNI plugin bridge: ADD failed"
        assert tail.partition(" s: ")[2] == "code 11: no address: of 10/8"
        assert (caught.value.code, caught.value.msg) == (11, "no\naddress")
        assert grpc_code(caught.value) == "UNAVAILABLE"

    async def test_an_error_with_exit_code_zero(self, fake: FakeCni) -> None:
        fake.plugin("bridge", DEL={"result": {"code": 7, "msg": "x"}})
        with pytest.raises(PluginFailed, match="code 7: x"):
            await run(fake)

    @pytest.mark.parametrize(
        ("step", "message"),
        [
            ({"exit": 3}, "exit code 3; it said: nothing"),
            ({"exit": 3, "stderr": "a\nb"}, "exit code 3; it said: a b"),
            ({"exit": 1, "stdout": "panic: x\n"}, "exit code 1; it said: panic: x"),
            ({"exit": 1, "stdout": "{}"}, "exit code 1; it said: {}"),
            ({"kill": 9}, "killed by signal 9; it said: nothing"),
            ({"exit": 1, "stderr": "x" * 9999}, "it said: …xxx"),
        ],
    )
    async def test_no_error_of_its_own(self, fake: FakeCni, step: Any, message: Any) -> None:
        fake.plugin("bridge", DEL=step)
        with pytest.raises(PluginFailed, match="bridge: DEL failed after") as caught:
            await run(fake)
        assert message in str(caught.value)
        assert len(str(caught.value)) < 2 * plugin_.MAX_WORDS

    async def test_a_hang_ends_with_all_its_children(self, fake: FakeCni) -> None:
        fake.plugin("bridge", DEL={"hang": True})
        with pytest.raises(
            PluginTimeout, match=r"bridge: DEL failed after .*still running"
        ) as info:
            await run(fake, timeout=0.5)
        assert grpc_code(info.value) == "DEADLINE_EXCEEDED"
        (seen,) = fake.calls()
        async with asyncio.timeout(10):
            while living(seen.pid):
                await asyncio.sleep(0.01)

    async def test_the_operations_deadline_counts_too(self, fake: FakeCni) -> None:
        fake.plugin("bridge", DEL={"hang": True})
        with pytest.raises(PluginTimeout, match=r"still running after 0\.[34]"):
            await plugins(fake).run(call("DEL"), deadline=soon(0.4))
        with pytest.raises(PluginTimeout, match="no time was left to run it"):
            await plugins(fake).run(call("DEL"), deadline=soon(-1))
        assert len(fake.calls()) == 1

    async def test_a_flood(self, fake: FakeCni) -> None:
        fake.plugin("bridge", ADD={"flood": MAX_OUTPUT + 1})
        with pytest.raises(BadReply, match="printed more than 1048576 bytes"):
            await run(fake, "ADD")

    async def test_a_program_that_cannot_be_run(self, fake: FakeCni) -> None:
        (fake.bin / "bridge").write_bytes(b"\x7fELF nonsense")
        (fake.bin / "bridge").chmod(0o755)
        with pytest.raises(PluginMissing, match=r"bin/bridge can't be run: Exec format error"):
            await run(fake)

    async def test_one_being_replaced_is_waited_for(self, fake: FakeCni) -> None:
        fake.plugin("bridge")
        with (fake.bin / "bridge").open("a"):  # open for writing: exec says ETXTBSY
            waiting = asyncio.create_task(run(fake))
            await asyncio.sleep(plugin_.BUSY_INTERVAL * 1.5)
            assert not waiting.done()
        assert await waiting == b""

    async def test_but_not_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def busy(*_: Any, **__: Any) -> Completed:
            raise OSError(errno.ETXTBSY, "Text file busy")

        monkeypatch.setattr(plugin_, "BUSY_TIMEOUT", 0.01)
        runner = Plugins(["/usr/bin"], timeout=1, run=busy)
        with pytest.raises(PluginMissing, match="Text file busy"):
            await runner.run(Call("DEL", "n", "env", b"{}"), deadline=soon())

    async def test_a_plugin_that_does_not_read(self, fake: FakeCni) -> None:
        (fake.bin / "bridge").write_text("#!/bin/sh\nexit 0\n")
        (fake.bin / "bridge").chmod(0o755)
        await plugins(fake).run(call("DEL", x="y" * (1 << 19)), deadline=soon())


class TestResults:
    @pytest.mark.parametrize(
        ("step", "message"),
        [
            ({"stdout": ""}, "bad result: .*; it said: nothing"),
            ({"stdout": "hello"}, "bad result: .*; it said: hello"),
            ({"stdout": "null"}, "bad result"),
            ({"stdout": '{"ips":[{"address":"10.0.0.1"}'}, "bad result: .*truncated"),
            ({"result": {"ips": [{"address": "x"}]}}, r"bad result: ips\[0\]: 'x'"),
            ({"result": {"ips": [{"address": "10.0.0.2/8", "interface": 4}]}}, r"interface: 4"),
            ({"result": {"cniVersion": "8.0.0"}}, "cniVersion: '8.0.0' is unknown"),
        ],
    )
    async def test_nonsense_names_the_plugin(self, fake: FakeCni, step: Any, message: Any) -> None:
        fake.plugin("bridge", ADD=step)
        with pytest.raises(BadReply, match=f"network net: CNI plugin bridge: ADD .*{message}"):
            await add(fake)

    async def test_a_missing_version_is_put_in(self, fake: FakeCni) -> None:
        fake.plugin("bridge", ADD={"result": {"ips": []}})
        assert json.loads(await add(fake)) == {"cniVersion": "1.0.0", "ips": []}

    async def test_else_it_is_left_as_it_is(self, fake: FakeCni) -> None:
        text = '{"cniVersion":"0.4.0","own":123456789012345678901}'
        fake.plugin("bridge", ADD={"stdout": f"  {text}\n"})
        assert await add(fake) == text.encode()


class TestVersions:
    async def test_asked_once_for_a_program(self, fake: FakeCni) -> None:
        fake.plugin("bridge")
        runner = plugins(fake)
        for _ in range(3):
            assert "1.1.0" in await runner.versions("bridge", deadline=soon())
        assert fake.said() == ["VERSION bridge"]
        program = fake.bin / "bridge"
        text = program.read_text()
        program.unlink()
        program.write_text(text)
        program.chmod(0o755)
        await runner.versions("bridge", deadline=soon())
        assert len(fake.calls()) == 2

    async def test_nonsense(self, fake: FakeCni) -> None:
        fake.plugin("bridge", VERSION={"stdout": "v1"})
        with pytest.raises(BadReply, match=r"CNI plugin bridge: VERSION .*it said: v1"):
            await plugins(fake).versions("bridge", deadline=soon())


class TestHook:
    async def test_hears_of_success_and_failure(self, fake: FakeCni) -> None:
        heard: list[tuple[Any, ...]] = []
        fake.plugin("bridge", CHECK={"exit": 1})

        def hook(*args: Any) -> None:
            heard.append(args)

        await run(fake, on_operation=hook)
        with pytest.raises(PluginFailed) as caught:
            await run(fake, "CHECK", on_operation=hook)
        assert [(op, net, kind) for op, net, kind, _, _ in heard] == [
            ("DEL", "net", "bridge"),
            ("CHECK", "net", "bridge"),
        ]
        assert [error for *_, error in heard] == [None, caught.value]
        assert all(0 < seconds < 20 for *_, seconds, _ in heard)

    async def test_its_errors_are_its_own(self, fake: FakeCni) -> None:
        fake.plugin("bridge")

        def broken(*_: Any) -> None:
            raise RuntimeError

        assert await run(fake, on_operation=broken) == b""


def test_timeouts_are_deadlines() -> None:
    assert issubclass(PluginTimeout, DeadlineExceeded)
