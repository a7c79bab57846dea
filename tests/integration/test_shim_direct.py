"""A real shim whose server was started without its `start`: it is as one that was started by it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from zos_cri.shim import direct, processes
from zos_cri.shim.client import socket_path

if TYPE_CHECKING:
    from tests.integration.shim_harness import Harness

pytestmark = [pytest.mark.root, pytest.mark.runtime]

# Of /proc/<pid>/status: what a child has from its parent, or what the shim itself sets.
_FIELDS = re.compile(
    r"(PPid|Umask|Uid|Gid|Groups|Sig(?:Blk|Ign|Cgt)|Cap\w+|NoNewPrivs|Seccomp|Cpus_allowed):"
)


async def test_it_is_as_one_that_started_itself(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    real = direct.start

    async def start(argv: Any, *args: Any, **more: Any) -> Any:
        started.append(argv)
        return await real(argv, *args, **more)

    monkeypatch.setattr(direct, "start", start)
    directly = await facts_of_one(harness)
    assert len(started) == (harness.version == 3)  # Debian's says nothing of itself
    monkeypatch.setattr(direct, "possible", lambda info: False)
    await harness.restart()
    assert directly == await facts_of_one(harness)
    assert len(started) == (harness.version == 3)


async def facts_of_one(harness: Harness) -> dict[str, Any]:
    """What is to be seen of a shim from outside, with its own names taken out."""
    group = harness.new_group()
    shim = await harness.manager.start(group, harness.handler)
    assert processes.listens_on(shim.pid, socket_path(shim.address))
    return _facts(Path("/proc", str(shim.pid)), group)


def _facts(process: Path, group: str) -> dict[str, Any]:
    def neutral(text: str) -> str:
        return re.sub(r"\[\d+\]|[0-9a-f]{64}", "*", text.replace(group, "<group>"))

    variables = dict(
        variable.partition("=")[::2]
        for variable in (process / "environ").read_text().split("\0")
        # How many threads of Go's: `start` wants 4, whatever it is told.
        if not variable.startswith("GOMAXPROCS=")
    )
    status = (process / "status").read_text().splitlines()
    return {
        "argv": neutral((process / "cmdline").read_text()),
        "env": {name: neutral(value) for name, value in variables.items()},
        # Not 3, the socket that it is given: it makes a copy, and Go's collector closes that one.
        "descriptors": {
            name: neutral(os.readlink(process / "fd" / name)) for name in ("0", "1", "2")
        },
        "status": [line for line in status if _FIELDS.match(line)],
        "limits": (process / "limits").read_text(),
        "oom": (process / "oom_score_adj").read_text(),
        "cgroups": (process / "cgroup").read_text(),
        "nice": (process / "stat").read_text().rpartition(")")[2].split()[15:17],
    }
