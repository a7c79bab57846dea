"""Points before and after each side effect, where a configuration can have something go wrong.

For tests of what is left when the server fails or is killed there; off unless the section
`[failpoints]` names one. Then `name.before` or `name.after` has an action: `error` fails,
`delay:SECONDS` waits, `kill` is a SIGKILL to the server; `@N` behind it means the N-th time only.

    [failpoints]
    "cni.add.after" = "kill"
    "record.update.before" = "error@3"

The switch is one of the process, not of an object (decision 0011): a point costs a look at an empty
dictionary where all are off, and no constructor has to hand the switch on.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import Counter
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from zos_cri.errors import Internal, InvalidArgument
from zos_cri.log import get_log

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

_log = get_log(__name__)

STEPS: Final = frozenset(
    {
        # every change of a record, of pods and of containers
        *("record.insert", "record.update", "record.delete"),
        # pods
        *("netns.pin", "netns.unpin", "sandbox.files", "sandbox.remove"),
        *("cni.record", "cni.add", "cni.complete", "cni.del", "cni.forget"),
        *("shim.bundle", "shim.start", "shim.adopt", "shim.shutdown", "shim.delete", "shim.remove"),
        # pods whose shim makes the sandbox
        *("sandboxer.create", "sandboxer.start", "sandboxer.stop", "sandboxer.shutdown"),
        # containers
        *("rootfs.prepare", "rootfs.volumes", "rootfs.hide", "rootfs.release"),
        *("bundle.write", "bundle.remove"),
        *("log.fifos", "log.attach", "log.finish", "log.detach"),
        *("task.create", "task.start", "task.signal", "task.kill", "task.delete"),
        # execs
        *("exec.fifos", "exec.add", "exec.kill", "exec.remove"),
        # pulls
        *("pull.stage", "pull.fetch", "pull.commit"),
    }
)
NAMES: Final = frozenset(f"{step}.{side}" for step in STEPS for side in ("before", "after"))
_ACTION: Final = re.compile(
    r"(?P<kind>error|kill|delay:(?P<seconds>[0-9]+(\.[0-9]+)?))(@(?P<nth>[1-9][0-9]*))?"
)


class Action(NamedTuple):
    """What happens at a point; `nth` 0 means each time."""

    kind: Literal["error", "kill", "delay"]
    seconds: float = 0.0
    nth: int = 0


class Failpoint(Internal):
    """A point was told to fail."""


def parse(name: str, text: str) -> Action:
    """What a setting says.

    Raises:
        InvalidArgument: there is no such point, or no such action.
    """
    if name not in NAMES:
        raise InvalidArgument(f"failpoints: there is no point {name!r}")
    match = _ACTION.fullmatch(text)
    if match is None:
        raise InvalidArgument(
            f"failpoints.{name}: {text!r} is none of error, kill, delay:SECONDS, each with an @N"
        )
    nth = int(match["nth"] or 0)
    if match["seconds"]:
        return Action("delay", float(match["seconds"]), nth)
    return Action("kill" if match["kind"] == "kill" else "error", nth=nth)


_armed: dict[str, Action] = {}
_passed: Counter[str] = Counter()


def arm(settings: Mapping[str, str]) -> None:
    """Switches on the points named, and all others off.

    Raises:
        InvalidArgument: as `parse`; nothing is changed then.
    """
    actions = {name: parse(name, text) for name, text in settings.items()}
    _armed.clear()
    _armed.update(actions)
    _passed.clear()
    if actions:
        _log.warning("failpoints are on", points=" ".join(sorted(actions)))


async def hit(name: str) -> None:
    """One point, where `step` doesn't fit.

    Raises:
        Failpoint: it was told to fail.
    """
    action = _armed.get(name)
    if action is None:
        return
    _passed[name] += 1
    if action.nth and action.nth != _passed[name]:
        return
    _log.warning("failpoint", point=name, action=action.kind, time=_passed[name])
    if action.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action.kind == "error":
        raise Failpoint(f"failpoint {name}")
    await asyncio.sleep(action.seconds)


class _On:
    def __init__(self, name: str) -> None:
        self._name = name

    async def __aenter__(self) -> None:
        await hit(f"{self._name}.before")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            await hit(f"{self._name}.after")


class _Off:
    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass


_OFF: Final = _Off()


def step(name: str) -> AbstractAsyncContextManager[None]:
    """The points around a side effect; the one behind it is reached only where it succeeds."""
    return _On(name) if _armed else _OFF
