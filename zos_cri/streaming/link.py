"""The socket under a streaming session: bounded writes, reads that can be paused, idle time.

A `Link` is an asyncio protocol whose receiver changes once: first the HTTP request's parser, then
the session that the request was upgraded to. What a session needs of it is `ByteLink`, so that a
SPDY session runs as well inside a WebSocket.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from zos_cri.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

# Writers wait while more than this is queued for a slow client; with what the kernel's socket
# buffers hold, that is all a connection that stalls can cost.
WRITE_HIGH: Final = 256 * 1024
_WRITE_LOW: Final = 64 * 1024
# Answers to the peer's own frames (pings, resets) are queued without waiting. A peer that sends
# them and doesn't read isn't read from either, once so much is queued.
_ANSWERS_HIGH: Final = 4 * WRITE_HIGH

# While reading is paused the end of the connection can't be seen. A ping written into a connection
# that the client has closed brings a reset, and the next write an error.
PROBE_INTERVAL: Final = 10.0


class ConnectionLost(Unavailable):
    """The client is gone."""


class ByteLink(Protocol):
    """A connection that carries bytes."""

    def write(self, data: bytes) -> None:
        """Queues bytes; nothing where the connection is gone."""
        ...

    async def drain(self) -> None:
        """Waits until more may be queued.

        Raises:
            ConnectionLost: it never will.
        """
        ...

    def pause_reading(self) -> None:
        """No more `data_received` until `resume_reading`."""
        ...

    def resume_reading(self) -> None:
        """Undoes `pause_reading`; nothing where it isn't paused."""
        ...

    def abort(self) -> None:
        """Ends the connection at once; what is queued is lost."""
        ...


class Receiver(Protocol):
    """What bytes are handed to."""

    def data_received(self, data: bytes) -> None:
        """Bytes in the order they were sent."""
        ...

    def connection_lost(self) -> None:
        """There will be nothing more, and nothing more can be sent. Called once."""
        ...

    def probe(self) -> None:
        """Sends something that the peer has to answer."""
        ...


class Link(asyncio.Protocol):
    """A client's connection. Make it with a receiver-making function; `attach` changes it."""

    def __init__(
        self,
        accept: Callable[[Link], Receiver],
        *,
        on_lost: Callable[[Link], None] = lambda _link: None,
    ) -> None:
        self._accept = accept
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._loop = asyncio.get_running_loop()
        self._waiters: set[asyncio.Future[None]] = set()
        self._write_paused = False
        self._paused_by_session = False
        self._paused_by_answers = False
        self._last_activity = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._probe: asyncio.TimerHandle | None = None
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self.timed_out = False

    # For the session.

    def attach(self, receiver: Receiver) -> None:
        """From now on bytes go to `receiver`."""
        self._receiver = receiver

    def write(self, data: bytes) -> None:
        """Queues bytes; nothing where the connection is gone."""
        if self._transport is None or self._transport.is_closing():
            return
        self._last_activity = self._loop.time()
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > _ANSWERS_HIGH:
            self._paused_by_answers = True
            self._set_reading()

    async def drain(self) -> None:
        """Waits until more may be queued. Call it right before `write`: of many streams that wait
        for one slow client, each must see whether those before it have filled the queue again.

        Raises:
            ConnectionLost: it never will.
        """
        while True:
            if self.lost.done() or self._transport is None or self._transport.is_closing():
                raise ConnectionLost("the client is gone")
            if not self._write_paused:
                return
            waiter = self._loop.create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)

    def pause_reading(self) -> None:
        """No more `data_received` until `resume_reading`."""
        self._paused_by_session = True
        self._set_reading()

    def resume_reading(self) -> None:
        """Undoes `pause_reading`."""
        self._paused_by_session = False
        self._set_reading()

    def close(self) -> None:
        """Ends the connection when what is queued has been sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Ends the connection at once; what is queued is lost."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def reading(self) -> bool:
        """Whether bytes are taken from the client now."""
        return self._transport is not None and self._transport.is_reading()

    @property
    def queued(self) -> int:
        """Bytes that the kernel hasn't taken yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    async def linger(self, seconds: float) -> None:
        """Lets the client read what was sent and close, then closes.

        Closing with unread input in our socket would make the kernel send a reset, and a client
        that gets one may lose the end of its output. So the client closes first; it has `seconds`
        from the last byte that it took.
        """
        progress, queued = self._loop.time(), self.queued
        while not self.lost.done():
            if self.queued != queued:
                progress, queued = self._loop.time(), self.queued
            left = progress + seconds - self._loop.time()
            if left <= 0:
                break
            await asyncio.wait([self.lost], timeout=min(left, 1.0 if queued else left))
        if queued:
            self.abort()
        self.close()

    def limit(self, seconds: float, *, idle: bool) -> None:
        """Aborts after so long: from now on, or since the last byte either way where `idle`."""
        if self._timer is not None:
            self._timer.cancel()
        if not self.lost.done():
            self._last_activity = self._loop.time()
            self._timer = self._loop.call_later(seconds, self._expire, seconds, idle)

    # For asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports don't inherit from asyncio's.
        self._transport = writable = cast("asyncio.Transport", transport)
        writable.set_write_buffer_limits(high=WRITE_HIGH, low=_WRITE_LOW)
        _keep_alive(transport.get_extra_info("socket"))
        self._receiver = self._accept(self)

    def data_received(self, data: bytes) -> None:
        self._last_activity = self._loop.time()
        if self._receiver is not None:
            self._receiver.data_received(data)

    def eof_received(self) -> bool:
        # None of the protocols here can go on when the client sends no more: it is gone.
        return False

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._last_activity = self._loop.time()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self._paused_by_answers:
            self._paused_by_answers = False
            self._set_reading()

    def connection_lost(self, _error: Exception | None) -> None:
        for timer in (self._timer, self._probe):
            if timer is not None:
                timer.cancel()
        self.lost.set_result(None)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(ConnectionLost("the client is gone"))
        if self._receiver is not None:
            self._receiver.connection_lost()
        self._on_lost(self)

    # Inside.

    def _set_reading(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        pause = self._paused_by_session or self._paused_by_answers
        if pause and transport.is_reading():
            transport.pause_reading()
            self._probe = self._loop.call_later(PROBE_INTERVAL, self._send_probe)
        elif not pause and not transport.is_reading():
            transport.resume_reading()
            if self._probe is not None:
                self._probe.cancel()
                self._probe = None

    def _send_probe(self) -> None:
        if not self.queued and self._receiver is not None:  # else a write is under way already
            activity = self._last_activity
            self._receiver.probe()
            self._last_activity = activity
        self._probe = self._loop.call_later(PROBE_INTERVAL, self._send_probe)

    def _expire(self, seconds: float, idle: bool) -> None:
        since = self._loop.time() - self._last_activity
        if idle and since < seconds:
            self._timer = self._loop.call_later(seconds - since, self._expire, seconds, idle)
        else:
            self.timed_out = True
            self.abort()


def _keep_alive(sock: Any) -> None:
    # A host that vanished without a word: found out after 30 s + 4 * 15 s.
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
