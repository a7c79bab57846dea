"""Connections to a pod's ports: made inside its network namespace, used from the event loop."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING, Final, TypeAlias

from zos_cri.errors import Unavailable
from zos_cri.linux import namespaces

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Sockets: TypeAlias = list[tuple[socket.socket, str]]
    # Runs a function in a thread that has entered the network namespace at a path.
    InNetwork: TypeAlias = Callable[[str, Callable[[], Sockets]], Awaitable[Sockets]]

# Of a connection over loopback: it is there at once or the port's queue is full.
CONNECT_TIMEOUT: Final = 10.0


async def _in_network(path: str, make: Callable[[], Sockets]) -> Sockets:
    return await namespaces.in_network(path, make, timeout=CONNECT_TIMEOUT)


async def dial(
    port: int,
    *,
    netns: str = "",
    in_network: InNetwork = _in_network,
    timeout: float = CONNECT_TIMEOUT,
) -> SocketConnection:
    """Connects to 127.0.0.1, then to ::1.

    Args:
        netns: path of the network namespace; empty for the host's.
        in_network: who runs a function there.
        timeout: seconds for each address.

    Raises:
        Unavailable: neither address took the connection; the message has both reasons.
        NotFound: there is no such namespace.
    """
    # A socket belongs to the namespace that it was made in, so only that happens there.
    sockets = await in_network(netns, _make_sockets) if netns else _make_sockets()
    reasons = []
    loop = asyncio.get_running_loop()
    try:
        while sockets:
            sock, address = sockets.pop(0)
            try:
                async with asyncio.timeout(timeout):
                    await loop.sock_connect(sock, (address, port))
            except (OSError, TimeoutError) as error:
                sock.close()
                reasons.append(f"{address}: {_reason(error)}")
            except BaseException:
                sock.close()
                raise
            else:
                return SocketConnection(sock)
    finally:
        for sock, _ in sockets:
            sock.close()
    raise Unavailable(f"port {port} can't be connected to ({'; '.join(reasons)})")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno).lower()
    return "timed out"


def _make_sockets() -> Sockets:
    sockets: Sockets = []
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:  # a kernel without IPv6
                continue
            for made, _ in sockets:
                made.close()
            raise
        sockets.append((sock, address))
    return sockets


class SocketConnection:
    """A `Connection` over a connected socket. Owns it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    async def read(self, limit: int) -> bytes:
        return await self._loop.sock_recv(self._sock, limit)

    async def write(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._sock, data)

    async def write_eof(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # the pod has closed both ways already
                raise

    async def aclose(self) -> None:
        self._sock.close()
