"""The socket under a session: bounds, timeouts, and how its end is noticed."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from tests.fakes.streaming_client import until
from zos_cri.streaming import link as link_module
from zos_cri.streaming.link import WRITE_HIGH, ConnectionLost, Link

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Receiver:
    def __init__(self, link: Link) -> None:
        self.link = link
        self.received = b""
        self.lost = 0
        self.answer = b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.link.write(self.answer)

    def connection_lost(self) -> None:
        self.lost += 1

    def probe(self) -> None:
        self.link.write(b"probe")


class Pair:
    """A link and a plain socket at its other end."""

    def __init__(self, link: Link, receiver: Receiver, peer: socket.socket) -> None:
        self.link, self.receiver, self.peer = link, receiver, peer


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    made: list[Receiver] = []

    def accept(link: Link) -> Receiver:
        made.append(Receiver(link))
        return made[0]

    _, link = await loop.connect_accepted_socket(lambda: Link(accept), ours)
    yield Pair(link, made[0], peer)
    peer.close()
    link.abort()
    await link.lost
    assert made[0].lost == 1


async def test_writers_wait_for_a_slow_peer(pair: Pair) -> None:
    async def fill() -> None:
        while True:
            await pair.link.drain()
            pair.link.write(bytes(65536))

    writers = [asyncio.create_task(fill()) for _ in range(20)]
    await until(lambda: pair.link.queued > WRITE_HIGH)
    await asyncio.sleep(0.05)
    # Twenty of them, woken together, don't each add their piece.
    assert pair.link.queued <= WRITE_HIGH + 65536
    pair.peer.recv(200_000)
    await asyncio.sleep(0.05)
    assert pair.link.queued <= WRITE_HIGH + 65536
    pair.link.abort()
    await asyncio.wait(writers)
    assert all(isinstance(writer.exception(), ConnectionLost) for writer in writers)


async def test_answers_nobody_reads_stop_the_reading(pair: Pair) -> None:
    pair.receiver.answer = bytes(WRITE_HIGH)
    pair.peer.setblocking(False)
    for _ in range(100):
        try:
            pair.peer.send(b"ping" * 100)
        except BlockingIOError:
            break
        await asyncio.sleep(0.001)
        if not pair.link.reading:
            break
    assert not pair.link.reading
    assert pair.link.queued < 6 * WRITE_HIGH
    loop = asyncio.get_running_loop()
    pair.receiver.answer = b""
    while not pair.link.reading:
        await loop.sock_recv(pair.peer, 1 << 20)


async def test_idle_time_counts_from_the_last_byte(pair: Pair) -> None:
    pair.link.limit(1.5, idle=True)
    for _ in range(16):
        await asyncio.sleep(0.1)
        pair.peer.send(b"x")
    assert not pair.link.lost.done()
    await asyncio.wait_for(asyncio.shield(pair.link.lost), 30)
    assert pair.link.timed_out


async def test_a_limit_that_is_not_idle_time(pair: Pair) -> None:
    pair.link.limit(0.1, idle=False)
    for _ in range(20):
        if pair.link.lost.done():
            break
        pair.peer.send(b"x")
        await asyncio.sleep(0.02)
    assert pair.link.timed_out


async def test_the_peers_end_is_noticed_while_reading_is_paused(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "PROBE_INTERVAL", 0.02)
    pair.link.pause_reading()
    pair.peer.send(b"never read")
    await asyncio.sleep(0.1)
    assert not pair.link.lost.done()
    pair.peer.close()
    await asyncio.wait_for(asyncio.shield(pair.link.lost), 30)


async def test_probes_are_no_activity(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "PROBE_INTERVAL", 0.02)
    pair.link.limit(0.2, idle=True)
    pair.link.pause_reading()
    await asyncio.wait_for(asyncio.shield(pair.link.lost), 30)
    assert pair.link.timed_out


async def test_lingering_ends_when_the_peer_closes(pair: Pair) -> None:
    pair.link.write(b"goodbye")
    lingering = asyncio.create_task(pair.link.linger(5))
    await asyncio.sleep(0.05)
    assert not lingering.done()
    assert pair.peer.recv(100) == b"goodbye"
    pair.peer.close()
    await asyncio.wait_for(lingering, 30)


async def test_lingering_has_an_end(pair: Pair) -> None:
    await asyncio.wait_for(pair.link.linger(0.1), 30)
    assert await asyncio.get_running_loop().run_in_executor(None, pair.peer.recv, 10) == b""


async def test_a_peer_that_reads_slowly_is_waited_for(pair: Pair) -> None:
    total = 8_000_000
    pair.link.write(bytes(total))
    lingering = asyncio.create_task(pair.link.linger(1.5))
    loop = asyncio.get_running_loop()
    pair.peer.setblocking(False)
    got = 0
    while got < total:
        got += len(await loop.sock_recv(pair.peer, 400_000))
        await asyncio.sleep(0.1)
    assert not lingering.done()
    pair.peer.close()
    await asyncio.wait_for(lingering, 30)


async def test_a_link_that_is_gone(pair: Pair) -> None:
    pair.peer.close()
    await pair.link.lost
    pair.link.write(b"dropped")
    pair.link.pause_reading()
    pair.link.resume_reading()
    pair.link.limit(0.01, idle=True)
    with pytest.raises(ConnectionLost):
        await pair.link.drain()
