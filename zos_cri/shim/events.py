"""What shims tell us: a ttrpc server that takes their events, and answers at once.

A shim's queue for events is short and Create and Start wait when it is full, so nothing is awaited
here. An event is a hint: shims drop what they couldn't deliver in five tries, and after a restart
of ours the State of every task is asked anyway. The same event may come twice.

The socket's path is what every shim was given at its start, so it must stay the same for as long
as any of them lives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from google.protobuf import empty_pb2
from google.protobuf.message import DecodeError, Message

from zos_cri import errors
from zos_cri._pb import events_pb2, ttrpc_events_pb2
from zos_cri.log import get_log
from zos_cri.shim.server import Server
from zos_cri.shim.task import nanoseconds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_log = get_log(__name__)

SERVICE: Final = "containerd.services.events.ttrpc.v1.Events"
METHOD: Final = "Forward"
_TYPES: Final[Mapping[str, type[Message]]] = {
    message.DESCRIPTOR.full_name: message
    for message in vars(events_pb2).values()
    if isinstance(message, type) and issubclass(message, Message)
}


class Event(msgspec.Struct, frozen=True):
    """One event of a shim.

    Attributes:
        topic: `/tasks/exit`, …
        timestamp_ns: when the shim published it, nanoseconds since 1970.
        message: of `events_pb2`: TaskCreate, TaskStart, TaskExit, …
    """

    topic: str
    namespace: str
    timestamp_ns: int
    message: Any


class EventServer:
    """Listens for the shims.

    Args:
        on_event: called for each event, on the event loop; it must return at once. What it raises
            is logged, and the shim is told that all is well: sending again wouldn't help.
    """

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        self._on_event = on_event
        self._server = Server({}, instant={(SERVICE, METHOD): self._forward})

    async def start(self, path: str) -> None:
        """Listens on a path, the same over restarts. Raises as `Server.start`."""
        await self._server.start(path)

    async def close(self) -> None:
        await self._server.close()

    def _forward(self, payload: bytes) -> bytes:
        event = parse(payload)
        if event is not None:
            try:
                self._on_event(event)
            except Exception:
                _log.exception("event not handled", topic=event.topic)
        return empty_pb2.Empty().SerializeToString()


def parse(payload: bytes) -> Event | None:
    """The event in a ForwardRequest; None for one of a type that we don't know.

    Raises:
        InvalidArgument: it can't be parsed.
    """
    try:
        envelope = ttrpc_events_pb2.ForwardRequest.FromString(payload).envelope
        # typeurl writes the bare name; protobuf's own libraries put a host before it
        kind = _TYPES.get(envelope.event.type_url.rpartition("/")[2])
        if kind is None:
            _log.debug(
                "event of an unknown type", topic=envelope.topic, type=envelope.event.type_url
            )
            return None
        message = kind.FromString(envelope.event.value)
    except DecodeError as error:
        raise errors.InvalidArgument(f"not an event: {error}") from error
    return Event(envelope.topic, envelope.namespace, nanoseconds(envelope.timestamp), message)
