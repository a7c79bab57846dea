"""SPDY/3.1 sessions over a connection: `zos_cri.wire.spdy` with sockets and waiting added."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from zos_cri.log import get_log
from zos_cri.streaming.link import ConnectionLost
from zos_cri.streaming.stream import CHUNK, Gauge, Inbox, StreamReset
from zos_cri.wire.spdy import Role, Session
from zos_cri.wire.spdyevents import (
    ConnectionFailed,
    DataReceived,
    Event,
    StreamEnded,
    StreamOpened,
    StreamReplied,
    WindowOpened,
)
from zos_cri.wire.spdyevents import StreamReset as WireReset
from zos_cri.wire.spdyframes import ResetStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from zos_cri.streaming.link import ByteLink

_log = get_log(__name__)


class Refused(Exception):
    """Raised by an `on_stream` that doesn't want a stream: it is reset, the session goes on."""


class SpdyStream:
    """A stream of a SPDY session. See `zos_cri.streaming.stream.Stream`."""

    def __init__(self, session: SpdySession, stream_id: int, headers: Mapping[str, str]) -> None:
        self.id = stream_id
        self.headers = headers
        self.replied = asyncio.Event()  # set when the peer accepted a stream of ours
        self._session = session
        self._window: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._eof_written = False
        self._gone = asyncio.Event()
        self.inbox = Inbox(session.gauge, self._consumed)

    async def read(self, limit: int = CHUNK) -> bytes:
        return await self.inbox.read(limit)

    async def write(self, data: bytes) -> None:
        core = self._session.core
        start = 0
        while start < len(data):
            await self._session.link.drain()
            if self._error is not None:
                raise self._error
            room = min(core.sendable(self.id), CHUNK)
            if not room:
                await self._wait_for_window()
                continue
            core.send_data(self.id, data[start : start + room])
            self._session.flush()
            start += room

    def write_eof(self) -> None:
        if not self._eof_written and self._session.core.is_open(self.id):
            self._session.core.end_stream(self.id)
            self._session.flush()
        self._eof_written = True
        self._session.forget_if_over(self.id)

    def reset(self) -> None:
        self._session.core.reset(self.id, ResetStatus.CANCEL)
        self._session.flush()
        self.fail(StreamReset("the stream was reset"))
        self._session.forget_if_over(self.id)

    def discard(self) -> None:
        self.inbox.discard()

    async def wait_reset(self) -> None:
        await self._gone.wait()

    # For the session.

    def fail(self, error: Exception) -> None:
        self._error = error
        self._gone.set()
        self.inbox.fail(error)
        self.window_opened()

    def window_opened(self) -> None:
        if self._window is not None and not self._window.done():
            self._window.set_result(None)

    async def _wait_for_window(self) -> None:
        if not self._session.core.is_open(self.id) or self._eof_written:
            raise StreamReset("the stream has ended")
        self._window = asyncio.get_running_loop().create_future()
        try:
            await self._window
        finally:
            self._window = None

    def _consumed(self, count: int) -> None:
        self._session.core.consumed(self.id, count)
        self._session.flush()


class SpdySession:
    """A session on one connection. It is its link's receiver."""

    def __init__(
        self,
        link: ByteLink,
        *,
        on_stream: Callable[[SpdyStream], None],
        role: Role = Role.SERVER,
    ) -> None:
        """`on_stream` is called with each stream that the peer opens, before it is accepted: it may
        raise `Refused`, and must not write yet."""
        self.link = link
        self.core = Session(role)
        self.gauge = Gauge(pause=link.pause_reading, resume=link.resume_reading)
        self._on_stream = on_stream
        self._streams: dict[int, SpdyStream] = {}

    def flush(self) -> None:
        """Sends what the core has to send."""
        output = self.core.data_to_send()
        if output:
            self.link.write(output[0] if len(output) == 1 else b"".join(output))

    def goaway(self) -> None:
        """Tells the peer that no new streams are taken."""
        self.core.goaway()
        self.flush()

    def open_stream(self, headers: Mapping[str, str]) -> SpdyStream:
        """Opens a stream of ours."""
        stream = SpdyStream(self, self.core.open_stream(headers), headers)
        self._streams[stream.id] = stream
        self.flush()
        return stream

    def forget_if_over(self, stream_id: int) -> None:
        """Streams that are over in both directions aren't kept."""
        if not self.core.is_open(stream_id):
            self._streams.pop(stream_id, None)

    # For the link.

    def data_received(self, data: bytes) -> None:
        for event in self.core.receive_data(data):
            self._event(event)
        self.flush()

    def connection_lost(self) -> None:
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(ConnectionLost("the client is gone"))

    def probe(self) -> None:
        self.core.ping()
        self.flush()

    def _event(self, event: Event) -> None:
        match event:
            case StreamOpened(stream_id, headers):
                self._opened(stream_id, headers)
            case DataReceived(stream_id, data):
                self._data(stream_id, data)
            case StreamEnded(stream_id) if stream_id in self._streams:
                self._streams[stream_id].inbox.feed_eof()
                self.forget_if_over(stream_id)
            case WireReset(stream_id, status):
                stream = self._streams.pop(stream_id, None)
                if stream is not None:
                    stream.fail(StreamReset(f"the peer reset the stream (status {status})"))
            case WindowOpened(stream_id):
                self._window_opened(stream_id)
            case StreamReplied(stream_id, _) if stream_id in self._streams:
                self._streams[stream_id].replied.set()
            case ConnectionFailed(error):
                _log.warning("SPDY session failed", error=error)
                self.flush()
                self.link.abort()
            case _:  # more headers, pings and the peer's GOAWAY change nothing here
                pass

    def _data(self, stream_id: int, data: bytes) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:  # we have ended it; its share of the session's window is given back
            self.core.consumed(stream_id, len(data))
        else:
            stream.inbox.feed(data)

    def _window_opened(self, stream_id: int) -> None:
        for stream in list(self._streams.values()):
            if stream_id in (0, stream.id):
                stream.window_opened()

    def _opened(self, stream_id: int, headers: Mapping[str, str]) -> None:
        stream = SpdyStream(self, stream_id, headers)
        self._streams[stream_id] = stream
        try:
            self._on_stream(stream)
        except Refused as error:
            _log.debug("stream refused", stream=stream_id, error=error)
            del self._streams[stream_id]
            self.core.reset(stream_id, ResetStatus.REFUSED_STREAM)
            return
        # A reply goes out before any data: Go drops data on a stream that isn't replied to.
        if self.core.is_open(stream_id):
            self.core.reply(stream_id)
