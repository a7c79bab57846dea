"""The parts of a chain that need no plugin; what plugins see is in test_cni.py."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from zos_cri.errors import Internal, ResourceExhausted
from zos_cri.network.chain import Chains, call_for, is_netns, to_the_end
from zos_cri.network.conf import ConfDir, parse_list
from zos_cri.network.plugin import Plugins
from zos_cri.network.record import Attachment, Records

if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_a_network_namespace(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    os.mkfifo(tmp_path / "fifo")
    assert is_netns("/proc/self/ns/net")
    for path in ("", "/proc/self/ns/ipc", str(plain), str(tmp_path / "fifo"), "/absent", "/tmp"):
        assert not is_netns(path)


@pytest.mark.parametrize(
    ("command", "version", "expected"),
    [
        ("ADD", "0.3.1", True),
        ("DEL", "0.3.1", False),
        ("DEL", "0.4.0", True),
        ("DEL", "1.1.0", True),
        ("CHECK", "0.4.0", True),
    ],
)
def test_who_gets_the_result(command: str, version: str, expected: bool) -> None:
    conf = parse_list(b'{"name":"n","plugins":[{"type":"x"}]}', source="f")
    attachment = Attachment("id", "n", "eth0", version=version, args="a=b", result=b'{"r":1}')
    call = call_for(command, attachment, conf.plugins[0], "/ns")
    assert (b'"prevResult":{"r":1}' in call.request) == expected
    assert call.parameters == {
        "CNI_CONTAINERID": "id",
        "CNI_NETNS": "/ns",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "a=b",
    }


class TestToTheEnd:
    async def test_results_and_errors_pass(self) -> None:
        async def fine() -> int:
            return 3

        async def broken() -> None:
            raise ValueError("x")

        assert await to_the_end(fine()) == 3
        with pytest.raises(ValueError, match="x"):
            await to_the_end(broken())

    @pytest.mark.parametrize("fails", [False, True])
    async def test_cancelling_takes_effect_afterwards(self, fails: bool) -> None:
        begun, go, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def work() -> None:
            begun.set()
            await go.wait()
            done.set()
            if fails:
                raise ValueError

        caller = asyncio.create_task(to_the_end(work()))
        await begun.wait()
        for _ in range(2):
            caller.cancel()
            await asyncio.sleep(0)
        assert not caller.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert done.is_set()


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, ResourceExhausted), (errno.EIO, Internal)]
)
async def test_a_failing_disk_is_named(tmp_path: Path, number: int, kind: type[Exception]) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number), "/x/y.json")

    chains = Chains(
        plugins=Plugins([], timeout=1),
        records=Records(tmp_path),
        confs=ConfDir(str(tmp_path), 1),
    )
    with pytest.raises(kind, match=f"CNI record /x/y.json: {os.strerror(number)}"):
        await chains.on_disk(fail)
