"""ttrpc, sans I/O: frames and the table of streams, for both roles.

The wire, from ttrpc's PROTOCOL.md: a frame is a header of ten bytes (data length, stream id: u32
big-endian; type, flags: one byte each) and at most 4 MiB of data. A client opens streams with odd
ids that only grow; a server ends each with one response, in any order. There is no cancel and no
ping: who gives up waiting says nothing, and the answer comes all the same.

`Client` and `Server` take bytes (`receive_data`, `receive_eof`) and return events; what they have
to say is fetched with `data_to_send`. They never raise for what a peer sent: the last event is
then `Broken`, with the error, and the caller's duty is to close that connection. They raise
`LocalProtocolError` where the caller broke a rule.

Unary calls only, for nothing that we speak with streams: data frames of a stream that a peer left
open are read and dropped, so that it can be answered with an error and the connection lives on.
What a request or response holds is the caller's matter (ttrpc.Request and ttrpc.Response).
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEADER: Final = struct.Struct(">IIBB")
HEADER_LENGTH: Final = _HEADER.size
# PROTOCOL.md: "The maximum data length is 4MB and any larger size should be rejected."
MAX_DATA_LENGTH: Final = 4 << 20
MAX_STREAM_ID: Final = 0xFFFF_FFFF


class FrameType(enum.IntEnum):
    REQUEST = 1
    RESPONSE = 2
    DATA = 3


class Flag(enum.IntFlag):
    REMOTE_CLOSED = 1
    REMOTE_OPEN = 2
    NO_DATA = 4


class ProtocolError(Exception):
    """A rule of the protocol was broken."""


class LocalProtocolError(ProtocolError):
    """By us: a message too large, an answer to a stream that isn't open. Nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """By the peer: the connection can't be used any more."""


class FrameTooLarge(RemoteProtocolError):
    """A header announces more than `MAX_DATA_LENGTH`."""


class UnknownFrameType(RemoteProtocolError):
    """A type byte that isn't in `FrameType`."""


class BadStreamId(RemoteProtocolError):
    """Even, zero, used before or smaller than one used before."""


class UnexpectedFrame(RemoteProtocolError):
    """A frame that the state of its stream doesn't allow."""


class TruncatedFrame(RemoteProtocolError):
    """The connection ended inside a frame."""


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """To a server: a stream was opened; it waits for `Server.respond`.

    `streaming` says that the peer wants more than one message each way.
    """

    stream_id: int
    data: bytes
    streaming: bool = False


@dataclass(frozen=True, slots=True)
class ResponseReceived:
    """To a client: the stream has its answer and is over."""

    stream_id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Broken:
    """Always the last event: close the connection."""

    error: RemoteProtocolError


Event = RequestReceived | ResponseReceived | Broken


class _Receipt(enum.Enum):
    """What a received frame means to its stream."""

    REQUEST = enum.auto()
    REQUEST_OPEN = enum.auto()  # more data follows
    DATA = enum.auto()
    DATA_LAST = enum.auto()
    RESPONSE = enum.auto()


class StreamState(enum.Enum):
    """CLOSED stands for every stream that isn't in the table: not opened yet, or over."""

    CLOSED = enum.auto()
    WAITING = enum.auto()  # client: for the response
    ABANDONED = enum.auto()  # client: for a response that nobody wants any more
    SERVING = enum.auto()  # server: the peer has said all
    SERVING_OPEN = enum.auto()  # server: the peer may send more data
    DRAINING = enum.auto()  # server: answered, and the peer may still send data


# All that a peer may do; a missing entry is the error.
CLIENT_RECEIVES: Final[Mapping[tuple[StreamState, _Receipt], StreamState]] = {
    (StreamState.WAITING, _Receipt.RESPONSE): StreamState.CLOSED,
    (StreamState.ABANDONED, _Receipt.RESPONSE): StreamState.CLOSED,
}
SERVER_RECEIVES: Final[Mapping[tuple[StreamState, _Receipt], StreamState]] = {
    (StreamState.CLOSED, _Receipt.REQUEST): StreamState.SERVING,
    (StreamState.CLOSED, _Receipt.REQUEST_OPEN): StreamState.SERVING_OPEN,
    (StreamState.SERVING_OPEN, _Receipt.DATA): StreamState.SERVING_OPEN,
    (StreamState.SERVING_OPEN, _Receipt.DATA_LAST): StreamState.SERVING,
    (StreamState.DRAINING, _Receipt.DATA): StreamState.DRAINING,
    (StreamState.DRAINING, _Receipt.DATA_LAST): StreamState.CLOSED,
}
SERVER_RESPONDS: Final[Mapping[StreamState, StreamState]] = {
    StreamState.SERVING: StreamState.CLOSED,
    StreamState.SERVING_OPEN: StreamState.DRAINING,
}


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame; its length is that of `data`."""

    stream_id: int
    type: int
    flags: int = 0
    data: bytes = b""

    def serialize(self) -> bytes:
        """The frame's bytes.

        Raises:
            LocalProtocolError: `data` is longer than `MAX_DATA_LENGTH`.
        """
        if len(self.data) > MAX_DATA_LENGTH:
            raise LocalProtocolError(
                f"a message of {len(self.data)} bytes, ttrpc allows {MAX_DATA_LENGTH}"
            )
        header = _HEADER.pack(len(self.data), self.stream_id, self.type, self.flags)
        return header + self.data

    def __str__(self) -> str:
        kind = FrameType(self.type).name if self.type in _TYPES else f"type {self.type}"
        return f"{kind} stream={self.stream_id} flags={self.flags} {len(self.data)} bytes"


_TYPES: Final = frozenset(FrameType)


class FrameReader:
    """Cuts a stream of bytes into frames; holds at most one frame and what follows it."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    @property
    def pending(self) -> int:
        """How many bytes of an unfinished frame there are."""
        return len(self._buffer)

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None while it isn't all there.

        Raises:
            FrameTooLarge, UnknownFrameType: as soon as the header is there.
        """
        if len(self._buffer) < HEADER_LENGTH:
            return None
        length, stream_id, kind, flags = _HEADER.unpack_from(self._buffer)
        if length > MAX_DATA_LENGTH:
            raise FrameTooLarge(
                f"a frame of {length} bytes on stream {stream_id}, ttrpc allows {MAX_DATA_LENGTH}"
            )
        if kind not in _TYPES:
            raise UnknownFrameType(f"a frame of type {kind} on stream {stream_id}")
        end = HEADER_LENGTH + length
        if len(self._buffer) < end:
            return None
        data = bytes(memoryview(self._buffer)[HEADER_LENGTH:end])
        del self._buffer[:end]
        return Frame(stream_id, kind, flags, data)


class _Connection:
    """What both roles share: reading frames, the streams' states, the bytes to send."""

    _receives: Mapping[tuple[StreamState, _Receipt], StreamState]

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._streams: dict[int, StreamState] = {}
        self._outgoing: list[bytes] = []
        self._last_stream_id = 0
        self._error: RemoteProtocolError | None = None

    @property
    def error(self) -> RemoteProtocolError | None:
        """Why the connection can't be used any more."""
        return self._error

    def state(self, stream_id: int) -> StreamState:
        return self._streams.get(stream_id, StreamState.CLOSED)

    @property
    def open_streams(self) -> int:
        return len(self._streams)

    def data_to_send(self) -> bytes:
        """What to write now, each byte once. Call it after every other call."""
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        return data

    def receive_data(self, data: bytes) -> list[Event]:
        """Takes bytes of the peer; the events don't depend on how the bytes were cut."""
        if self._error is not None:
            return []
        self._reader.feed(data)
        events: list[Event] = []
        try:
            while (frame := self._reader.next_frame()) is not None:
                event = self._receive_frame(frame)
                if event is not None:
                    events.append(event)
        except RemoteProtocolError as error:
            events.append(self._break(error))
        return events

    def receive_eof(self) -> list[Event]:
        """The peer will send no more; it may do so between any two frames."""
        if self._error is None and self._reader.pending:
            pending = self._reader.pending
            return [
                self._break(TruncatedFrame(f"the connection ended {pending} bytes into a frame"))
            ]
        return []

    def _break(self, error: RemoteProtocolError) -> Broken:
        self._error = error
        self._reader = FrameReader()
        return Broken(error)

    def _receive_frame(self, frame: Frame) -> Event | None:
        receipt = _receipt(frame)
        self._check_stream_id(frame, receipt)
        before = self.state(frame.stream_id)
        after = self._receives.get((before, receipt))
        if after is None:
            raise UnexpectedFrame(f"{frame} while its stream is {before.name.lower()}")
        self._set_state(frame.stream_id, after)
        return self._event(frame, receipt, before)

    def _check_stream_id(self, frame: Frame, receipt: _Receipt) -> None:
        """Raises BadStreamId for an id that the peer may not use."""

    def _event(self, frame: Frame, receipt: _Receipt, before: StreamState) -> Event | None:
        raise NotImplementedError

    def _set_state(self, stream_id: int, state: StreamState) -> None:
        if state is StreamState.CLOSED:
            self._streams.pop(stream_id, None)
        else:
            self._streams[stream_id] = state

    def _send(self, frame: Frame) -> None:
        if self._error is not None:
            raise LocalProtocolError(f"the connection is broken: {self._error}")
        self._outgoing.append(frame.serialize())


class Client(_Connection):
    """The side that calls."""

    _receives = CLIENT_RECEIVES

    def request(self, data: bytes) -> int:
        """Opens a stream with a unary request; returns its id.

        Raises:
            LocalProtocolError: the request is too large, the connection is broken, or all ids
                are used up: only a new connection helps then.
        """
        stream_id = self._last_stream_id + 2 if self._last_stream_id else 1
        if stream_id > MAX_STREAM_ID:
            raise LocalProtocolError("all stream ids of this connection are used up")
        self._send(Frame(stream_id, FrameType.REQUEST, 0, data))
        self._last_stream_id = stream_id
        self._set_state(stream_id, StreamState.WAITING)
        return stream_id

    def abandon(self, stream_id: int) -> None:
        """Nobody waits for this response any more: it'll be dropped when it comes."""
        if self.state(stream_id) is StreamState.WAITING:
            self._set_state(stream_id, StreamState.ABANDONED)

    def _event(self, frame: Frame, receipt: _Receipt, before: StreamState) -> Event | None:
        if before is StreamState.ABANDONED:
            return None
        return ResponseReceived(frame.stream_id, frame.data)


class Server(_Connection):
    """The side that answers."""

    _receives = SERVER_RECEIVES

    def respond(self, stream_id: int, data: bytes) -> None:
        """Ends a stream with its response.

        Raises:
            LocalProtocolError: the response is too large (the stream then still waits for a
                smaller one), or the stream isn't open, or the connection is broken.
        """
        after = SERVER_RESPONDS.get(self.state(stream_id))
        if after is None:
            raise LocalProtocolError(f"stream {stream_id} is {self.state(stream_id).name.lower()}")
        self._send(Frame(stream_id, FrameType.RESPONSE, 0, data))
        self._set_state(stream_id, after)

    def _check_stream_id(self, frame: Frame, receipt: _Receipt) -> None:
        if receipt not in {_Receipt.REQUEST, _Receipt.REQUEST_OPEN}:
            return
        if frame.stream_id % 2 == 0:
            raise BadStreamId(f"stream {frame.stream_id}: a client's ids are odd")
        if frame.stream_id <= self._last_stream_id:
            raise BadStreamId(f"stream {frame.stream_id} after {self._last_stream_id}")
        self._last_stream_id = frame.stream_id

    def _event(self, frame: Frame, receipt: _Receipt, before: StreamState) -> Event | None:
        if before is not StreamState.CLOSED:
            return None  # data that nobody asked for
        streaming = bool(frame.flags & (Flag.REMOTE_OPEN | Flag.REMOTE_CLOSED))
        return RequestReceived(frame.stream_id, frame.data, streaming)


def _receipt(frame: Frame) -> _Receipt:
    if frame.type == FrameType.RESPONSE:
        return _Receipt.RESPONSE
    if frame.type == FrameType.REQUEST:
        return _Receipt.REQUEST_OPEN if frame.flags & Flag.REMOTE_OPEN else _Receipt.REQUEST
    return _Receipt.DATA_LAST if frame.flags & Flag.REMOTE_CLOSED else _Receipt.DATA
