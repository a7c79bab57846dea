"""The streams of CRI's containers: FIFOs that the logger reads and writes to the log files."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zos_cri.errors import Error, one_line
from zos_cri.failpoints import step
from zos_cri.linux import blocking
from zos_cri.log import get_log
from zos_cri.store.model import Stdio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zos_cri.stdio.client import LoggerClient
    from zos_cri.store.model import ContainerMeta

_log = get_log(__name__)

_STREAMS: Final = ("stdin", "stdout", "stderr")


class Output:
    """Makes containers' FIFOs and hands them to the logger."""

    def __init__(
        self,
        *,
        logger: LoggerClient,
        directory: Path,
        max_line: int,
        drop_after: float,
        drain_timeout: float,
    ) -> None:
        """
        Args:
            directory: a container's FIFOs are in `<directory>/<id>`.
            max_line: bytes; longer lines are split.
            drop_after: seconds for which a log's file system may refuse until output is dropped;
                0 = never.
            drain_timeout: seconds that open output may hold an exit back.
        """
        self._logger = logger
        self._directory = directory
        self._max_line = max_line
        self._drop_after = drop_after
        self._drain_timeout = drain_timeout

    def stdio(self, id_: str, *, stdin: bool, terminal: bool) -> Stdio:
        """Where a container's streams will be."""
        directory = self._directory / id_
        return Stdio(
            stdin=str(directory / "stdin") if stdin else "",
            stdout=str(directory / "stdout"),
            stderr="" if terminal else str(directory / "stderr"),
            terminal=terminal,
        )

    async def make(self, meta: ContainerMeta) -> None:
        """Makes the FIFOs, which the shim may open from then on, and waits for nobody."""
        async with step("log.fifos"):
            await blocking.call(_make_fifos, meta.stdio)
            self._logger.hold(meta.id, meta.stdio.stdout, meta.stdio.stderr)

    async def attach(self, meta: ContainerMeta, *, log_path: str, log_root: str) -> None:
        """Has the logger read the FIFOs into `log_path` ("" = drop the output).

        Args:
            log_root: what the path may not leave, not by symbolic links either.

        Raises:
            Error: the logger can't be had, or the log file can't be opened.
        """
        async with step("log.attach"):
            await self._logger.attach(
                meta.id,
                log_path=log_path,
                log_root=log_root,
                stdout_fifo=meta.stdio.stdout,
                stderr_fifo=meta.stdio.stderr,
                max_line=self._max_line,
                drop_after=self._drop_after,
            )

    async def tap(self, id_: str, streams: Sequence[str]) -> dict[str, int]:
        """What a running container writes from now on: descriptors to read, by stream.

        The container waits for a reader that doesn't read. The caller closes them.

        Raises:
            Error: the output has ended, or the logger can't be had.
        """
        reader = await self._logger.tap(id_, stdout="stdout" in streams, stderr="stderr" in streams)
        return reader.detach()

    async def logger_pid(self) -> int:
        """Which logger there is.

        Raises:
            Error: it can't be had.
        """
        return (await self._logger.status()).pid

    async def reopen(self, id_: str) -> None:
        """Makes the logger open a container's log file anew, at the next line.

        Raises:
            Error: it can't be opened.
        """
        await self._logger.reopen(id_)

    async def finish(self, id_: str) -> None:
        """Waits until all output is written, `drain_timeout` at most; never raises."""
        try:
            async with step("log.finish"):
                await self._logger.finish(id_, timeout=self._drain_timeout)
        except Error as error:
            _log.warning("log not finished", container=id_, error=one_line(error))

    async def detach(self, id_: str) -> None:
        """Lets the logger forget a container, and removes its FIFOs. Idempotent."""
        async with step("log.detach"):
            await self._logger.detach(id_)
        await blocking.call(_remove_fifos, self._directory / id_)


def _make_fifos(stdio: Stdio) -> None:
    for name in (stdio.stdin, stdio.stdout, stdio.stderr):
        if name:
            path = Path(name)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with contextlib.suppress(FileExistsError):
                os.mkfifo(path, 0o600)


def _remove_fifos(directory: Path) -> None:
    for name in _STREAMS:
        (directory / name).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        directory.rmdir()
