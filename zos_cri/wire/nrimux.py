"""NRI's multiplexed connection, sans I/O: one stream of bytes that holds several.

The wire, from containerd/nri's pkg/net/multiplex: a frame is a header of eight bytes (channel,
length: u32 big-endian) and at most a ttrpc message's bytes. Channels aren't opened or closed: what
comes for one that nobody listens to is dropped. Channel 1 is the plugin's service, channel 2 the
runtime's.

`Mux` takes bytes (`receive_data`, `receive_eof`) and returns events; it never raises for what a
peer sent: the last event is then `Broken`, and the caller's duty is to close the connection.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from zos_cri.wire import ttrpc

if TYPE_CHECKING:
    from collections.abc import Container

PLUGIN_SERVICE: Final = 1
RUNTIME_SERVICE: Final = 2

_HEADER: Final = struct.Struct(">II")
HEADER_LENGTH: Final = _HEADER.size
MAX_PAYLOAD: Final = ttrpc.HEADER_LENGTH + ttrpc.MAX_DATA_LENGTH
# Upstream's reader takes each frame with one read of Go's bufio, whose buffer is this long; only
# the rest of a message that has begun is read to where it belongs, whatever its length. A first
# frame that were longer would break the connection.
FIRST_PAYLOAD: Final = 4096


class MuxError(Exception):
    """By the peer: the connection can't be used any more."""


class PayloadTooLarge(MuxError):
    """A header announces more than `MAX_PAYLOAD`."""


class Truncated(MuxError):
    """The connection ended inside a frame."""


@dataclass(frozen=True, slots=True)
class Received:
    """Bytes of a channel, in their order; where they were cut says nothing."""

    channel: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Broken:
    """Always the last event: close the connection."""

    error: MuxError


Event = Received | Broken


class Mux:
    """One end. It holds at most one frame and what follows it."""

    def __init__(self, channels: Container[int] = (PLUGIN_SERVICE, RUNTIME_SERVICE)) -> None:
        """
        Args:
            channels: those that are listened to.
        """
        self._channels = channels
        self._buffer = bytearray()
        self._error: MuxError | None = None

    @property
    def error(self) -> MuxError | None:
        """Why the connection can't be used any more."""
        return self._error

    def receive_data(self, data: bytes) -> list[Event]:
        """Takes bytes of the peer."""
        if self._error is not None:
            return []
        self._buffer += data
        events: list[Event] = []
        try:
            while (frame := self._next_frame()) is not None:
                if frame.data and frame.channel in self._channels:
                    events.append(frame)
        except MuxError as error:
            events.append(self._break(error))
        return events

    def receive_eof(self) -> list[Event]:
        """The peer will send no more; it may do so between any two frames."""
        if self._error is None and self._buffer:
            where = len(self._buffer)
            return [self._break(Truncated(f"the connection ended {where} bytes into a frame"))]
        return []

    def _next_frame(self) -> Received | None:
        if len(self._buffer) < HEADER_LENGTH:
            return None
        channel, length = _HEADER.unpack_from(self._buffer)
        if length > MAX_PAYLOAD:
            raise PayloadTooLarge(
                f"a frame of {length} bytes on channel {channel}, at most {MAX_PAYLOAD} are allowed"
            )
        end = HEADER_LENGTH + length
        if len(self._buffer) < end:
            return None
        data = bytes(memoryview(self._buffer)[HEADER_LENGTH:end])
        del self._buffer[:end]
        return Received(channel, data)

    def _break(self, error: MuxError) -> Broken:
        self._error = error
        self._buffer = bytearray()
        return Broken(error)


def frames(channel: int, message: bytes) -> bytes:
    """One ttrpc message as frames of a channel.

    Args:
        message: a whole one, and no more than one: see `FIRST_PAYLOAD`.
    """
    parts = (message[:FIRST_PAYLOAD], message[FIRST_PAYLOAD:])
    return b"".join(_HEADER.pack(channel, len(part)) + part for part in parts if part)
