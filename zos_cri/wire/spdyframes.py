"""SPDY/3.1 frames: bytes to frames and back, header blocks included.

Source: the SPDY protocol, draft 3.1, section 2 (framing layer), and what moby/spdystream, which
all Kubernetes clients and servers use, really sends.

    control frame                               data frame
    +-+-------------+---------------+           +-+-----------------------------+
    |1| version 3   | type          |           |0| stream id                   |
    +-+------+------+---------------+           +-+------+----------------------+
    | flags  | length (24)          |           | flags  | length (24)          |
    +--------+----------------------+           +--------+----------------------+

A data frame's payload is handed on as it arrives and never gathered: a peer may put 16 MiB into
one frame (Go does, when its caller writes so much at once) and it costs us one chunk of memory.
Control frames are gathered, so they have a bound.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

VERSION: Final = 3
MAX_DATA_LENGTH: Final = (1 << 24) - 1  # the length field has 24 bits

# A stream's headers here are a type, a port and a request id: under 200 bytes. 64 KiB leaves room
# for any proxy's additions and bounds what a peer can make us hold before its frame is whole.
MAX_CONTROL_LENGTH: Final = 64 * 1024
# zlib can blow 64 KiB up to 64 MiB; this is what a block may hold after inflating.
MAX_HEADER_BLOCK: Final = 64 * 1024
MAX_HEADERS: Final = 100

_FLAG_FIN: Final = 0x01
_FLAG_UNIDIRECTIONAL: Final = 0x02
_FLAG_CLEAR_SETTINGS: Final = 0x01
_U32: Final = struct.Struct(">I")
_TWO_U32: Final = struct.Struct(">II")
_CONTROL: Final = struct.Struct(">HHI")
_SYN_STREAM: Final = struct.Struct(">IIBB")
_ID_MASK: Final = 0x7FFFFFFF


class FrameType(IntEnum):
    """The control frames of section 2.6."""

    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


class ResetStatus(IntEnum):
    """Why a stream was reset (2.6.3). A peer may send others; they stay plain integers."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    UNSUPPORTED_VERSION = 4
    CANCEL = 5
    INTERNAL_ERROR = 6
    FLOW_CONTROL_ERROR = 7
    STREAM_IN_USE = 8
    STREAM_ALREADY_CLOSED = 9
    FRAME_TOO_LARGE = 11


class GoawayStatus(IntEnum):
    """Why a session ends (2.6.6)."""

    OK = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


class SettingId(IntEnum):
    """The settings that matter here (2.6.4)."""

    MAX_CONCURRENT_STREAMS = 4
    INITIAL_WINDOW_SIZE = 7


class SpdyError(Exception):
    """The root of this protocol's errors."""


class ProtocolError(SpdyError):
    """The peer broke the protocol: the session can't go on."""


class LocalProtocolError(SpdyError):
    """Our own side asked for what the protocol forbids: a bug of ours, nothing was sent."""


@dataclass(frozen=True, slots=True)
class SynStream:
    """Opens a stream."""

    stream_id: int
    headers: Mapping[str, str]
    fin: bool = False
    unidirectional: bool = False
    associated_id: int = 0
    priority: int = 0


@dataclass(frozen=True, slots=True)
class SynReply:
    """Accepts a stream."""

    stream_id: int
    headers: Mapping[str, str]
    fin: bool = False


@dataclass(frozen=True, slots=True)
class RstStream:
    """Ends one stream in both directions at once."""

    stream_id: int
    status: int


@dataclass(frozen=True, slots=True)
class Settings:
    """Values that hold for the session, as (id, value) pairs."""

    values: tuple[tuple[int, int], ...]
    clear: bool = False


@dataclass(frozen=True, slots=True)
class Ping:
    """Is sent back as it came, unless its id has our own parity: then it is the answer."""

    ping_id: int


@dataclass(frozen=True, slots=True)
class Goaway:
    """No new streams after this one."""

    last_stream_id: int
    status: int


@dataclass(frozen=True, slots=True)
class Headers:
    """More headers of an open stream."""

    stream_id: int
    headers: Mapping[str, str]
    fin: bool = False


@dataclass(frozen=True, slots=True)
class WindowUpdate:
    """So many bytes more may be sent on a stream, or on the session where the id is 0."""

    stream_id: int
    delta: int


@dataclass(frozen=True, slots=True)
class Data:
    """A piece of a data frame; `fin` stands on the last piece only."""

    stream_id: int
    payload: bytes
    fin: bool = False


Frame: TypeAlias = (
    SynStream | SynReply | RstStream | Settings | Ping | Goaway | Headers | WindowUpdate | Data
)

# The dictionary both sides prime zlib with (2.6.10.1): words with a four-byte length before
# each, then one run of text. (In the words here an underscore stands for a blank.)
_WORDS: Final = (
    "options head post put delete trace accept accept-charset accept-encoding accept-"
    "language accept-ranges age allow authorization cache-control connection content-base "
    "content-encoding content-language content-length content-location content-md5 "
    "content-range content-type date etag expect expires from host if-match if-modified-"
    "since if-none-match if-range if-unmodified-since last-modified location max-forwards "
    "pragma proxy-authenticate proxy-authorization range referer retry-after server te "
    "trailer transfer-encoding upgrade user-agent vary via warning www-authenticate "
    "method get status 200_OK version HTTP/1.1 url public set-cookie keep-alive origin"
)
_RUN: Final = (
    b"100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    b"203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request"
    b"401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented"
    b"503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, "
    b"Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,"
    b"application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age="
    b"gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
_DICTIONARY_WORDS: Final = tuple(w.replace("_", " ") for w in _WORDS.split())
HEADER_DICTIONARY: Final = (
    b"".join(_U32.pack(len(w)) + w.encode() for w in _DICTIONARY_WORDS) + _RUN
)


def parse_header_block(block: bytes) -> dict[str, str]:
    """An inflated header block as name → value; values of one name stand with NULs between.

    Raises:
        ProtocolError: it is not a header block, or has more than `MAX_HEADERS`.
    """
    headers: dict[str, str] = {}
    position = 0

    def string() -> str:
        nonlocal position
        end = position + 4
        length = number()
        if length > len(block) - end:
            raise ProtocolError("header block ends inside a string")
        position = end + length
        return block[end:position].decode("latin-1")

    def number() -> int:
        if len(block) - position < 4:
            raise ProtocolError("header block ends inside a length")
        value: int = _U32.unpack_from(block, position)[0]
        return value

    count = number()
    if count > MAX_HEADERS:
        raise ProtocolError(f"{count} headers are more than {MAX_HEADERS}")
    position = 4
    for _ in range(count):
        name, value = string(), string()
        if not name or name != name.lower():
            raise ProtocolError(f"header name {name[:80]!r} is empty or not in lower case")
        if name in headers:
            raise ProtocolError(f"header {name[:80]!r} stands twice")
        headers[name] = value
    if position != len(block):
        raise ProtocolError(f"{len(block) - position} bytes after the header block")
    return headers


class Decoder:
    """Bytes in any pieces to frames.

    After a `ProtocolError` the decoder is of no more use: where the next frame begins, and what
    state the shared zlib stream is in, is unknown.
    """

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(zdict=HEADER_DICTIONARY)
        self._gathered = bytearray()  # a frame's header, then a control frame's body
        self._wanted = 8
        self._data_left = 0
        self._data_id = 0
        self._data_fin = False

    def feed(self, data: bytes, deliver: Callable[[Frame], None]) -> None:
        """Calls `deliver` for each frame that `data` completes.

        Raises:
            ProtocolError: after all frames before the broken one were delivered.
        """
        view = memoryview(data)
        while view:
            if self._data_left:
                piece = view[: self._data_left]
                view = view[len(piece) :]
                self._data_left -= len(piece)
                last = not self._data_left
                deliver(Data(self._data_id, bytes(piece), fin=last and self._data_fin))
                continue
            missing = self._wanted - len(self._gathered)
            self._gathered += view[:missing]
            view = view[missing:]
            if len(self._gathered) == self._wanted:
                self._gathered_all(deliver)

    def _gathered_all(self, deliver: Callable[[Frame], None]) -> None:
        first, second = _TWO_U32.unpack_from(self._gathered)
        flags, length = second >> 24, second & MAX_DATA_LENGTH
        if first & ~_ID_MASK:
            if length > MAX_CONTROL_LENGTH:
                raise ProtocolError(f"control frame of {length} bytes")
            self._wanted = 8 + length
            if len(self._gathered) < self._wanted:
                return
            body = bytes(self._gathered[8:])
            frame = self._control((first >> 16) & 0x7FFF, first & 0xFFFF, flags, body)
            if frame is not None:
                deliver(frame)
        else:
            self._data_id, self._data_left = first, length
            self._data_fin = bool(flags & _FLAG_FIN)
            if not length:
                deliver(Data(first, b"", fin=self._data_fin))
        self._gathered.clear()
        self._wanted = 8

    def _control(self, version: int, kind: int, flags: int, body: bytes) -> Frame | None:
        if version != VERSION:
            raise ProtocolError(f"frame of SPDY version {version}")
        parse = _PARSERS.get(kind)
        if parse is None:
            return None  # 2.2.1: unknown control frames are ignored
        try:
            return parse(self, flags, body)
        except struct.error as error:
            raise ProtocolError(f"control frame type {kind} of {len(body)} bytes") from error

    def _headers(self, compressed: bytes) -> dict[str, str]:
        try:
            block = self._inflate.decompress(compressed, MAX_HEADER_BLOCK + 1)
        except zlib.error as error:
            raise ProtocolError(f"header block: {error}") from error
        if len(block) > MAX_HEADER_BLOCK or self._inflate.unconsumed_tail:
            raise ProtocolError(f"header block of more than {MAX_HEADER_BLOCK} bytes")
        return parse_header_block(block)

    def _syn_stream(self, flags: int, body: bytes) -> Frame:
        stream_id, associated, priority, _slot = _SYN_STREAM.unpack_from(body)
        return SynStream(
            stream_id & _ID_MASK,
            self._headers(body[_SYN_STREAM.size :]),
            fin=bool(flags & _FLAG_FIN),
            unidirectional=bool(flags & _FLAG_UNIDIRECTIONAL),
            associated_id=associated & _ID_MASK,
            priority=priority >> 5,
        )

    def _syn_reply(self, flags: int, body: bytes) -> Frame:
        (stream_id,) = _U32.unpack_from(body)
        headers = self._headers(body[4:])
        return SynReply(stream_id & _ID_MASK, headers, fin=bool(flags & _FLAG_FIN))

    def _more_headers(self, flags: int, body: bytes) -> Frame:
        (stream_id,) = _U32.unpack_from(body)
        headers = self._headers(body[4:])
        return Headers(stream_id & _ID_MASK, headers, fin=bool(flags & _FLAG_FIN))

    def _rst_stream(self, _flags: int, body: bytes) -> Frame:
        stream_id, status = _TWO_U32.unpack(body)
        return RstStream(stream_id & _ID_MASK, status)

    def _settings(self, flags: int, body: bytes) -> Frame:
        (count,) = _U32.unpack_from(body)
        if len(body) != 4 + 8 * count:
            raise ProtocolError(f"SETTINGS of {len(body)} bytes says it has {count} values")
        values = tuple((key & 0xFFFFFF, value) for key, value in _TWO_U32.iter_unpack(body[4:]))
        return Settings(values, clear=bool(flags & _FLAG_CLEAR_SETTINGS))

    def _ping(self, _flags: int, body: bytes) -> Frame:
        (ping_id,) = _U32.unpack(body)
        return Ping(ping_id)

    def _goaway(self, _flags: int, body: bytes) -> Frame:
        last, status = _TWO_U32.unpack(body)
        return Goaway(last & _ID_MASK, status)

    def _window_update(self, _flags: int, body: bytes) -> Frame:
        stream_id, delta = _TWO_U32.unpack(body)
        return WindowUpdate(stream_id & _ID_MASK, delta & _ID_MASK)


_PARSERS: Final[Mapping[int, Callable[[Decoder, int, bytes], Frame]]] = {
    FrameType.SYN_STREAM: Decoder._syn_stream,
    FrameType.SYN_REPLY: Decoder._syn_reply,
    FrameType.RST_STREAM: Decoder._rst_stream,
    FrameType.SETTINGS: Decoder._settings,
    FrameType.PING: Decoder._ping,
    FrameType.GOAWAY: Decoder._goaway,
    FrameType.HEADERS: Decoder._more_headers,
    FrameType.WINDOW_UPDATE: Decoder._window_update,
}


class Encoder:
    """Frames to bytes. They must go out in the order they were encoded: zlib keeps state."""

    def __init__(self) -> None:
        # A 2 KiB window holds the dictionary; the default of 32 KiB would cost 256 KiB a client.
        self._deflate = zlib.compressobj(6, zlib.DEFLATED, 11, 2, zdict=HEADER_DICTIONARY)

    def encode(self, frame: Frame) -> bytes:
        """One frame's bytes.

        Raises:
            LocalProtocolError: more data or headers than a frame can take.
        """
        return _WRITERS[type(frame)](self, frame)

    def _data(self, frame: Data) -> bytes:
        length = len(frame.payload)
        if length > MAX_DATA_LENGTH:
            raise LocalProtocolError(f"data frame of {length} bytes")
        return _TWO_U32.pack(frame.stream_id, (frame.fin << 24) | length) + frame.payload

    def _syn_stream(self, frame: SynStream) -> bytes:
        flags = _FLAG_FIN * frame.fin | _FLAG_UNIDIRECTIONAL * frame.unidirectional
        fixed = _SYN_STREAM.pack(frame.stream_id, frame.associated_id, frame.priority << 5, 0)
        return _control(FrameType.SYN_STREAM, fixed + self._headers(frame.headers), flags)

    def _syn_reply(self, frame: SynReply) -> bytes:
        body = _U32.pack(frame.stream_id) + self._headers(frame.headers)
        return _control(FrameType.SYN_REPLY, body, _FLAG_FIN * frame.fin)

    def _more_headers(self, frame: Headers) -> bytes:
        body = _U32.pack(frame.stream_id) + self._headers(frame.headers)
        return _control(FrameType.HEADERS, body, _FLAG_FIN * frame.fin)

    def _settings(self, frame: Settings) -> bytes:
        pairs = b"".join(_TWO_U32.pack(*pair) for pair in frame.values)
        body = _U32.pack(len(frame.values)) + pairs
        return _control(FrameType.SETTINGS, body, _FLAG_CLEAR_SETTINGS * frame.clear)

    def _rst_stream(self, frame: RstStream) -> bytes:
        return _control(FrameType.RST_STREAM, _TWO_U32.pack(frame.stream_id, frame.status))

    def _ping(self, frame: Ping) -> bytes:
        return _control(FrameType.PING, _U32.pack(frame.ping_id))

    def _goaway(self, frame: Goaway) -> bytes:
        return _control(FrameType.GOAWAY, _TWO_U32.pack(frame.last_stream_id, frame.status))

    def _window_update(self, frame: WindowUpdate) -> bytes:
        return _control(FrameType.WINDOW_UPDATE, _TWO_U32.pack(frame.stream_id, frame.delta))

    def _headers(self, headers: Mapping[str, str]) -> bytes:
        parts = [_U32.pack(len(headers))]
        for name, value in headers.items():
            for text in (name.lower(), value):
                raw = text.encode("latin-1")
                parts += (_U32.pack(len(raw)), raw)
        block = b"".join(parts)
        if len(headers) > MAX_HEADERS or len(block) > MAX_HEADER_BLOCK // 2:
            raise LocalProtocolError(f"{len(headers)} headers of {len(block)} bytes")
        return self._deflate.compress(block) + self._deflate.flush(zlib.Z_SYNC_FLUSH)


def _control(kind: FrameType, body: bytes, flags: int = 0) -> bytes:
    return _CONTROL.pack(0x8000 | VERSION, kind, (flags << 24) | len(body)) + body


_WRITERS: Final[Mapping[type[Frame], Callable[[Encoder, Any], bytes]]] = {
    Data: Encoder._data,
    SynStream: Encoder._syn_stream,
    SynReply: Encoder._syn_reply,
    Headers: Encoder._more_headers,
    RstStream: Encoder._rst_stream,
    Settings: Encoder._settings,
    Ping: Encoder._ping,
    Goaway: Encoder._goaway,
    WindowUpdate: Encoder._window_update,
}
