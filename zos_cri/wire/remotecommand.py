"""Exec and attach over the wire: stream types, protocol versions, channels, status, resize.

Source: Kubernetes' remotecommand protocols as k8s.io/cri-streaming serves and client-go speaks
them (KEP-4006 for v5).

- Version 1 to 3: the error stream carries plain text and only when something failed; terminal
  resizing from version 3 on.
- Version 4: the error stream carries a metav1.Status as JSON, on success too; an exit code that
  isn't 0 stands in its details.
- Version 5: as 4; over WebSocket a message of the bytes 255 and n says that channel n has ended.

Over SPDY every stream type has a stream, named by its `streamtype` header. Over WebSocket every
message begins with its channel: one byte, or in the base64 protocols one digit (after 9 comes what
comes in ASCII).
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# Header names as they stand on the wire: spdystream writes them in lower case.
STREAM_TYPE_HEADER: Final = "streamtype"

# The server's preference doesn't matter: the first of the client's list that we have is taken.
SPDY_PROTOCOLS: Final[Mapping[str, int]] = {
    "v5.channel.k8s.io": 5,
    "v4.channel.k8s.io": 4,
    "v3.channel.k8s.io": 3,
    "v2.channel.k8s.io": 2,
    "channel.k8s.io": 1,
}


class StreamType(Enum):
    """The value is the SPDY header's; the order is that of the WebSocket channels."""

    STDIN = "stdin"
    STDOUT = "stdout"
    STDERR = "stderr"
    ERROR = "error"
    RESIZE = "resize"


CHANNELS: Final = tuple(StreamType)
CLOSE_CHANNEL: Final = 255

_MAX_RESIZE_TEXT: Final = 1024  # one size is about 30 bytes of JSON
_MAX_TERMINAL: Final = 0xFFFF  # the kernel's winsize has 16 bits
_EXIT_CODE_CAUSE: Final = "ExitCode"
_NON_ZERO_EXIT: Final = "NonZeroExitCode"


class RemoteCommandError(Exception):
    """The peer sent what these protocols don't have."""


class WebSocketProtocol(NamedTuple):
    """A WebSocket subprotocol: how its messages are read and which version it is."""

    name: str
    version: int
    base64: bool = False


# No subprotocol at all counts as channel.k8s.io (RFC 6455 lets a client ask for none).
WEBSOCKET_PROTOCOLS: Final = (
    WebSocketProtocol("v5.channel.k8s.io", 5),
    WebSocketProtocol("v4.channel.k8s.io", 4),
    WebSocketProtocol("v4.base64.channel.k8s.io", 4, base64=True),
    WebSocketProtocol("channel.k8s.io", 1),
    WebSocketProtocol("base64.channel.k8s.io", 1, base64=True),
)


def negotiate(offered: Iterable[str], supported: Iterable[str]) -> str | None:
    """The first of the client's protocols that the server has, or None."""
    known = frozenset(supported)
    return next((name for name in offered if name in known), None)


def header_list(values: Iterable[str]) -> list[str]:
    """The elements of header lines that hold comma-separated lists."""
    return [part for value in values for raw in value.split(",") if (part := raw.strip())]


def expected_streams(
    version: int, *, stdin: bool, stdout: bool, stderr: bool, tty: bool
) -> frozenset[StreamType]:
    """The streams a client opens for a request, all of which the server waits for."""
    wanted = {
        StreamType.ERROR: True,
        StreamType.STDIN: stdin,
        StreamType.STDOUT: stdout,
        StreamType.STDERR: stderr and not tty,
        StreamType.RESIZE: tty and version >= 3,
    }
    return frozenset(kind for kind, is_wanted in wanted.items() if is_wanted)


def stream_type(headers: Mapping[str, str]) -> StreamType:
    """What a SPDY stream is for.

    Raises:
        RemoteCommandError: no such type.
    """
    value = headers.get(STREAM_TYPE_HEADER, "")
    try:
        return StreamType(value)
    except ValueError:
        raise RemoteCommandError(f"unexpected stream type {value[:80]!r}") from None


# What the error stream says at the end.


def exit_status(version: int, code: int) -> bytes:
    """The error stream's text for a process that ended with `code`; empty where none is due."""
    if version < 4:
        return b"" if code == 0 else _exit_message(code).encode()
    if code == 0:
        return _json({"metadata": {}, "status": "Success"})
    cause = {"reason": _EXIT_CODE_CAUSE, "message": str(code)}
    return _json(
        {
            "metadata": {},
            "status": "Failure",
            "message": _exit_message(code),
            "reason": _NON_ZERO_EXIT,
            "details": {"causes": [cause]},
        }
    )


def failure_status(version: int, message: str) -> bytes:
    """The error stream's text where there is no exit code: the command couldn't be run."""
    if version < 4:
        return message.encode()
    return _json(
        {
            "metadata": {},
            "status": "Failure",
            "message": f"Internal error occurred: {message}",
            "reason": "InternalError",
            "code": 500,
        }
    )


def _exit_message(code: int) -> str:
    return f"command terminated with non-zero exit code: {code}"


def _json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


# Terminal sizes.


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """Columns and rows, both from 1 to 65,535."""

    width: int
    height: int


class ResizeDecoder:
    """The resize stream: JSON objects {"Width": …, "Height": …}, in any pieces."""

    def __init__(self) -> None:
        self._text = ""
        self._json = json.JSONDecoder()

    def feed(self, data: bytes) -> TerminalSize | None:
        """The newest size that `data` completes, if any: it is what older ones were to become.

        A size with a 0 in it says nothing and is left out.

        Raises:
            RemoteCommandError: this isn't a size; what follows on the stream can't be trusted.
        """
        newest = None
        # Sizes are ASCII; latin-1 decodes whatever comes, and JSON then refuses it.
        text = self._text + data.decode("latin-1")
        position = 0
        while position < len(text):
            if text[position] in " \t\r\n":
                position += 1
                continue
            try:
                value, position = self._json.raw_decode(text, position)
            except (ValueError, RecursionError):
                if len(text) - position > _MAX_RESIZE_TEXT or text[position] != "{":
                    raise RemoteCommandError("the resize stream holds no terminal size") from None
                break  # the rest of it comes later
            newest = _terminal_size(value) or newest
        self._text = text[position:]
        return newest


def _terminal_size(value: object) -> TerminalSize | None:
    if not isinstance(value, dict):
        raise RemoteCommandError("a terminal size is a JSON object")
    # Go matches names without regard to case.
    fields = {str(name).lower(): number for name, number in value.items()}
    width, height = fields.get("width", 0), fields.get("height", 0)
    for number in (width, height):
        if type(number) is not int or not 0 <= number <= _MAX_TERMINAL:
            raise RemoteCommandError("a terminal size's sides go from 0 to 65535")
    return TerminalSize(width, height) if width and height else None


# WebSocket channels.


@dataclass(frozen=True, slots=True)
class ChannelData:
    """Bytes of one channel."""

    channel: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    """The client sends no more on this channel (v5)."""

    channel: int


ChannelEvent: TypeAlias = ChannelData | ChannelClosed


class ChannelDecoder:
    """WebSocket messages to channels. A message may come in fragments, each handed on at once."""

    def __init__(self, protocol: WebSocketProtocol) -> None:
        self._protocol = protocol
        self._channel: int | None = None  # of the message under way
        self._rest = b""  # of a base64 group, or of a close signal

    def feed(self, fragment: bytes, *, last: bool) -> Sequence[ChannelEvent]:
        """The events of one fragment; `last` where it ends its message.

        Raises:
            RemoteCommandError: damaged base64, or a close signal that isn't two bytes long.
        """
        if self._channel is None:
            if not fragment:
                return []
            self._channel = fragment[0] - (ord("0") if self._protocol.base64 else 0)
            fragment = fragment[1:]
        channel = self._channel
        if last:
            self._channel = None
        if self._protocol.version >= 5 and channel == CLOSE_CHANNEL:
            return self._close(fragment, last=last)
        data = self._decode(fragment, last=last) if self._protocol.base64 else fragment
        return [ChannelData(channel, data)] if data else []

    def _close(self, fragment: bytes, *, last: bool) -> Sequence[ChannelEvent]:
        self._rest += fragment
        if len(self._rest) > 1 or (last and not self._rest):
            raise RemoteCommandError("a close signal names one channel")
        if not last:
            return []
        closed, self._rest = self._rest[0], b""
        return [ChannelClosed(closed)]

    def _decode(self, fragment: bytes, *, last: bool) -> bytes:
        text = self._rest + fragment
        whole = len(text) if last else len(text) - len(text) % 4
        self._rest = text[whole:]
        try:
            return base64.b64decode(text[:whole], validate=True)
        except binascii.Error as error:
            raise RemoteCommandError(f"base64 channel: {error}") from error


def encode_channel(protocol: WebSocketProtocol, channel: int, data: bytes) -> bytes:
    """The message that carries `data`: binary, or text in the base64 protocols."""
    if protocol.base64:
        return bytes((ord("0") + channel,)) + base64.b64encode(data)
    return bytes((channel,)) + data
