"""Exec, attach and port-forward over WebSocket channels, with the `websockets` library's client."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from tests.fakes.streaming import pattern
from tests.fakes.streaming_client import until
from zos_cri.streaming.backend import AttachRequest, ExecRequest, PortForwardRequest
from zos_cri.streaming.stream import MAX_BUFFERED

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fakes.streaming import FakeBackend
    from zos_cri.streaming.server import StreamingServer

V4 = "v4.channel.k8s.io"
V5 = "v5.channel.k8s.io"
BASE64 = "v4.base64.channel.k8s.io"


def execute(*cmd: str, **streams: bool) -> ExecRequest:
    return ExecRequest("c1", cmd, **({"stdout": True} | streams))


def client(url: str, *protocols: str) -> connect:
    offered = [Subprotocol(name) for name in protocols]
    return connect(
        url.replace("http", "ws", 1), subprotocols=offered or None, max_size=None, proxy=None
    )


async def drain(socket: ClientConnection) -> dict[int, bytes]:
    """What each channel carried until the server closed; the close code is 1000."""
    channels: dict[int, bytes] = {}
    async with asyncio.timeout(10):
        async for message in socket:  # ends well with code 1000 only
            if isinstance(message, str):
                number, data = int(message[0]), base64.b64decode(message[1:])
            else:
                number, data = message[0], message[1:]
            channels[number] = channels.get(number, b"") + data
    return channels


@pytest.mark.parametrize("protocol", [V4, V5, BASE64])
async def test_output_and_status(server: StreamingServer, protocol: str) -> None:
    url = server.exec_url(execute("both", "200000", stderr=True))
    async with client(url, "unknown", protocol) as socket:
        assert socket.subprotocol == protocol
        channels = await drain(socket)
    assert channels[1] == pattern(200_000)
    assert channels[2] == pattern(200_000, salt=7)
    assert json.loads(channels[3])["status"] == "Success"


@pytest.mark.parametrize("protocols", [(), ("channel.k8s.io",), ("base64.channel.k8s.io",)])
async def test_early_protocols_have_text_for_failures(
    server: StreamingServer, protocols: tuple[str, ...]
) -> None:
    async with client(server.exec_url(execute("exit", "3")), *protocols) as socket:
        assert socket.subprotocol == (protocols[0] if protocols else None)
        assert (await drain(socket))[3] == b"command terminated with non-zero exit code: 3"


async def test_the_first_message_is_empty(server: StreamingServer) -> None:
    # It tells the client that it is connected.
    for request, first in (
        (execute("hang"), b"\x01"),
        (ExecRequest("c1", ("hang",), stderr=True), b"\x02"),
        (ExecRequest("c1", ("hang",), stdin=True), b"\x03"),
    ):
        async with client(server.exec_url(request), V4) as socket:
            assert await socket.recv() == first


def _binary(channel: int, data: bytes) -> bytes:
    return bytes((channel,)) + data


def _base64(channel: int, data: bytes) -> str:
    return str(channel) + base64.b64encode(data).decode()


@pytest.mark.parametrize(("protocol", "encode"), [(V4, _binary), (BASE64, _base64)])
async def test_stdin_and_sizes(
    server: StreamingServer,
    backend: FakeBackend,
    protocol: str,
    encode: Callable[[int, bytes], Any],
) -> None:
    url = server.exec_url(execute("cat", stdin=True, tty=True))
    async with client(url, protocol) as socket:
        await socket.recv()
        await socket.send(encode(4, b'{"Width":80,"Height":24}'))
        await socket.send(encode(0, b"hello"))
        assert await socket.recv() in (b"\x01hello", encode(1, b"hello"))
        await socket.send(encode(1, b"clients don't write here"))
        await socket.send(encode(9, b"nor here"))
        await until(lambda: backend.processes[0].sizes == [(80, 24)])


async def test_version_5_ends_stdin(server: StreamingServer) -> None:
    async with client(server.exec_url(execute("cat", stdin=True)), V5) as socket:
        sent = pattern(1_000_000)
        reading = asyncio.create_task(drain(socket))
        await socket.send(b"\x00" + sent)
        await socket.send(b"\xff\x00")
        channels = await reading
    assert channels[1] == sent
    assert json.loads(channels[3])["status"] == "Success"


async def test_a_message_in_fragments(server: StreamingServer) -> None:
    async with client(server.exec_url(execute("cat", stdin=True)), V5) as socket:
        reading = asyncio.create_task(drain(socket))
        await socket.send([b"\x00one", b"two", b"", b"three"])
        await socket.send([b"\xff", b"\x00"])
        assert (await reading)[1] == b"onetwothree"


@pytest.mark.parametrize(
    ("protocol", "message", "code"),
    [(V5, b"\xff\x00\x00", 1003), (BASE64, "0not base64", 1003)],
)
async def test_damaged_messages(
    server: StreamingServer, backend: FakeBackend, protocol: str, message: Any, code: int
) -> None:
    async with client(server.exec_url(execute("hang", stdin=True)), protocol) as socket:
        await socket.recv()
        await socket.send(message)
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(socket.recv(), 10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == code
    await until(lambda: backend.open == 0)


async def test_unknown_protocols_are_refused(server: StreamingServer) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with client(server.exec_url(execute("hang")), "v9.channel.k8s.io"):
            pass
    assert refused.value.response.status_code == 403


async def test_attach_failure(server: StreamingServer, backend: FakeBackend) -> None:
    backend.attached_command = ("broken",)
    async with client(server.attach_url(AttachRequest("c1", stdout=True)), V4) as socket:
        status = json.loads((await drain(socket))[3])
        assert "error attaching to container: container c1 is not running" in status["message"]


@pytest.mark.parametrize("abrupt", [False, True])
async def test_a_client_that_leaves(
    server: StreamingServer, backend: FakeBackend, abrupt: bool
) -> None:
    async with client(server.exec_url(execute("hang", stdin=True)), V4) as socket:
        await socket.recv()
        await until(lambda: backend.open == 1)
        if abrupt:
            socket.transport.abort()
    await until(lambda: backend.open == 0)
    await until(lambda: server.connections == 0)


async def test_a_slow_process_slows_the_client(
    server: StreamingServer, backend: FakeBackend
) -> None:
    async with client(server.exec_url(execute("deaf", stdin=True)), V4) as socket:
        await socket.recv()

        async def flood() -> None:
            while True:
                await socket.send(b"\x00" + bytes(65536))

        flooding = asyncio.create_task(flood())
        (link,) = server._links
        await until(lambda: not link.reading)
        channel = link._receiver._user  # type: ignore[union-attr]
        assert channel.gauge.held < 2 * MAX_BUFFERED
        flooding.cancel()
        socket.transport.abort()
    async with asyncio.timeout(5):
        while not link.lost.done():  # reading is paused: what sees the end is a probe
            link._send_probe()
            await asyncio.sleep(0.01)
    await until(lambda: backend.open == 0)


# Port-forward: two channels a port.


@pytest.mark.parametrize("protocol", [V4, BASE64])
async def test_port_channels(server: StreamingServer, backend: FakeBackend, protocol: str) -> None:
    encode = _binary if protocol == V4 else _base64
    url = server.port_forward_url(PortForwardRequest("p1", (7, 1)))
    async with client(url, protocol) as socket:
        begin = [await socket.recv() for _ in range(4)]
        ports = [(7).to_bytes(2, "little")] * 2 + [(1).to_bytes(2, "little")] * 2
        assert begin == [encode(n, port) for n, port in enumerate(ports)]
        error = await socket.recv()
        await socket.send(encode(0, b"hello"))
        assert await socket.recv() == encode(0, b"hello")
        text = error[1:] if isinstance(error, bytes) else base64.b64decode(error[1:])
        assert b"error forwarding port 1 to pod p1" in text
    await until(lambda: backend.open == 0)


async def test_ports_from_the_query(server: StreamingServer) -> None:
    url = server.port_forward_url(PortForwardRequest("p1"))
    async with client(url + "?port=19,25&port=25", V4) as socket:
        channels = await drain(socket)
    assert channels[0][:2] == b"\x13\x00"
    assert len(channels[0]) == 2 + 3_000_000
    assert channels[2] == b"\x19\x00hello"
    assert channels[5] == b"\x19\x00"


@pytest.mark.parametrize("query", ["", "?port=", "?port=0", "?port=x", "?" + "port=1&" * 101])
async def test_no_ports(server: StreamingServer, query: str) -> None:
    url = server.port_forward_url(PortForwardRequest("p1"))
    with pytest.raises(InvalidStatus) as refused:
        async with client(url + query, V4):
            pass
    assert refused.value.response.status_code == 400
