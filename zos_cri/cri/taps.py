"""A container's output as an attached client reads it, whatever becomes of the logger meanwhile."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from zos_cri.errors import FailedPrecondition, NotFound
from zos_cri.log import get_log
from zos_cri.streaming.pipes import FdReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zos_cri.cri.output import Output

_log = get_log(__name__)


class Taps:
    """Taps of one container's streams. They end with the streams.

    A logger that dies ends them too, and the container runs on: then the next logger is asked for
    new ones. What the container wrote in between is in the log, and not here.
    """

    def __init__(self, output: Output, container: str, streams: Sequence[str]) -> None:
        self._output = output
        self._container = container
        self._streams = streams
        self._logger = 0  # pid of the logger that the readers are of
        self._readers: dict[str, FdReader] = {}
        self._changing = asyncio.Lock()
        self._closed = False

    async def open(self) -> None:
        """Subscribes.

        Raises:
            Error: the output has ended, or the logger can't be had.
        """
        # Asked first: where another logger comes up in between, one more attempt is all it costs.
        self._logger = await self._output.logger_pid()
        if self._streams:
            descriptors = await self._output.tap(self._container, self._streams)
            self._readers = {name: FdReader(fd) for name, fd in descriptors.items()}

    def reader(self, stream: str) -> TapReader | None:
        """What reads a stream; None where it isn't one of ours."""
        return TapReader(self, stream) if stream in self._streams else None

    def close(self) -> None:
        """Unsubscribes. Idempotent."""
        self._closed = True
        for reader in self._readers.values():
            reader.close()

    async def read(self, stream: str, limit: int) -> bytes:
        """1 to `limit` bytes; b"" at the stream's end."""
        while not self._closed:
            reader = self._readers[stream]
            data = await reader.read(limit)
            if data or not await self._renewed(stream, reader):
                return data
        return b""

    async def _renewed(self, stream: str, ended: FdReader) -> bool:
        """Whether there is another reader of a stream, now that one has come to its end."""
        async with self._changing:
            if self._readers[stream] is not ended:
                return True  # by the other stream's task
            if await self._output.logger_pid() == self._logger:
                return False
            _log.info("logger is another: tapping it", container=self._container)
            old = list(self._readers.values())
            try:
                await self.open()
            except (NotFound, FailedPrecondition):  # the container has ended meanwhile
                return False
            for reader in old:
                reader.close()
            return True


class TapReader:
    """One stream of `Taps`, as `PipeProcess` reads it."""

    def __init__(self, taps: Taps, stream: str) -> None:
        self._taps = taps
        self._stream = stream

    async def read(self, limit: int) -> bytes:
        """1 to `limit` bytes; b"" at the stream's end."""
        return await self._taps.read(self._stream, limit)

    def close(self) -> None:
        """Ends the other stream's as well: a session closes both or none."""
        self._taps.close()
