"""The client's shell against a peer that answers well, late, wrongly and not at all."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from tests.fakes.shim import Peer, failing, until
from zos_cri import errors
from zos_cri._pb import ttrpc_pb2
from zos_cri.shim.client import Connection, Redialler, socket_path
from zos_cri.shim.status import ShimFailed
from zos_cri.wire.ttrpc import MAX_DATA_LENGTH

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Peer]:
    async with Peer(tmp_path / "socket") as peer:
        yield peer


@pytest.fixture
async def connection(peer: Peer) -> AsyncIterator[Connection]:
    connection = await Connection.dial(f"unix://{peer.path}", peer="the peer")
    yield connection
    await connection.close()


async def call(
    connection: Connection | Redialler, payload: bytes = b"", timeout: float | None = 5
) -> bytes:
    return await connection.call("S", "M", payload, timeout=timeout, metadata={"key": "value"})


async def test_a_call(peer: Peer, connection: Connection) -> None:
    assert await call(connection, b"hello") == b"hello"
    (request,) = peer.requests
    assert (request.service, request.method) == ("S", "M")
    assert request.timeout_nano == 5_000_000_000
    assert {pair.key: pair.value for pair in request.metadata} == {"key": "value"}


async def test_many_calls_are_in_flight_at_once(peer: Peer, connection: Connection) -> None:
    payloads = [str(number).encode() for number in range(200)]
    assert await asyncio.gather(*(call(connection, p) for p in payloads)) == payloads
    assert connection.in_flight == 0
    assert peer.connections == 1


async def test_without_a_timeout_none_is_sent(peer: Peer, connection: Connection) -> None:
    await call(connection, timeout=None)
    assert peer.requests[0].timeout_nano == 0


async def test_a_call_that_is_not_answered(peer: Peer, connection: Connection) -> None:
    peer.answer = lambda _: None
    with pytest.raises(errors.DeadlineExceeded, match=r"the peer: S/M: no answer within 0\.05 s"):
        await call(connection, timeout=0.05)
    assert connection.in_flight == 0


async def test_an_answer_after_the_deadline_harms_nothing(
    peer: Peer, connection: Connection
) -> None:
    peer.answer = lambda _: None
    with pytest.raises(errors.DeadlineExceeded):
        await call(connection, timeout=0.05)
    peer.answer_withheld(b"late")
    peer.answer = lambda request: ttrpc_pb2.Response(payload=b"next")
    assert await call(connection) == b"next"


async def test_a_cancelled_call_s_answer_harms_nothing(peer: Peer, connection: Connection) -> None:
    peer.answer = lambda _: None
    task = asyncio.create_task(call(connection))
    await peer.arrived.wait()
    task.cancel()
    await asyncio.wait([task])
    peer.answer_withheld(b"late")
    peer.answer = lambda request: ttrpc_pb2.Response(payload=b"next")
    assert await call(connection) == b"next"


async def test_a_status_becomes_an_error(peer: Peer, connection: Connection) -> None:
    peer.answer = lambda _: failing(5, "no such task")
    with pytest.raises(errors.NotFound, match="the peer: S/M: no such task"):
        await call(connection)
    peer.answer = lambda _: failing(2, "runc: exit status 1")
    with pytest.raises(ShimFailed, match="runc: exit status 1"):
        await call(connection)


async def test_a_lost_connection_fails_all_calls(peer: Peer, connection: Connection) -> None:
    peer.answer = lambda _: None
    tasks = [asyncio.create_task(call(connection, timeout=None)) for _ in range(3)]
    await peer.arrived.wait()
    peer.disconnect()
    for task in tasks:
        with pytest.raises(errors.Unavailable, match="the peer: S/M: "):
            await task
    with pytest.raises(errors.Unavailable):
        await call(connection)
    assert connection.closed


@pytest.mark.parametrize(
    ("garbage", "said"),
    [
        (b"\xff" * 10, "a frame of 4294967295 bytes"),
        (b"\0\0\0\0\0\0\0\x01\x09\0", "type 9"),
        (b"\0\0\0\0\0\0\0\x63\x02\0", "RESPONSE stream=99"),
    ],
)
async def test_a_peer_that_breaks_the_protocol(
    peer: Peer, connection: Connection, garbage: bytes, said: str
) -> None:
    peer.answer = lambda _: garbage
    with pytest.raises(errors.Unavailable, match=f"broke the protocol: .*{said}"):
        await call(connection)
    assert connection.closed


async def test_an_answer_that_is_no_response(peer: Peer, connection: Connection) -> None:
    peer.answer = lambda _: b"\0\0\0\x01\0\0\0\x01\x02\0\xff"
    with pytest.raises(errors.Internal, match=r"isn't a ttrpc\.Response"):
        await call(connection)
    assert not connection.closed


async def test_a_request_that_is_too_large(connection: Connection) -> None:
    with pytest.raises(errors.ResourceExhausted, match="ttrpc allows"):
        await call(connection, bytes(MAX_DATA_LENGTH))
    assert await call(connection, b"small") == b"small"


async def test_closing_fails_what_is_in_flight_and_is_told(peer: Peer) -> None:
    peer.answer = lambda _: None
    closed = []
    connection = await Connection.dial(
        str(peer.path), peer="the peer", on_close=lambda: closed.append(1)
    )
    task = asyncio.create_task(call(connection))
    await peer.arrived.wait()
    await connection.close()
    with pytest.raises(errors.Unavailable, match="closed by us"):
        await task
    assert closed == [1]


async def test_a_peer_that_reads_no_more(tmp_path: Path) -> None:
    """What it doesn't read piles up to a bound, and the calls run into their deadlines."""
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        listener.bind(str(tmp_path / "deaf"))
        listener.listen()
        connection = await Connection.dial(str(tmp_path / "deaf"), peer="deaf")
        for _ in range(4):
            with pytest.raises(errors.DeadlineExceeded):
                await call(connection, bytes(1 << 20), timeout=0.02)
        assert connection._transport is not None
        assert connection._transport.get_write_buffer_size() < 2 << 20
        await connection.close()


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(errors.Unavailable, match="No such file"):
        await Connection.dial(str(tmp_path / "absent"), peer="nobody")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale"))
    with pytest.raises(errors.Unavailable, match="refused"):
        await Connection.dial(str(tmp_path / "stale"), peer="nobody")


async def test_the_redialler_makes_one_connection_for_all(peer: Peer) -> None:
    redialler = Redialler(str(peer.path), peer="the peer")
    await asyncio.gather(*(call(redialler) for _ in range(5)))
    assert peer.connections == 1
    assert redialler.connected
    await redialler.close()


async def test_the_redialler_dials_again(peer: Peer) -> None:
    redialler = Redialler(str(peer.path), peer="the peer")
    await call(redialler)
    peer.answer = lambda _: None
    task = asyncio.create_task(call(redialler))
    await until(lambda: len(peer.requests) == 2)
    peer.disconnect()
    with pytest.raises(errors.Unavailable):  # not repeated: it may have happened
        await task
    peer.answer = lambda request: ttrpc_pb2.Response(payload=b"again")
    assert await call(redialler, timeout=None) == b"again"
    assert (peer.connections, len(peer.requests)) == (2, 3)
    await redialler.close()
    with pytest.raises(errors.Unavailable, match="closed by us"):
        await call(redialler)


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("unix:///run/s/a", "/run/s/a"),
        ("/run/s/a", "/run/s/a"),
        ("unix://@name", "\0name"),
        ("@name", "\0name"),
        ("/containerd-shim/x", "/containerd-shim/x"),
        ("name", "\0name"),
    ],
)
def test_addresses(address: str, path: str) -> None:
    assert socket_path(address) == path


@pytest.mark.parametrize("address", ["vsock://3:1024", "hvsock:///a:1"])
def test_addresses_that_are_not_dialled(address: str) -> None:
    with pytest.raises(errors.Unimplemented, match=address):
        socket_path(address)


def test_an_empty_address() -> None:
    with pytest.raises(errors.InvalidArgument):
        socket_path("unix://")
