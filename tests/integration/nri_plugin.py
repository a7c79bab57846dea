"""A real NRI plugin in Go, over upstream's own stub, that does as a script tells it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.conftest import TOOLS
from tests.integration.server import SLOWNESS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.server import Server

PROGRAM = TOOLS / "nriplugin"
PATIENCE = 20.0 * SLOWNESS


class Told:
    """What a plugin has written of its calls, so far."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        # The last line may be half written.
        return [json.loads(x) for x in self.path.read_text().split("\n")[:-1]]

    def names(self, **wanted: str) -> list[str]:
        """The events, of what has these values."""
        return [x["event"] for x in self.lines() if wanted.items() <= x.items()]

    def until(self, event: str, **wanted: str) -> dict[str, Any]:
        """Waits for an event, and answers the last one of it."""
        deadline = time.monotonic() + PATIENCE
        while True:
            found = [x for x in self.lines() if {"event": event, **wanted}.items() <= x.items()]
            if found:
                return found[-1]
            assert time.monotonic() < deadline, f"no {event} {wanted}: {self.names()}"
            time.sleep(0.02)


class Plugin(Told):
    """One that runs and has joined."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        super().__init__(path)
        self.process = process

    def ask(self, request: dict[str, Any]) -> None:
        """Makes it send an UpdateContainersRequest."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()

    def ended(self) -> bool:
        """Waits until it has seen that its connection is closed."""
        return self.process.wait(PATIENCE) != 0


@contextmanager
def connected(
    server: Server, directory: Path, name: str = "test", index: str = "10", **script: Any
) -> Iterator[Plugin]:
    """A plugin that has connected to the server's socket and is active."""
    active = f"NRI plugin is active plugin={index}-{name}"
    before = server.log.read_text().count(active)
    with started(server, directory, name, index, **script) as plugin:
        until_log(server, active, before + 1)
        yield plugin


@contextmanager
def started(
    server: Server, directory: Path, name: str = "test", index: str = "10", **script: Any
) -> Iterator[Plugin]:
    """A plugin that has been started, and may yet be refused."""
    log = directory / f"{index}-{name}.jsonl"
    file = directory / f"{index}-{name}.script"
    file.write_text(json.dumps({"log": str(log), **script}))
    process = subprocess.Popen(
        [
            *(PROGRAM, "-socket", server.run / "nri.sock"),
            *("-name", name, "-idx", index, "-script", file),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield Plugin(log, process)
    finally:
        process.kill()
        process.wait(PATIENCE)
        assert process.stdin is not None
        process.stdin.close()


def install(server: Server, directory: Path, file_name: str, **script: Any) -> Told:
    """Puts a plugin where the server starts it from."""
    plugins = server.state / "nri" / "plugins"
    confs = server.state / "nri" / "conf.d"
    for each in (plugins, confs):
        each.mkdir(parents=True, exist_ok=True)
    shutil.copy(PROGRAM, plugins / file_name)
    log = directory / f"{file_name}.jsonl"
    (confs / f"{file_name}.conf").write_text(json.dumps({"log": str(log), **script}))
    return Told(log)


def until_log(server: Server, text: str, times: int = 1) -> None:
    """Waits until the server's log says something so many times."""
    deadline = time.monotonic() + PATIENCE
    while server.log.read_text().count(text) < times:
        assert time.monotonic() < deadline, f"the log doesn't say {text!r}"
        time.sleep(0.02)
