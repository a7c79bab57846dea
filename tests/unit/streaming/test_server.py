"""URLs, tokens, and what an HTTP server has to withstand."""

from __future__ import annotations

import asyncio
import socket
import ssl
import stat
import subprocess
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.fakes.streaming_client import (
    V4,
    get,
    open_streams,
    raw,
    read_all,
    request,
    spdy_request,
    spdy_session,
    until,
)
from zos_cri.errors import InvalidArgument, ResourceExhausted
from zos_cri.streaming.backend import AttachRequest, ExecRequest, PortForwardRequest
from zos_cri.streaming.server import StreamingServer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes.streaming import FakeBackend

EXEC = ExecRequest("c1", ("exit", "0"), stdout=True)


async def run(url: str) -> bytes:
    async with spdy_session(url) as session:
        streams = await open_streams(session, "error", "stdout")
        return await read_all(streams["error"])


async def test_urls_name_their_kind(server: StreamingServer) -> None:
    assert server.base_url.startswith("http://127.0.0.1:")
    assert server.exec_url(EXEC).startswith(server.base_url + "/exec/")
    assert server.attach_url(AttachRequest("c1", stdin=True)).startswith(
        server.base_url + "/attach/"
    )
    forward = server.port_forward_url(PortForwardRequest("p1"))
    assert forward.startswith(server.base_url + "/portforward/")


@pytest.mark.parametrize(
    "wrong",
    [
        ExecRequest("", ("x",), stdout=True),
        ExecRequest("c1", (), stdout=True),
        ExecRequest("c1", ("x",)),
        ExecRequest("c1", ("x",), tty=True, stdout=True, stderr=True),
    ],
)
async def test_wrong_exec_requests(server: StreamingServer, wrong: ExecRequest) -> None:
    with pytest.raises(InvalidArgument):
        server.exec_url(wrong)


async def test_wrong_attach_and_forward_requests(server: StreamingServer) -> None:
    with pytest.raises(InvalidArgument):
        server.attach_url(AttachRequest("c1"))
    with pytest.raises(InvalidArgument):
        server.port_forward_url(PortForwardRequest(""))
    with pytest.raises(InvalidArgument):
        server.port_forward_url(PortForwardRequest("p1", (80, 65536)))


async def test_a_token_works_once(server: StreamingServer, backend: FakeBackend) -> None:
    url = server.exec_url(EXEC)
    assert b"Success" in await run(url)
    assert (await get(url, spdy_request(url, V4))).status == 404
    assert len(backend.requests) == 1


async def test_two_at_once_with_one_token(server: StreamingServer, backend: FakeBackend) -> None:
    url = server.exec_url(EXEC)
    async with raw(url) as first, raw(url) as second:
        for answer in (first, second):
            answer.link.write(spdy_request(url, V4))
        await until(lambda: first.headed.is_set() and second.headed.is_set())
        assert sorted([first.status, second.status]) == [101, 404]


async def test_tokens_expire(backend: FakeBackend) -> None:
    server = StreamingServer(backend, token_lifetime=0.05)
    await server.start()
    url = server.exec_url(EXEC)
    await asyncio.sleep(0.06)
    assert (await get(url, spdy_request(url, V4))).status == 404
    await server.aclose()


async def test_too_many_waiting(backend: FakeBackend) -> None:
    server = StreamingServer(backend, max_tokens=2)
    await server.start()
    server.exec_url(EXEC)
    server.exec_url(EXEC)
    with pytest.raises(ResourceExhausted):
        server.exec_url(EXEC)
    await server.aclose()


async def test_a_refused_upgrade_leaves_the_token(server: StreamingServer) -> None:
    # A client that tries WebSocket first comes again with SPDY and the same URL.
    url = server.exec_url(EXEC)
    refused = await get(
        url,
        request(
            url,
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Protocol", "v9.channel.k8s.io"),
            method="GET",
        ),
    )
    assert refused.status == 403
    assert b"Success" in await run(url)


async def test_unknown_paths_and_tokens(server: StreamingServer) -> None:
    base, url = server.base_url, server.exec_url(EXEC)
    token = url.rsplit("/", 1)[1]
    for wrong in (
        f"{base}/",
        f"{base}/exec",
        f"{base}/exec/",
        f"{base}/exec/{'x' * 43}",
        f"{base}/attach/{token}",
        f"{base}/portforward/{token}",
        f"{base}/exec/{token}/",
        f"{base}//exec/{token}",
        f"{base}/metrics",
    ):
        assert (await get(wrong, spdy_request(wrong, V4))).status == 404, wrong
    assert b"Success" in await run(url)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD", "OPTIONS"])
async def test_wrong_methods(server: StreamingServer, method: str) -> None:
    url = server.exec_url(EXEC)
    answer = await get(url, request(url, method=method))
    assert answer.status == 405
    assert ("allow", "GET, POST") in answer.headers


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_both_methods_upgrade(server: StreamingServer, method: str) -> None:
    url = server.exec_url(EXEC)
    async with raw(url) as answer:
        answer.link.write(spdy_request(url, "v9", V4).replace(b"POST", method.encode(), 1))
        await answer.headed.wait()
        assert answer.status == 101
        assert ("x-stream-protocol-version", V4) in answer.headers


async def test_what_is_no_upgrade(server: StreamingServer) -> None:
    url = server.exec_url(EXEC)
    assert (await get(url, request(url))).status == 400
    assert (await get(url, request(url, ("Upgrade", "SPDY/3.1")))).status == 400
    assert (await get(url, spdy_request(url))).status == 400  # no version header
    refused = await get(url, spdy_request(url, "v9.channel.k8s.io"))
    assert refused.status == 403
    accepted = [v for k, v in refused.headers if k == "x-accepted-stream-protocol-versions"]
    assert accepted[0] == "v5.channel.k8s.io"
    assert len(accepted) == 5


async def test_oversized_requests(server: StreamingServer) -> None:
    url = server.exec_url(EXEC)
    for data in (b"GET /" + b"x" * 70_000, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 10_000):
        assert (await get(url, data)).status == 431


async def test_garbage_instead_of_a_request(server: StreamingServer) -> None:
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"\x80\x03\x00\x01" + bytes(9) + b"\r\n\r\n",
    ):
        assert (await get(server.base_url, data)).status == 400
    assert b"Success" in await run(server.exec_url(EXEC))


async def test_slow_requests_are_cut_off(backend: FakeBackend) -> None:
    server = StreamingServer(backend, creation_timeout=0.3)
    await server.start()
    url = server.exec_url(EXEC)
    async with raw(url) as silent, raw(url) as slow:
        loop = asyncio.get_running_loop()
        start = loop.time()
        for byte in spdy_request(url, V4):
            if slow.closed.is_set():
                break
            slow.link.write(bytes((byte,)))
            await asyncio.sleep(0.02)
        await asyncio.wait_for(silent.closed.wait(), 30)
        assert slow.closed.is_set()
        assert loop.time() - start > 0.25
        assert not slow.received
    await until(lambda: server.connections == 0)
    await server.aclose()


async def test_idle_sessions_are_ended(backend: FakeBackend) -> None:
    server = StreamingServer(backend, idle_timeout=1.5)
    await server.start()
    hang = ExecRequest("c1", ("hang",), stdin=True, stdout=True)
    async with spdy_session(server.exec_url(hang)) as session:
        streams = await open_streams(session, "error", "stdin", "stdout")
        for _ in range(16):  # busy longer than the timeout
            await streams["stdin"].write(b"x")
            await asyncio.sleep(0.1)
        assert backend.open == 1
        await until(lambda: backend.open == 0)
    await server.aclose()


async def test_too_many_connections(backend: FakeBackend) -> None:
    server = StreamingServer(backend, max_connections=2)
    await server.start()
    url = server.base_url + "/"
    async with raw(url), raw(url):
        await until(lambda: server.connections == 2)
        async with raw(url) as third:
            await asyncio.wait_for(third.closed.wait(), 30)
            assert third.status == 503
    await until(lambda: server.connections == 0)
    assert (await get(url, request(url))).status == 404
    await server.aclose()


async def test_unix_socket(backend: FakeBackend, tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    server = StreamingServer(backend, socket_path=str(path))
    await server.start()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    url = server.exec_url(EXEC)
    assert url.startswith(f"http+unix://{quote(str(path), safe='')}/exec/")
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(spdy_request("http://unix/exec/" + url.rsplit("/", 1)[1], V4))
    assert (await reader.readline()).startswith(b"HTTP/1.1 101")
    writer.close()
    await writer.wait_closed()
    await server.aclose()
    assert not path.exists()


async def test_a_file_in_the_sockets_place_is_kept(backend: FakeBackend, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(OSError, match="in use"):
        await StreamingServer(backend, socket_path=str(path)).start()
    assert path.read_text() == "data"


async def test_tls(backend: FakeBackend, tmp_path: Path) -> None:
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    argv = [*command.split(), "-keyout", key, "-out", cert, *subject]
    making = await asyncio.create_subprocess_exec(*argv, stderr=subprocess.DEVNULL)
    assert await making.wait() == 0
    server = StreamingServer(backend, tls_cert=cert, tls_key=key, creation_timeout=2.0)
    await server.start()
    url = server.exec_url(EXEC)
    assert url.startswith("https://127.0.0.1:")
    port = int(server.base_url.rsplit(":", 1)[1])
    context = ssl.create_default_context(cafile=cert)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(spdy_request(url, V4))
    assert (await reader.readline()).startswith(b"HTTP/1.1 101")
    writer.close()
    await writer.wait_closed()
    # A client that speaks no TLS is not counted for ever.
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(spdy_request(url, V4))
    await asyncio.wait_for(reader.read(), 30)
    writer.close()
    await writer.wait_closed()
    await until(lambda: server.connections == 0)
    await server.aclose()


async def test_half_a_tls_configuration(backend: FakeBackend) -> None:
    with pytest.raises(InvalidArgument):
        StreamingServer(backend, tls_cert="cert.pem")


async def test_base_url(backend: FakeBackend) -> None:
    server = StreamingServer(backend, base_url="https://node:10443/")
    await server.start()
    assert server.exec_url(EXEC).startswith("https://node:10443/exec/")
    await server.aclose()
    await server.aclose()  # idempotent


async def test_stopping_ends_sessions(backend: FakeBackend) -> None:
    server = StreamingServer(backend)
    await server.start()
    hang = ExecRequest("c1", ("hang",), stdout=True)
    async with spdy_session(server.exec_url(hang)) as session:
        await open_streams(session, "error", "stdout")
        await until(lambda: backend.open == 1)
        await server.aclose()
        assert backend.open == 0
        assert server.connections == 0
