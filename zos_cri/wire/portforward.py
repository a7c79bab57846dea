"""Port-forwarding over the wire.

Source: k8s.io/cri-streaming's portforward package and client-go.

Over SPDY a forwarded connection is a pair of streams with the same `requestid` header: `data`, and
`error`, which carries text where the connection failed. Over WebSocket (v4.channel.k8s.io) each
port of the request has two channels, data 2i and error 2i+1, and each begins with the port as two
bytes, little-endian, from the server. `SPDY/3.1+portforward.k8s.io` is the former inside the
binary messages of a WebSocket.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from zos_cri.wire.remotecommand import WebSocketProtocol

if TYPE_CHECKING:
    from collections.abc import Mapping

PROTOCOL: Final = "portforward.k8s.io"
TUNNEL_PROTOCOL: Final = "SPDY/3.1+" + PROTOCOL
WEBSOCKET_PROTOCOLS: Final = (
    WebSocketProtocol("v4.channel.k8s.io", 4),
    WebSocketProtocol("v4.base64.channel.k8s.io", 4, base64=True),
)

_TYPE: Final = "streamtype"
_PORT: Final = "port"
_REQUEST_ID: Final = "requestid"
_MAX_REQUEST_ID: Final = 256  # client-go counts from 0
# Streams that wait for the other of their pair. Clients open both at once; a peer that only ever
# opens one of each is stopped here.
_MAX_WAITING: Final = 1000


class PortForwardError(Exception):
    """The stream can't be part of a forwarded connection; the message says why."""


def parse_port(text: str) -> int:
    """A port from 1 to 65,535.

    Raises:
        PortForwardError: it isn't one.
    """
    # isdecimal alone takes other scripts' digits; length bounds what int() is given.
    if text.isascii() and text.isdecimal() and len(text) <= 5 and 1 <= int(text) <= 65535:
        return int(text)
    raise PortForwardError(f"{text[:80]!r} is no port")


def port_prefix(port: int) -> bytes:
    """What the server writes first on both WebSocket channels of a port."""
    return port.to_bytes(2, "little")


@dataclass(frozen=True, slots=True)
class Pair:
    """The two streams of one forwarded connection."""

    request_id: str
    port: int
    data_stream: int
    error_stream: int


@dataclass(slots=True)
class _Half:
    port: int
    streams: dict[str, int] = field(default_factory=dict)


class Pairing:
    """Puts streams together by request id."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Half] = {}

    def add(self, stream_id: int, headers: Mapping[str, str]) -> tuple[str, Pair | None]:
        """Takes a new stream; gives its request id, and the pair it completes.

        Raises:
            PortForwardError: wrong headers: this stream is to be refused, nothing else changes.
        """
        kind = headers.get(_TYPE, "")
        if kind not in ("data", "error"):
            raise PortForwardError(f"invalid stream type {kind[:80]!r}")
        port = parse_port(headers.get(_PORT, ""))
        request_id = headers.get(_REQUEST_ID, "")
        if len(request_id) > _MAX_REQUEST_ID:
            raise PortForwardError("the request id is too long")
        if not request_id:
            # Clients before Kubernetes 1.2 gave none: the error stream came first, its data
            # stream had the next id.
            request_id = f"stream {stream_id if kind == 'error' else stream_id - 2}"
        if request_id not in self._waiting and len(self._waiting) >= _MAX_WAITING:
            raise PortForwardError(f"{_MAX_WAITING} streams wait for the other of their pair")
        half = self._waiting.setdefault(request_id, _Half(port))
        if kind in half.streams:
            raise PortForwardError(f"request {request_id} has its {kind} stream already")
        if kind == "data":
            half.port = port
        half.streams[kind] = stream_id
        if len(half.streams) < 2:
            return request_id, None
        del self._waiting[request_id]
        return request_id, Pair(request_id, half.port, half.streams["data"], half.streams["error"])

    def forget(self, request_id: str) -> list[int]:
        """Gives up a request whose other stream didn't come; its streams' ids."""
        half = self._waiting.pop(request_id, None)
        return list(half.streams.values()) if half else []
