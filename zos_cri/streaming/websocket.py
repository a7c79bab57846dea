"""WebSocket connections: messages by the `websockets` library's sans-IO core.

Above it are either channels (exec, attach, port-forward) or one stream of bytes (SPDY tunnelled).
The library is imported here and this module on the first WebSocket request: it takes 4 MiB.
"""

from __future__ import annotations

import asyncio
import logging
import typing
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from websockets.datastructures import Headers
from websockets.exceptions import InvalidState
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN, Protocol, Side
from websockets.server import ServerProtocol

from zos_cri.log import get_log
from zos_cri.streaming.link import ConnectionLost
from zos_cri.streaming.stream import CHUNK, Gauge, Inbox
from zos_cri.wire.remotecommand import (
    ChannelClosed,
    ChannelData,
    ChannelDecoder,
    RemoteCommandError,
    WebSocketProtocol,
    encode_channel,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from websockets.http11 import Response

    from zos_cri.streaming.http import Request as HttpRequest
    from zos_cri.streaming.link import Link, Receiver

_log = get_log(__name__)
# The library writes a line for every connection; only what goes wrong in it is wanted.
_library_log = logging.getLogger(__name__ + ".library")
_library_log.setLevel(logging.WARNING)

# Go's server takes messages up to 32 MiB, and clients in Python and JavaScript send what their
# caller gave them as one frame.
MAX_FRAME: Final = 32 * 1024 * 1024


class WebSocket:
    """A WebSocket on a link: frames in, frames out. It is its link's receiver."""

    def __init__(self, link: Link) -> None:
        self._link = link
        # The handshake is done by another object than the frames: one core for both would want to
        # parse the request's bytes itself. Messages may be of any length: their fragments are
        # handed on one by one.
        self._core = Protocol(Side.SERVER, max_size=(None, MAX_FRAME), logger=_library_log)
        self._user: FrameReceiver | None = None

    def handshake(self, request: HttpRequest, subprotocol: str | None) -> Response:
        """The answer to a request; an upgrade if its status is 101. `accept` sends it."""
        # The library isn't shown the subprotocols: it takes only names that are HTTP tokens, and
        # SPDY/3.1+portforward.k8s.io isn't one.
        headers = [(k, v) for k, v in request.headers if k != "sec-websocket-protocol"]
        core = ServerProtocol(logger=_library_log)
        response = core.accept(Request(request.target, Headers(headers), request.method))
        if subprotocol is not None and response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            response.headers["Sec-WebSocket-Protocol"] = subprotocol
        return response

    def accept(self, response: Response) -> None:
        """Sends an upgrading answer. `attach` is to follow before any bytes come."""
        self._link.write(response.serialize())

    def attach(self, user: FrameReceiver) -> None:
        """From now on frames go to `user`."""
        self._user = user

    async def drain(self) -> None:
        """See `ByteLink.drain`."""
        await self._link.drain()
        if self._core.state is not OPEN:
            raise ConnectionLost("the client has closed the WebSocket")

    def send(self, data: bytes, *, text: bool = False) -> None:
        """Queues one message; nothing where the connection is closing."""
        if self._core.state is OPEN:
            (self._core.send_text if text else self._core.send_binary)(data)
            self._flush()

    def pause_reading(self) -> None:
        """See `ByteLink`."""
        self._link.pause_reading()

    def resume_reading(self) -> None:
        """See `ByteLink`."""
        self._link.resume_reading()

    def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Begins the closing handshake; the caller lingers on the link."""
        if self._core.state is OPEN:
            self._core.send_close(code, reason)
            self._flush()

    def abort(self) -> None:
        """Ends the connection at once."""
        self._link.abort()

    # For the link.

    def data_received(self, data: bytes) -> None:
        self._core.receive_data(data)
        for event in self._core.events_received():
            if isinstance(event, Frame):
                self._frame(event)
        self._flush()

    def connection_lost(self) -> None:
        if self._user is not None:
            self._user.connection_lost()

    def probe(self) -> None:
        try:
            self._core.send_ping(b"")
        except InvalidState:
            return  # closing
        self._flush()

    def _frame(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT) and self._user is not None:
            try:
                self._user.fragment_received(bytes(frame.data), last=frame.fin)
            except RemoteCommandError as error:
                _log.warning("WebSocket session failed", error=error)
                self.close(CloseCode.UNSUPPORTED_DATA, str(error))

    def _flush(self) -> None:
        for data in self._core.data_to_send():
            if data:
                self._link.write(data)
            else:  # the library's way to say that the closing handshake is over
                self._link.close()


class FrameReceiver(typing.Protocol):
    """What a WebSocket hands its messages to."""

    def fragment_received(self, data: bytes, *, last: bool) -> None:
        """A part of a message; the whole or its end where `last`.

        Raises:
            RemoteCommandError: it is none of the subprotocol's; the connection is closed.
        """
        ...

    def connection_lost(self) -> None:
        """There will be no more."""
        ...


class Channel:
    """One channel of a WebSocket. See `zos_cri.streaming.stream.Stream`.

    A channel can't be ended or reset on its own by the server: there is no message for it. Its
    end is the connection's.
    """

    def __init__(self, session: ChannelSession, number: int) -> None:
        self._session = session
        self._number = number
        self._ended = False
        self.inbox = Inbox(session.gauge, lambda _count: None)

    async def read(self, limit: int = CHUNK) -> bytes:
        return await self.inbox.read(limit)

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), CHUNK):
            await self._session.socket.drain()
            self.send(data[start : start + CHUNK])

    def send(self, data: bytes) -> None:
        """Queues one message without waiting; it may be empty."""
        if not self._ended:
            protocol = self._session.protocol
            message = encode_channel(protocol, self._number, data)
            self._session.socket.send(message, text=protocol.base64)

    def write_eof(self) -> None:
        self._ended = True

    def reset(self) -> None:
        self._ended = True
        self.discard()

    def discard(self) -> None:
        self.inbox.discard()

    async def wait_reset(self) -> None:
        await asyncio.get_running_loop().create_future()  # never: see above


class ChannelSession:
    """Channels over a WebSocket."""

    def __init__(
        self, socket: WebSocket, protocol: WebSocketProtocol, *, readable: Iterable[int]
    ) -> None:
        """`readable`: the channels a client may send on; what comes on others is dropped."""
        self.socket = socket
        self.protocol = protocol
        self.gauge = Gauge(pause=socket.pause_reading, resume=socket.resume_reading)
        self._decoder = ChannelDecoder(protocol)
        self._channels: dict[int, Channel] = {}
        socket.attach(self)
        for number in readable:
            self.channel(number)

    def channel(self, number: int) -> Channel:
        """A channel by its number."""
        if number not in self._channels:
            self._channels[number] = Channel(self, number)
        return self._channels[number]

    def fragment_received(self, data: bytes, *, last: bool) -> None:
        for event in self._decoder.feed(data, last=last):
            match event:
                case ChannelData(number, payload) if number in self._channels:
                    self._channels[number].inbox.feed(payload)
                case ChannelClosed(number) if number in self._channels:
                    self._channels[number].inbox.feed_eof()
                case _:
                    pass

    def connection_lost(self) -> None:
        for channel in self._channels.values():
            channel.inbox.fail(ConnectionLost("the client is gone"))


class Tunnel:
    """A stream of bytes in binary messages: a `ByteLink` for a SPDY session."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self.receiver: Receiver | None = None  # set before the first byte can come
        socket.attach(self)

    def write(self, data: bytes) -> None:
        self._socket.send(data)

    async def drain(self) -> None:
        await self._socket.drain()

    def pause_reading(self) -> None:
        self._socket.pause_reading()

    def resume_reading(self) -> None:
        self._socket.resume_reading()

    def abort(self) -> None:
        self._socket.abort()

    def fragment_received(self, data: bytes, *, last: bool) -> None:
        if self.receiver is not None:
            self.receiver.data_received(data)

    def connection_lost(self) -> None:
        if self.receiver is not None:
            self.receiver.connection_lost()
