"""One direction-pair of a session: what exec, attach and port-forward read and write."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from zos_cri.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

# One read or write: what a pipe holds by default.
CHUNK: Final = 64 * 1024
# What a session keeps for streams whose readers are slow before it stops reading from the client.
# Go clients know no windows, so one stuck stream then holds up the others of its connection: room
# for a megabyte makes that rare, and a connection no dearer than that.
MAX_BUFFERED: Final = 1024 * 1024


class StreamReset(Unavailable):
    """The peer gave up this stream; others go on."""


class Stream(Protocol):
    """A bidirectional stream of a session."""

    async def read(self, limit: int = CHUNK) -> bytes:
        """1 to `limit` bytes as soon as there are any; b"" when the peer sends no more.

        Raises:
            StreamReset: the peer reset it.
            ConnectionLost: the peer is gone.
        """
        ...

    async def write(self, data: bytes) -> None:
        """Waits while the peer is slow; returns when all of `data` is queued.

        Raises:
            StreamReset: the peer reset it.
            ConnectionLost: the peer is gone.
        """
        ...

    def write_eof(self) -> None:
        """Ends our direction. Nothing where the stream is over."""
        ...

    def reset(self) -> None:
        """Ends both directions at once. Nothing where the stream is over."""
        ...

    def discard(self) -> None:
        """Drops what the peer sent and will send: nobody reads it any more."""
        ...

    async def wait_reset(self) -> None:
        """Returns when the peer has reset it, even while nobody reads or writes."""
        ...


class Gauge:
    """How much a session holds for its readers; pauses and resumes the source of it."""

    def __init__(
        self,
        *,
        pause: Callable[[], None],
        resume: Callable[[], None],
        limit: int = MAX_BUFFERED,
    ) -> None:
        self._pause = pause
        self._resume = resume
        self._limit = limit
        self._paused = False
        self.held = 0

    def add(self, count: int) -> None:
        """`count` bytes more are held (fewer where it is negative)."""
        self.held += count
        if not self._paused and self.held > self._limit:
            self._paused = True
            self._pause()
        elif self._paused and self.held <= self._limit // 2:
            self._paused = False
            self._resume()


class Inbox:
    """Received bytes that wait for their one reader."""

    def __init__(self, gauge: Gauge, on_consumed: Callable[[int], None]) -> None:
        """`on_consumed` is told how many bytes have left, read or discarded."""
        self._gauge = gauge
        self._on_consumed = on_consumed
        self._chunks: deque[bytes] = deque()
        self._ended = False
        self._error: Exception | None = None
        self._discarding = False
        self._waiter: asyncio.Future[None] | None = None

    def feed(self, data: bytes) -> None:
        """More has come."""
        if self._discarding or self._error is not None:
            self._on_consumed(len(data))
            return
        self._chunks.append(data)
        self._gauge.add(len(data))
        self._wake()

    def feed_eof(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """Reading raises this from now on; what wasn't read is dropped."""
        if self._error is None:
            self._error = error
            self._drop()
            self._wake()

    def discard(self) -> None:
        """Drops what is there and what comes."""
        self._discarding = True
        self._drop()

    async def read(self, limit: int) -> bytes:
        """1 to `limit` bytes; b"" at the end. Raises what `fail` was given."""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        chunk = self._chunks.popleft()
        if len(chunk) > limit:
            self._chunks.appendleft(chunk[limit:])
            chunk = chunk[:limit]
        self._gauge.add(-len(chunk))
        self._on_consumed(len(chunk))
        return chunk

    def _drop(self) -> None:
        dropped = sum(map(len, self._chunks))
        self._chunks.clear()
        if dropped:
            self._gauge.add(-dropped)
            self._on_consumed(dropped)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
