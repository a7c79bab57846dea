"""One connection to a plugin: ttrpc both ways, over the channels of `wire.nrimux`.

Each channel looks like a transport to the ttrpc shells of `zos_cri.shim`, which so serve here
unchanged. What ends one of them ends the connection.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from zos_cri.log import get_log
from zos_cri.wire import nrimux

if TYPE_CHECKING:
    from zos_cri.shim.client import Connection
    from zos_cri.shim.server import ServerConnection

_log = get_log(__name__)


class Trunk(asyncio.Protocol):
    """The whole connection."""

    def __init__(self, calls: Connection, serves: ServerConnection) -> None:
        """
        Args:
            calls: calls the plugin's service.
            serves: serves the runtime's to it.
        """
        self._protocols: dict[int, Connection | ServerConnection] = {
            nrimux.PLUGIN_SERVICE: calls,
            nrimux.RUNTIME_SERVICE: serves,
        }
        self._mux = nrimux.Mux()
        self._transport: asyncio.Transport | None = None

    def abort(self) -> None:
        """Closes the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        for number, protocol in self._protocols.items():
            protocol.connection_made(Channel(self._transport, number))

    def data_received(self, data: bytes) -> None:
        self._handle(self._mux.receive_data(data))

    def eof_received(self) -> None:
        self._handle(self._mux.receive_eof())
        self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        for protocol in self._protocols.values():
            protocol.connection_lost(self._mux.error or error)

    def pause_writing(self) -> None:
        for protocol in self._protocols.values():
            protocol.pause_writing()

    def resume_writing(self) -> None:
        for protocol in self._protocols.values():
            protocol.resume_writing()

    def _handle(self, events: list[nrimux.Event]) -> None:
        for event in events:
            if isinstance(event, nrimux.Broken):
                _log.warning("NRI plugin broke the protocol", error=event.error)
                self.abort()
            else:
                self._protocols[event.channel].data_received(event.data)


class Channel(asyncio.Transport):
    """One channel of it. Reading is paused for all of them together."""

    def __init__(self, trunk: asyncio.Transport, number: int) -> None:
        super().__init__()
        self._trunk = trunk
        self._number = number

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Sends one whole ttrpc message."""
        self._trunk.write(nrimux.frames(self._number, bytes(data)))

    def abort(self) -> None:
        self._trunk.abort()

    def close(self) -> None:
        self._trunk.abort()

    def is_closing(self) -> bool:
        return self._trunk.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._trunk.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._trunk.pause_reading()

    def resume_reading(self) -> None:
        self._trunk.resume_reading()
