"""Port-forward by SPDY: connections that don't disturb each other and lose nothing."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

import pytest

from tests.fakes.streaming import BULK, pattern
from tests.fakes.streaming_client import (
    open_stream,
    read_all,
    spdy_session,
    until,
)
from zos_cri.streaming.backend import PortForwardRequest
from zos_cri.streaming.server import StreamingServer
from zos_cri.streaming.stream import StreamReset

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fakes.streaming import FakeBackend
    from zos_cri.streaming.spdy import SpdySession, SpdyStream

PROTOCOL = "portforward.k8s.io"


@pytest.fixture
async def session(server: StreamingServer) -> AsyncIterator[SpdySession]:
    url = server.port_forward_url(PortForwardRequest("p1"))
    async with spdy_session(url, PROTOCOL) as session:
        yield session


class Numbers:
    count = 0


async def connect(session: SpdySession, port: int) -> tuple[SpdyStream, SpdyStream]:
    """The data and the error stream of a new connection, as client-go opens them."""
    Numbers.count += 1
    fields = {"port": str(port), "requestid": str(Numbers.count)}
    error = await open_stream(session, streamtype="error", **fields)
    error.write_eof()
    return await open_stream(session, streamtype="data", **fields), error


async def test_echo_with_half_close(session: SpdySession, backend: FakeBackend) -> None:
    data, error = await connect(session, 7)
    await data.write(b"hello")
    data.write_eof()
    assert await read_all(data) == b"hello"
    assert await read_all(error) == b""
    assert backend.requests == [("p1", 7)]
    await until(lambda: backend.connections[0].closed == 1)
    await until(lambda: session.core.open_streams == 0)


async def test_the_pod_ends_first_and_goes_on_reading(
    session: SpdySession, backend: FakeBackend
) -> None:
    data, error = await connect(session, 19)
    assert await read_all(data) == pattern(BULK)
    assert await read_all(error) == b""  # nothing holds the client back
    await data.write(b"said after the pod's end")
    data.write_eof()
    await until(lambda: backend.connections[0].to_pod.total == 24)
    await until(lambda: backend.connections[0].closed == 1)


async def test_the_client_ends_first(session: SpdySession) -> None:
    data, _ = await connect(session, 9)
    await data.write(pattern(BULK))
    data.write_eof()
    digest = hashlib.sha256(pattern(BULK)).hexdigest()
    assert await read_all(data) == f"{BULK} {digest}".encode()


async def test_a_refused_port_is_its_own_streams_error(session: SpdySession) -> None:
    other, _ = await connect(session, 7)
    data, error = await connect(session, 1)
    text = await read_all(error)
    assert text.startswith(b"error forwarding port 1 to pod p1: ")
    assert b"refused" in text
    with pytest.raises(StreamReset):
        await data.read()
    await other.write(b"goes on")
    other.write_eof()
    assert await read_all(other) == b"goes on"


async def test_a_reset_by_the_pod_is_its_own_streams(session: SpdySession) -> None:
    data, error = await connect(session, 25)
    assert await data.read() == b"hello"
    with pytest.raises(StreamReset):
        await data.read()
    # No text: client-go would give up the whole session for it.
    assert await read_all(error) == b""
    data, _ = await connect(session, 7)
    data.write_eof()
    assert await read_all(data) == b""


async def test_a_reset_by_the_client_closes_the_connection(
    session: SpdySession, backend: FakeBackend
) -> None:
    data, error = await connect(session, 7)
    await data.write(b"x")
    await data.read()
    data.reset()
    assert await read_all(error) == b""
    await until(lambda: backend.connections[0].closed == 1)


async def test_a_reset_ends_a_connection_that_is_stuck(
    session: SpdySession, backend: FakeBackend
) -> None:
    data, _ = await connect(session, 11)
    await data.write(bytes(100_000))
    await until(lambda: backend.connections[0].to_pod.total == 65536)
    data.reset()
    await until(lambda: backend.connections[0].closed == 1)


async def test_a_stuck_connection_does_not_hold_up_others(session: SpdySession) -> None:
    stuck = [(await connect(session, 11))[0] for _ in range(4)]
    for data in stuck:
        await data.write(bytes(100_000))
    for _ in range(10):
        data, _ = await connect(session, 9)
        await data.write(bytes(500_000))
        data.write_eof()
        assert (await read_all(data)).startswith(b"500000 ")


async def test_many_at_a_time(session: SpdySession) -> None:
    async def one(number: int) -> None:
        data, _ = await connect(session, 7)
        sent = pattern(20_000, salt=number)
        await data.write(sent)
        data.write_eof()
        assert await read_all(data) == sent

    await asyncio.gather(*(one(number) for number in range(100)))


async def test_a_thousand_in_a_row(session: SpdySession, backend: FakeBackend) -> None:
    for number in range(1000):
        data, error = await connect(session, 7)
        await data.write(b"%d" % number)
        data.write_eof()
        assert await read_all(data) == b"%d" % number
        assert await read_all(error) == b""
    await until(lambda: backend.open == 0)
    assert session.core.open_streams == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"streamtype": "stdin", "port": "7"},
        {"streamtype": "data"},
        {"streamtype": "data", "port": "0"},
        {"streamtype": "data", "port": "http"},
    ],
)
async def test_streams_that_are_refused(session: SpdySession, headers: dict[str, str]) -> None:
    stream = session.open_stream(headers)
    with pytest.raises(StreamReset):
        await stream.read()
    data, _ = await connect(session, 7)
    data.write_eof()
    assert await read_all(data) == b""


@pytest.mark.parametrize("kind", ["data", "error"])
async def test_half_a_pair(backend: FakeBackend, kind: str) -> None:
    server = StreamingServer(backend, creation_timeout=0.1)
    await server.start()
    url = server.port_forward_url(PortForwardRequest("p1"))
    async with spdy_session(url, PROTOCOL) as session:
        stream = await open_stream(session, streamtype=kind, port="7", requestid="x")
        if kind == "error":
            assert b"timed out waiting for the data stream" in await stream.read()
        else:
            with pytest.raises(StreamReset):
                await stream.read()
        await until(lambda: not session.core.is_open(stream.id))
        data, _ = await connect(session, 7)
        data.write_eof()
        assert await read_all(data) == b""
    await server.aclose()


async def test_a_client_that_vanishes_leaves_nothing(
    server: StreamingServer, backend: FakeBackend
) -> None:
    url = server.port_forward_url(PortForwardRequest("p1"))
    async with spdy_session(url, PROTOCOL) as session:
        for port in (7, 11, 19):
            await connect(session, port)
        await open_stream(session, streamtype="data", port="7", requestid="lonely")
        await until(lambda: len(backend.connections) == 3)
    await until(lambda: backend.open == 0)
    await until(lambda: server.connections == 0)
