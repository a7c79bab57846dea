"""A logger in the test's own process, turned by hand."""

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from zos_cri.stdio.logfile import LOCAL
from zos_cri.stdio.logger import Logger
from zos_cri.stdio.loop import Loop
from zos_cri.stdio.messages import Finished, LogSpec
from zos_cri.stdio.state import StateDir


class Rig:
    """The logger, and one container's side of its FIFOs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "logs" / "c" / "0.log"
        self.local = LOCAL
        self._make_logger()
        self.writers: dict[str, int] = {}
        for name in ("stdout", "stderr"):
            os.mkfifo(directory / name)

    def _make_logger(self) -> None:
        self.loop = Loop()
        self.logger = Logger(
            loop=self.loop,
            state=StateDir(self.directory / "state"),
            open_timeout=0.2,
            local=self.local,
        )
        self.alive = True

    def spec(self, **changes: object) -> LogSpec:
        given: dict[str, object] = {
            "id": "c",
            "log_path": str(self.log),
            "log_root": str(self.directory / "logs"),
            "stdout": str(self.directory / "stdout"),
            "stderr": str(self.directory / "stderr"),
        }
        return LogSpec(**(given | changes))  # type: ignore[arg-type]

    def attach(self, spec: LogSpec | None = None, **changes: object) -> None:
        """As the logger's own, to its end."""
        self._ask(partial(self.logger.attach, spec or self.spec(**changes)))

    def reopen(self, container: str = "c") -> None:
        """As the logger's own, to its end."""
        self._ask(partial(self.logger.reopen, container))

    def _ask(self, request: Callable[[Callable[[Exception | None], None]], None]) -> None:
        answers: list[Exception | None] = []
        request(answers.append)
        self.until(lambda: answers)
        if answers[0] is not None:
            raise answers[0]

    def open(self) -> None:
        """The shim's part."""
        for name in ("stdout", "stderr"):
            fd = os.open(self.directory / name, os.O_WRONLY | os.O_NONBLOCK)
            self.writers[name] = fd

    def write(self, data: bytes, name: str = "stdout") -> None:
        while data:
            try:
                data = data[os.write(self.writers[name], data) :]
            except BlockingIOError:
                self.turn()

    def hang_up(self, *names: str) -> None:
        for name in names or tuple(self.writers):
            os.close(self.writers.pop(name))

    def turn(self) -> None:
        self.logger.turn(block=False)

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, "it doesn't come to pass"
            self.turn()

    def settle(self) -> None:
        """Until nothing more happens."""
        for _ in range(20):
            self.turn()
            self.until(lambda: not self.logger.status().waiting)

    def finish(self, timeout: float = 5.0) -> Finished:
        answers: list[Finished] = []
        self.logger.finish("c", timeout, answers.append)
        self.until(lambda: answers)
        return answers[0]

    def entries(self, path: Path | None = None) -> list[bytes]:
        """The log without its times."""
        lines = (path or self.log).read_bytes().split(b"\n")
        assert lines.pop() == b"", "the log's end is torn"
        return [line[31:] for line in lines]

    def die(self) -> None:
        """As SIGKILL would leave it: notes, FIFOs and log as they are."""
        if self.alive:
            self.logger.close()
            self.loop.close()
            self.alive = False

    def succeed(self) -> None:
        """The next logger, after the last one's death."""
        self.die()
        self._make_logger()
        self.logger.take_over()

    def close(self) -> None:
        self.hang_up()
        self.die()


@pytest.fixture
def distant(tmp_path: Path) -> Iterator[Rig]:
    """One whose log files lie on a file system that may hang, as far as the logger knows."""
    rig = Rig(tmp_path)
    rig.die()
    rig.local = frozenset()
    rig.succeed()
    yield rig
    rig.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()
