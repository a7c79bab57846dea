"""Against Go: client-go's clients here, and our client core on the server other runtimes use."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ROOT, TOOLS
from tests.fakes.streaming import BULK, pattern
from tests.fakes.streaming_client import (
    open_stream,
    raw,
    read_all,
    spdy_request,
    spdy_session,
    until,
)
from zos_cri.streaming.backend import AttachRequest, ExecRequest, PortForwardRequest
from zos_cri.wire.spdy import Role, Session
from zos_cri.wire.spdyevents import (
    ConnectionFailed,
    DataReceived,
    StreamEnded,
    StreamReset,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.fakes.streaming import FakeBackend
    from zos_cri.streaming.link import Link
    from zos_cri.streaming.server import StreamingServer

pytestmark = pytest.mark.go

TRANSPORTS = ("spdy", "websocket")
DEADLINE = 60.0


@pytest.fixture(scope="session")
def peer() -> str:
    """The Go program; built where that hasn't been done, or from other sources."""
    build = [sys.executable, str(ROOT / "hack" / "tools" / "build"), "streamingpeer"]
    subprocess.run(build, check=True, timeout=600, stdout=subprocess.DEVNULL)
    return str(TOOLS / "streamingpeer")


@pytest.fixture
async def go(peer: str) -> Callable[..., Awaitable[dict[str, Any]]]:
    async def run(*args: str) -> dict[str, Any]:
        process = await asyncio.create_subprocess_exec(
            peer, *args, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), DEADLINE)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise
        assert process.returncode == 0, err.decode()
        result: dict[str, Any] = json.loads(out)
        return result

    return run


def execute(*cmd: str, **streams: bool) -> ExecRequest:
    return ExecRequest("c1", cmd, **({"stdout": True} | streams))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("size", [0, 1, 65_536, 30_000_000])
async def test_stdin_to_stdout(server: StreamingServer, go: Any, transport: str, size: int) -> None:
    url = server.exec_url(execute("cat", stdin=True))
    result = await go("process", "-url", url, "-transport", transport, "-stdin", str(size))
    assert result["stdin"]["bytes"] == result["stdout"]["bytes"] == size
    assert result["stdin"]["sha256"] == result["stdout"]["sha256"]
    assert result["exit_code"] == 0
    assert "error" not in result


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_outputs_and_exit_codes(server: StreamingServer, go: Any, transport: str) -> None:
    url = server.exec_url(execute("both", "1000000", stderr=True))
    result = await go("process", "-url", url, "-transport", transport, "-stderr")
    assert result["stdout"]["sha256"] == sha256(pattern(1_000_000))
    assert result["stderr"]["sha256"] == sha256(pattern(1_000_000, salt=7))
    for size in (0, 1, 131_072, 777_777):
        url = server.exec_url(execute("bulk", str(size), "42"))
        result = await go("process", "-url", url, "-transport", transport)
        assert result["stdout"]["sha256"] == sha256(pattern(size))
        assert result["exit_code"] == 42


@pytest.mark.parametrize(
    "protocol",
    [*(f"v{number}.channel.k8s.io" for number in (5, 4, 3, 2)), "channel.k8s.io"],
)
async def test_every_spdy_version(server: StreamingServer, go: Any, protocol: str) -> None:
    url = server.exec_url(execute("bulk", "100000"))
    result = await go("process", "-url", url, "-protocols", protocol)
    assert result["stdout"]["sha256"] == sha256(pattern(100_000))
    url = server.exec_url(execute("exit", "3"))
    result = await go("process", "-url", url, "-protocols", protocol)
    if protocol[:2] in ("v4", "v5"):
        assert result["exit_code"] == 3
    else:
        assert "command terminated with non-zero exit code: 3" in result["error"]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_terminal(server: StreamingServer, go: Any, transport: str) -> None:
    url = server.exec_url(execute("sizes", "2", tty=True, stdin=True))
    args = ("-tty", "-stdin", "-2", "-sizes", "80x24,0x0,100x30")
    result = await go("process", "-url", url, "-transport", transport, *args)
    assert result["stdout"]["head"].endswith("100x30\n")
    assert result["exit_code"] == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_attach_and_failures(
    server: StreamingServer, backend: FakeBackend, go: Any, transport: str
) -> None:
    backend.attached_command = ("bulk", "1000", "9")
    url = server.attach_url(AttachRequest("c1", stdout=True))
    result = await go("process", "-url", url, "-transport", transport)
    assert (result["stdout"]["bytes"], result["exit_code"]) == (1000, 0)
    url = server.exec_url(execute("broken"))
    result = await go("process", "-url", url, "-transport", transport)
    assert "container c1 is not running" in result["error"]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_slow_client_gets_all(server: StreamingServer, go: Any, transport: str) -> None:
    url = server.exec_url(execute("bulk", "3000000", "5"))
    result = await go("process", "-url", url, "-transport", transport, "-slow", "2000000")
    assert result["stdout"]["sha256"] == sha256(pattern(3_000_000))
    assert result["exit_code"] == 5


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_client_that_breaks_off(
    server: StreamingServer, backend: FakeBackend, go: Any, transport: str
) -> None:
    url = server.exec_url(execute("bulk", "300000000"))
    await go("process", "-url", url, "-transport", transport, "-vanish")
    await until(lambda: backend.processes and backend.open == 0)
    await until(lambda: server.connections == 0)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("extra", [(), ("-listener",)])
async def test_forwarding(
    server: StreamingServer, backend: FakeBackend, go: Any, transport: str, extra: tuple[str]
) -> None:
    url = server.port_forward_url(PortForwardRequest("p1"))
    args = ("-count", "300", "-parallel", "8", "-size", "20000")
    result = await go("forward", "-url", url, "-transport", transport, *args, *extra)
    assert result["connections"] == 300
    assert result["received"] == 300 * 20_000
    assert result["wrong"] == result["errors"] == []
    await until(lambda: backend.open == 0)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_forwarding_in_one_direction(
    server: StreamingServer, go: Any, transport: str
) -> None:
    url = server.port_forward_url(PortForwardRequest("p1"))
    args = ("forward", "-transport", transport, "-echo=false", "-url")
    result = await go(*args, url, "-ports", "9", "-size", "5000000")
    assert result["first"]["head"].startswith("5000000 ")
    url = server.port_forward_url(PortForwardRequest("p1"))
    result = await go(*args, url, "-ports", "19", "-size", "0")
    assert result["first"]["sha256"] == sha256(pattern(BULK))


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_connections_that_fail_leave_others(
    server: StreamingServer, go: Any, transport: str
) -> None:
    url = server.port_forward_url(PortForwardRequest("p1"))
    args = ("-ports", "7,1,25", "-count", "60", "-echo=false", "-stuck", "3")
    result = await go("forward", "-url", url, "-transport", transport, *args)
    assert result["connections"] == 60
    assert len(result["errors"]) == 20
    assert all("error forwarding port 1 to pod p1" in text for text in result["errors"])
    assert result["received"] == 20 * 1000 + 20 * len("hello")


# The other direction: our core is the client.


@pytest.fixture
async def urls(peer: str) -> AsyncIterator[dict[str, str]]:
    process = await asyncio.create_subprocess_exec(
        peer, "serve", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    yield json.loads(await asyncio.wait_for(process.stdout.readline(), DEADLINE))
    process.stdin.close()
    await asyncio.wait_for(process.wait(), DEADLINE)


class Recorder:
    """A SPDY client that keeps all it gets: Go's server resets its streams when it is done.

    It sends no WINDOW_UPDATE, which that server doesn't look at: it closes its socket with what
    came last unread, so the kernel resets the connection and drops output that is under way.
    """

    def __init__(self, link: Link, rest: bytes) -> None:
        self.core = Session(Role.CLIENT)
        self.data: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self._link = link
        link.attach(self)
        self.data_received(rest)

    def flush(self) -> None:
        self._link.write(b"".join(self.core.data_to_send()))

    def data_received(self, data: bytes) -> None:
        for event in self.core.receive_data(data):
            assert not isinstance(event, ConnectionFailed)
            if isinstance(event, DataReceived):
                kept = self.data.get(event.stream_id, b"")
                self.data[event.stream_id] = kept + event.data
            elif isinstance(event, (StreamEnded, StreamReset)):
                self.ended.add(event.stream_id)
        self.flush()

    def connection_lost(self) -> None:
        pass

    def probe(self) -> None:
        pass


async def test_our_client_on_gos_server(urls: dict[str, str]) -> None:
    sent = pattern(1_000_000)
    for name, kinds, stdout, status in (
        ("cat", ("error", "stdout", "stdin"), sha256(sent), b'{"status":"Success"}'),
        ("exit", ("error", "stdout"), sha256(b""), b'"reason":"ExitCode","message":"7"'),
    ):
        async with raw(urls[name]) as answer:
            answer.link.write(spdy_request(urls[name], "v4.channel.k8s.io"))
            await answer.headed.wait()
            client = Recorder(answer.link, answer.rest)
            for kind in kinds:
                client.core.open_stream({"streamType": kind})
            if "stdin" in kinds:
                for start in range(0, len(sent), 50_000):
                    client.core.send_data(5, sent[start : start + 50_000])
                client.core.end_stream(5)
            client.flush()
            await until(lambda: {1, 3} <= client.ended)  # noqa: B023
            assert sha256(client.data.get(3, b"")) == stdout
            assert status in client.data[1]


async def test_our_client_forwards_through_gos_server(urls: dict[str, str]) -> None:
    async with spdy_session(urls["forward"], "portforward.k8s.io") as session:
        for number in range(20):
            fields = {"port": "80", "requestid": str(number)}
            error = await open_stream(session, streamtype="error", **fields)
            error.write_eof()
            data = await open_stream(session, streamtype="data", **fields)
            sent = pattern(100_000, salt=number)
            await data.write(sent)
            data.write_eof()
            assert await read_all(data) == sent
