"""What a SPDY session tells of its peer, by `spdy.Session.receive_data`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zos_cri.wire.spdyframes import ProtocolError


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer opened a stream. Answer with `reply` or `reset`."""

    stream_id: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class StreamReplied:
    """The peer accepted a stream of ours."""

    stream_id: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class HeadersReceived:
    """More headers of an open stream."""

    stream_id: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Never empty. Say `consumed` when it has left memory."""

    stream_id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The peer sends no more on this stream; we still may."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamReset:
    """This stream, and only this one, is over in both directions."""

    stream_id: int
    status: int


@dataclass(frozen=True, slots=True)
class WindowOpened:
    """More may be sent on a stream; on any where the id is 0."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class PingAnswered:
    """The answer to a ping of ours."""

    ping_id: int


@dataclass(frozen=True, slots=True)
class GoawayReceived:
    """The peer takes and opens no new streams. Open ones go on."""

    last_stream_id: int
    status: int


@dataclass(frozen=True, slots=True)
class ConnectionFailed:
    """The peer broke the protocol; GOAWAY is in the output. The last event there will be."""

    error: ProtocolError


Event: TypeAlias = (
    StreamOpened
    | StreamReplied
    | HeadersReceived
    | DataReceived
    | StreamEnded
    | StreamReset
    | WindowOpened
    | PingAnswered
    | GoawayReceived
    | ConnectionFailed
)
