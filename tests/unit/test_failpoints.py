"""Failpoints: what they say, what they do, and that the code has each of them."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from zos_cri import config, failpoints
from zos_cri.errors import InvalidArgument
from zos_cri.failpoints import Action, Failpoint, step

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(failpoints.__file__).parent


@pytest.fixture(autouse=True)
def _all_off() -> Iterator[None]:
    yield
    failpoints.arm({})


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("error", Action("error")),
        ("kill", Action("kill")),
        ("delay:0.5", Action("delay", 0.5)),
        ("error@3", Action("error", nth=3)),
        ("delay:2@1", Action("delay", 2.0, 1)),
    ],
)
def test_actions(text: str, action: Action) -> None:
    assert failpoints.parse("cni.add.before", text) == action


@pytest.mark.parametrize(
    "text", ["", "fail", "delay", "delay:", "delay:x", "error@0", "kill@", "kill "]
)
def test_no_action(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"failpoints\.cni\.add\.before: '"):
        failpoints.parse("cni.add.before", text)


def test_no_such_point() -> None:
    with pytest.raises(InvalidArgument, match=r"test: failpoints: there is no point 'cni\.add'"):
        config.parse(b'[failpoints]\n"cni.add" = "error"', "test")


def test_a_wrong_one_changes_nothing() -> None:
    failpoints.arm({"cni.add.before": "error"})
    with pytest.raises(InvalidArgument):
        failpoints.arm({"cni.del.before": "error", "cni.add.before": "nonsense"})
    with pytest.raises(Failpoint):
        asyncio.run(failpoints.hit("cni.add.before"))


async def run(side: str, action: str) -> list[str]:
    failpoints.arm({f"cni.add.{side}": action})
    done: list[str] = []
    try:
        async with step("cni.add"):
            done.append("effect")
        done.append("on")
    except Failpoint as error:
        done.append(str(error))
    return done


async def test_errors() -> None:
    assert await run("before", "error") == ["failpoint cni.add.before"]
    assert await run("after", "error") == ["effect", "failpoint cni.add.after"]


async def test_a_delay_goes_on() -> None:
    assert await run("before", "delay:0") == ["effect", "on"]


async def test_the_point_behind_is_not_reached_by_failures() -> None:
    failpoints.arm({"cni.add.after": "error"})
    with pytest.raises(KeyError):
        async with step("cni.add"):
            raise KeyError


async def test_only_the_nth_time() -> None:
    failpoints.arm({"cni.add.before": "error@2"})
    await failpoints.hit("cni.add.before")
    with pytest.raises(Failpoint):
        await failpoints.hit("cni.add.before")
    await failpoints.hit("cni.add.before")


async def test_off_it_is_one_and_the_same_nothing() -> None:
    assert step("cni.add") is step("cni.del")
    async with step("cni.add"):
        pass


def test_kill_is_a_sigkill() -> None:
    program = (
        "import asyncio; from zos_cri import failpoints\n"
        'failpoints.arm({"cni.add.before": "kill"})\n'
        'asyncio.run(failpoints.hit("cni.add.before"))'
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert b"failpoint" in done.stderr


def test_every_step_is_in_the_code_and_every_one_in_the_code_is_known() -> None:
    used = set()
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        used |= set(re.findall(r'\bstep\("([\w.]+)"\)', text))
        if "_POINTS" in text:
            used |= set(re.findall(r': "((?:task|exec|shim|sandboxer)\.\w+)",', text))
    assert used == failpoints.STEPS
