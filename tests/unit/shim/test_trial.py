from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.fakes.shim import Behaviour, calls, install
from zos_cri.shim import trial
from zos_cri.shim.handler import Handler

SANDBOX = ("PingSandbox", "SandboxStatus", "StopSandbox", "ShutdownSandbox")


async def tried(directory: Path, behaviour: Behaviour) -> str:
    handler = Handler(name="m", shim=str(install(directory, behaviour)), sandboxer="shim")
    with tempfile.TemporaryDirectory() as scratch:  # short, for unix sockets
        why = await trial.failure_by_itself(handler, Path(scratch))
        assert list((Path(scratch) / "b").iterdir()) == []
    return why


async def test_a_shim_that_makes_sandboxes(tmp_path: Path) -> None:
    directory = tmp_path / "fake"
    assert await tried(directory, Behaviour(sandbox=SANDBOX)) == ""
    assert [call["argv"][-1] for call in calls(directory)] == ["start"]


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        (Behaviour(), "has no sandbox API (containerd.runtime.sandbox.v1)"),
        (Behaviour(version=2, sandbox=SANDBOX), "speaks version 2 of the Task API"),
        (Behaviour(accepts="none", replies=""), "start failed"),
    ],
)
async def test_one_that_doesnt(tmp_path: Path, behaviour: Behaviour, says: str) -> None:
    why = await tried(tmp_path / "fake", behaviour)
    assert says in why
    assert len(why.splitlines()) == 1


async def test_none_at_all() -> None:
    handler = Handler(name="m", shim="io.containerd.none.v9", sandboxer="shim")
    with tempfile.TemporaryDirectory() as scratch:
        assert "containerd-shim-none-v9" in await trial.failure_by_itself(handler, Path(scratch))
