"""Connections to pods' ports, over real sockets."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from tests.descriptors import open_descriptors
from tests.fakes.streaming import pattern
from zos_cri.errors import NotFound, Unavailable
from zos_cri.linux import namespaces
from zos_cri.streaming.dial import SocketConnection, dial

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def listen(family: int, address: str, port: int = 0) -> socket.socket:
    listener = socket.socket(family)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind((address, port))
    listener.listen(50)
    listener.setblocking(False)
    return listener


async def accept(listener: socket.socket) -> SocketConnection:
    peer, _ = await asyncio.get_running_loop().sock_accept(listener)
    return SocketConnection(peer)


async def read_all(connection: SocketConnection) -> bytes:
    parts = []
    async with asyncio.timeout(10):
        while data := await connection.read(65536):
            parts.append(data)
    return b"".join(parts)


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
async def test_ipv4_then_ipv6(family: int, address: str) -> None:
    with listen(family, address) as listener:
        connection = await dial(listener.getsockname()[1])
        peer = await accept(listener)
        sent = pattern(1_000_000)
        writing = asyncio.create_task(connection.write(sent))
        received = b""
        while len(received) < len(sent):
            received += await peer.read(65536)
        await writing
        assert received == sent
        await connection.write_eof()
        assert await peer.read(10) == b""
        await peer.write(b"after the client's end")
        await peer.aclose()
        assert await read_all(connection) == b"after the client's end"
        await connection.write_eof()  # harmless
        await connection.aclose()


async def test_ipv4_comes_first() -> None:
    with listen(socket.AF_INET, "127.0.0.1") as first:
        port = first.getsockname()[1]
        with listen(socket.AF_INET6, "::1", port):
            connection = await dial(port)
            peer = await accept(first)
            await connection.aclose()
            await peer.aclose()


async def test_nobody_listens() -> None:
    with listen(socket.AF_INET, "127.0.0.1") as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unavailable, match=r"127.0.0.1: connection refused; ::1: ") as caught:
        await dial(port)
    assert f"port {port}" in str(caught.value)


async def test_a_port_that_does_not_answer() -> None:
    with listen(socket.AF_INET, "127.0.0.1") as listener:
        port = listener.getsockname()[1]
        listener.listen(0)
        waiting = []
        for _ in range(3):  # fills its queue
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
            waiting.append(sock)
        with pytest.raises(Unavailable, match=r"127.0.0.1: timed out"):
            await dial(port, timeout=0.1)
        for sock in waiting:
            sock.close()


async def test_cancelled_while_it_connects_leaves_no_socket() -> None:
    before = open_descriptors()
    started = asyncio.Event()

    async def enter(_path: str, make: Callable[[], list[tuple[socket.socket, str]]]):
        started.set()
        sockets = make()
        return [(sock, "192.0.2.1") for sock, _ in sockets if sock.family == socket.AF_INET] + [
            pair for pair in sockets if pair[0].family != socket.AF_INET
        ]

    task = asyncio.create_task(dial(9, netns="x", in_network=enter, timeout=5))
    await started.wait()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert open_descriptors() <= before


async def test_no_such_namespace(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await dial(80, netns=str(tmp_path / "absent"))


@pytest.mark.root
async def test_inside_a_pods_network(tmp_path: Path) -> None:
    netns = str(tmp_path / "net")
    await namespaces.pin({"net": netns}, timeout=10)
    try:
        listener = await namespaces.in_network(
            netns, listen, socket.AF_INET, "127.0.0.1", timeout=10
        )
        with listener:
            port = listener.getsockname()[1]
            connection = await dial(port, netns=netns)
            peer = await accept(listener)
            await peer.write(b"from inside")
            await peer.aclose()
            assert await read_all(connection) == b"from inside"
            await connection.aclose()
            with pytest.raises(Unavailable):
                await dial(port)  # not on the host's loopback
    finally:
        await namespaces.unpin(netns)
