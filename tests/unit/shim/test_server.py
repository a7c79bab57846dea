"""The server's shell, asked by our client and by peers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from tests.fakes.shim import until
from zos_cri import errors
from zos_cri._pb import ttrpc_pb2
from zos_cri.shim import server as server_module
from zos_cri.shim.client import Connection
from zos_cri.shim.server import Server
from zos_cri.wire import ttrpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path


class Service:
    """Handlers with a gate, to have several of them running."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0
        self.gate = asyncio.Event()

    async def echo(self, payload: bytes, metadata: Mapping[str, str]) -> bytes:
        return payload + repr(dict(metadata)).encode()

    async def wait(self, payload: bytes, metadata: Mapping[str, str]) -> bytes:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        return payload

    async def fail(self, payload: bytes, metadata: Mapping[str, str]) -> bytes:
        raise errors.AlreadyExists("it is there")

    async def crash(self, payload: bytes, metadata: Mapping[str, str]) -> bytes:
        raise KeyError("a bug")

    async def large(self, payload: bytes, metadata: Mapping[str, str]) -> bytes:
        return bytes(ttrpc.MAX_DATA_LENGTH)


def at_once(payload: bytes) -> bytes:
    if payload == b"refused":
        raise errors.AlreadyExists("it is there")
    if payload == b"bug":
        raise KeyError("a bug")
    return payload * 2


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
async def server(tmp_path: Path, service: Service) -> AsyncIterator[Server]:
    names = ("echo", "wait", "fail", "crash", "large")
    server = Server(
        {("S", name): getattr(service, name) for name in names},
        instant={("S", "at_once"): at_once},
        max_in_flight=3,
    )
    await server.start(str(tmp_path / "socket"))
    yield server
    service.gate.set()
    await server.close()
    assert not (tmp_path / "socket").exists()


@pytest.fixture
async def client(server: Server, tmp_path: Path) -> AsyncIterator[Connection]:
    client = await Connection.dial(str(tmp_path / "socket"), peer="server")
    yield client
    await client.close()


async def call(
    client: Connection, method: str, payload: bytes = b"", timeout: float | None = 5
) -> bytes:
    return await client.call("S", method, payload, timeout=timeout, metadata={"k": "v"})


async def test_a_call(client: Connection) -> None:
    assert await call(client, "echo", b"x") == b"x{'k': 'v'}"


async def test_unknown_names_are_unimplemented(client: Connection) -> None:
    with pytest.raises(errors.Unimplemented, match="S/other isn't served"):
        await call(client, "other")


async def test_errors_are_told_by_their_codes(client: Connection) -> None:
    with pytest.raises(errors.AlreadyExists, match="it is there"):
        await call(client, "fail")


async def test_a_bug_is_told_as_internal_and_logged(
    client: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(errors.Internal, match="a bug"):
        await call(client, "crash")
    assert "ttrpc handler failed" in caplog.text


async def test_a_response_that_is_too_large(client: Connection) -> None:
    with pytest.raises(errors.ResourceExhausted, match="ttrpc allows"):
        await call(client, "large")


async def test_handlers_run_at_once_up_to_the_bound(client: Connection, service: Service) -> None:
    payloads = [b"%d" % number for number in range(10)]
    tasks = [asyncio.create_task(call(client, "wait", payload)) for payload in payloads]
    await until(lambda: service.running == 3)
    assert not any(task.done() for task in tasks)
    service.gate.set()
    assert await asyncio.gather(*tasks) == payloads
    assert service.most == 3


async def test_the_caller_s_deadline_ends_the_handler(
    tmp_path: Path, server: Server, service: Service
) -> None:
    request = ttrpc_pb2.Request(service="S", method="wait", timeout_nano=20_000_000)
    response = await exchange(tmp_path, ttrpc.Frame(1, 1, 0, request.SerializeToString()))
    assert response.status.code == 4
    assert service.running == 0


async def test_what_is_no_request(tmp_path: Path, server: Server) -> None:
    response = await exchange(tmp_path, ttrpc.Frame(1, 1, 0, b"\xff"))
    assert response.status.code == 3


async def test_streaming_is_unimplemented(tmp_path: Path, server: Server) -> None:
    request = ttrpc_pb2.Request(service="S", method="echo").SerializeToString()
    response = await exchange(tmp_path, ttrpc.Frame(1, 1, ttrpc.Flag.REMOTE_OPEN, request))
    assert response.status.code == 12


async def test_a_peer_that_breaks_the_protocol_is_hung_up_on(
    tmp_path: Path, client: Connection, service: Service
) -> None:
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "socket"))
    writer.write(b"\xff" * 10)
    with contextlib.suppress(ConnectionResetError):  # or an end, as the kernel likes
        assert await reader.read() == b""
    writer.close()
    assert await call(client, "echo") == b"{'k': 'v'}"  # the others don't notice


async def test_a_peer_that_goes_away_ends_its_handlers(
    client: Connection, service: Service
) -> None:
    task = asyncio.create_task(call(client, "wait"))
    await until(lambda: service.running)
    await client.close()
    with pytest.raises(errors.Unavailable):
        await task
    await until(lambda: not service.running)


async def test_the_socket_is_for_us_alone(server: Server, tmp_path: Path) -> None:
    assert stat.S_IMODE(os.stat(tmp_path / "socket").st_mode) == 0o600


async def test_peers_of_another_user_are_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_peer_credentials", lambda _: (1, os.geteuid() + 1))
    client = await Connection.dial(str(tmp_path / "socket"), peer="server")
    with pytest.raises(errors.Unavailable):
        await call(client, "echo")
    await client.close()
    assert server.connections == set()


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "socket"))
    server = Server({})
    await server.start(str(tmp_path / "socket"))
    await server.close()
    await server.close()


async def test_a_living_server_is_not_replaced(server: Server, tmp_path: Path) -> None:
    with pytest.raises(errors.AlreadyExists, match="another process listens"):
        await Server({}).start(str(tmp_path / "socket"))


async def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "socket").write_text("precious")
    with pytest.raises(errors.AlreadyExists, match="isn't a socket"):
        await Server({}).start(str(tmp_path / "socket"))
    assert (tmp_path / "socket").read_text() == "precious"


async def exchange(tmp_path: Path, frame: ttrpc.Frame) -> ttrpc_pb2.Response:
    """Sends one frame; the response."""
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "socket"))
    writer.write(frame.serialize())
    header = await reader.readexactly(10)
    data = await reader.readexactly(int.from_bytes(header[:4], "big"))
    writer.close()
    await writer.wait_closed()
    return ttrpc_pb2.Response.FromString(data)


async def test_what_is_answered_at_once_waits_for_nobody(
    service: Service, client: Connection
) -> None:
    waiting = [asyncio.create_task(call(client, "wait")) for _ in range(3)]  # all that may run
    await until(lambda: service.running == 3)
    assert await call(client, "at_once", b"x") == b"xx"
    with pytest.raises(errors.AlreadyExists, match="it is there"):
        await call(client, "at_once", b"refused")
    with pytest.raises(errors.Internal, match="a bug"):
        await call(client, "at_once", b"bug")
    assert await call(client, "at_once", b"y") == b"yy"  # and the connection is as it was
    service.gate.set()
    await asyncio.gather(*waiting)
