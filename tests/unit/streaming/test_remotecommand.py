"""Exec and attach by SPDY: from the URL to the exit status."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from tests.fakes.streaming import pattern
from tests.fakes.streaming_client import (
    open_stream,
    open_streams,
    read_all,
    read_status,
    spdy_session,
    until,
)
from zos_cri.streaming.backend import AttachRequest, ExecRequest
from zos_cri.streaming.link import WRITE_HIGH
from zos_cri.streaming.server import StreamingServer
from zos_cri.streaming.stream import MAX_BUFFERED, StreamReset

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fakes.streaming import FakeBackend
    from zos_cri.streaming.spdy import SpdySession, SpdyStream


def execute(*cmd: str, **streams: bool) -> ExecRequest:
    return ExecRequest("c1", cmd, **({"stdout": True} | streams))


def exit_code(status: dict[str, object]) -> int:
    if status["status"] == "Success":
        return 0
    details = status["details"]
    assert isinstance(details, dict)
    return int(details["causes"][0]["message"])


async def test_stdin_to_stdout_and_the_exit(server: StreamingServer, backend: FakeBackend) -> None:
    request = execute("cat", stdin=True)
    async with spdy_session(server.exec_url(request)) as session:
        streams = await open_streams(session, "error", "stdin", "stdout")
        await streams["stdin"].write(b"hello")
        streams["stdin"].write_eof()
        assert await read_all(streams["stdout"]) == b"hello"
        assert exit_code(await read_status(streams["error"])) == 0
    assert backend.requests == [request]
    await until(lambda: backend.processes[0].closed == 1)


@pytest.mark.parametrize("code", [0, 1, 7, 137, 255])
async def test_exit_codes(server: StreamingServer, code: int) -> None:
    async with spdy_session(server.exec_url(execute("exit", str(code)))) as session:
        streams = await open_streams(session, "error", "stdout")
        assert exit_code(await read_status(streams["error"])) == code


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 3_000_001])
async def test_every_byte_comes_before_the_status(server: StreamingServer, size: int) -> None:
    async with spdy_session(server.exec_url(execute("bulk", str(size), "3"))) as session:
        streams = await open_streams(session, "error", "stdout")
        error = asyncio.create_task(read_status(streams["error"]))
        assert await read_all(streams["stdout"]) == pattern(size)
        assert exit_code(await error) == 3


async def test_stdout_and_stderr_are_kept_apart(server: StreamingServer) -> None:
    async with spdy_session(server.exec_url(execute("both", "300000", stderr=True))) as session:
        streams = await open_streams(session, "error", "stdout", "stderr")
        out, err = await asyncio.gather(read_all(streams["stdout"]), read_all(streams["stderr"]))
        assert out == pattern(300_000)
        assert err == pattern(300_000, salt=7)


async def test_terminal_sizes(server: StreamingServer, backend: FakeBackend) -> None:
    backend.starts.clear()
    request = execute("sizes", "2", tty=True, stdin=True)
    async with spdy_session(server.exec_url(request)) as session:
        streams = await open_streams(session, "error", "stdin", "stdout", "resize")
        await streams["resize"].write(b'{"Width":80,"Height":24}\n')
        await until(lambda: backend.requests)
        # Before the process runs: only the newest is kept.
        await streams["resize"].write(b'{"Width":90,"Height":25}\n')
        await streams["resize"].write(b'{"Width":0,"Height":0}\n')
        await asyncio.sleep(0.05)
        backend.starts.set()
        async with asyncio.timeout(5):
            assert await streams["stdout"].read() == b"90x25\n"
        await streams["resize"].write(b'{"Width":100,"Height":30}\n')
        assert await read_all(streams["stdout"]) == b"100x30\n"
        assert exit_code(await read_status(streams["error"])) == 0


async def test_damaged_sizes_are_not_the_sessions_end(server: StreamingServer) -> None:
    request = execute("cat", tty=True, stdin=True)
    async with spdy_session(server.exec_url(request)) as session:
        streams = await open_streams(session, "error", "stdin", "stdout", "resize")
        await streams["resize"].write(b"80 by 24")
        await streams["stdin"].write(b"x")
        streams["stdin"].write_eof()
        assert await read_all(streams["stdout"]) == b"x"


async def test_what_cannot_be_started_is_said(server: StreamingServer) -> None:
    async with spdy_session(server.exec_url(execute("broken"))) as session:
        streams = await open_streams(session, "error", "stdout")
        status = await read_status(streams["error"])
        assert status["status"] == "Failure"
        assert status["message"] == (
            "Internal error occurred: error executing command in container: "
            "container c1 is not running"
        )
        assert await read_all(streams["stdout"]) == b""


async def test_an_output_that_breaks_is_said(server: StreamingServer) -> None:
    async with spdy_session(server.exec_url(execute("broken-output"))) as session:
        streams = await open_streams(session, "error", "stdout")
        assert "Input/output error" in (await read_status(streams["error"]))["message"]


@pytest.mark.parametrize("protocol", ["channel.k8s.io", "v2.channel.k8s.io", "v3.channel.k8s.io"])
async def test_early_versions_have_text_for_failures_only(
    server: StreamingServer, protocol: str
) -> None:
    for cmd, expected in (
        ("exit 0", b""),
        ("exit 3", b"command terminated with non-zero exit code: 3"),
        ("broken", b"error executing command in container: container c1 is not running"),
    ):
        url = server.exec_url(execute(*cmd.split()))
        async with spdy_session(url, protocol) as session:
            streams = await open_streams(session, "error", "stdout")
            assert await read_all(streams["error"]) == expected
            assert await read_all(streams["stdout"]) == b""


async def test_closed_stdin_is_no_error(server: StreamingServer, backend: FakeBackend) -> None:
    url = server.exec_url(execute("closed-stdin", stdin=True))
    async with spdy_session(url) as session:
        streams = await open_streams(session, "error", "stdin", "stdout")
        for _ in range(3 * MAX_BUFFERED // 100_000):  # all of it is taken, and dropped
            await streams["stdin"].write(bytes(100_000))
        backend.processes[0].release.set()
        assert await read_all(streams["stdout"]) == b"done"
        assert exit_code(await read_status(streams["error"])) == 0


async def test_output_that_comes_after_the_exit(server: StreamingServer) -> None:
    async with spdy_session(server.exec_url(execute("late", "2000000"))) as session:
        streams = await open_streams(session, "error", "stdout")
        error = asyncio.create_task(read_status(streams["error"]))
        assert await read_all(streams["stdout"]) == pattern(2_000_000)
        assert exit_code(await error) == 4


async def test_an_output_kept_open_does_not_hold_the_exit_back(backend: FakeBackend) -> None:
    server = StreamingServer(backend)
    server._sessions._drain_timeout = 0.2
    await server.start()
    async with spdy_session(server.exec_url(execute("orphan"))) as session:
        streams = await open_streams(session, "error", "stdout")
        assert await read_all(streams["stdout"]) == b"out"
        assert exit_code(await read_status(streams["error"])) == 3
    await server.aclose()
    assert backend.open == 0


# Attach.


async def test_attach_ends_well_whatever_the_exit_code(
    server: StreamingServer, backend: FakeBackend
) -> None:
    backend.attached_command = ("bulk", "1000", "9")
    request = AttachRequest("c1", stdout=True)
    async with spdy_session(server.attach_url(request)) as session:
        streams = await open_streams(session, "error", "stdout")
        assert await read_all(streams["stdout"]) == pattern(1000)
        assert (await read_status(streams["error"]))["status"] == "Success"
    assert backend.requests == [request]


async def test_several_attach_at_once(server: StreamingServer, backend: FakeBackend) -> None:
    async def attach() -> bytes:
        url = server.attach_url(AttachRequest("c1", stdin=True, stdout=True))
        async with spdy_session(url) as session:
            streams = await open_streams(session, "error", "stdin", "stdout")
            await streams["stdin"].write(b"mine")
            streams["stdin"].write_eof()
            return await read_all(streams["stdout"])

    assert await asyncio.gather(*(attach() for _ in range(8))) == [b"mine"] * 8


async def test_attach_failure(server: StreamingServer, backend: FakeBackend) -> None:
    backend.attached_command = ("broken",)
    async with spdy_session(server.attach_url(AttachRequest("c1", stdout=True))) as session:
        streams = await open_streams(session, "error", "stdout")
        assert "error attaching to container" in (await read_status(streams["error"]))["message"]


# Streams that clients open, or don't.


@pytest.fixture
async def impatient(backend: FakeBackend) -> AsyncIterator[StreamingServer]:
    server = StreamingServer(backend, creation_timeout=0.2, linger=0.2)
    await server.start()
    yield server
    await server.aclose()


async def test_too_few_streams(impatient: StreamingServer, backend: FakeBackend) -> None:
    async with spdy_session(impatient.exec_url(execute("cat", stdin=True))) as session:
        streams = await open_streams(session, "error", "stdout")
        message = (await read_status(streams["error"]))["message"]
        assert "timed out waiting for the client's streams: stdin" in message
        assert backend.requests == []


async def test_streams_nobody_asked_for(server: StreamingServer) -> None:
    async with spdy_session(server.exec_url(execute("exit", "0"))) as session:
        for kind in ("data", ""):
            unknown = session.open_stream({"streamtype": kind})
            with pytest.raises(StreamReset):
                await unknown.read()
        error = await open_stream(session, streamtype="error")
        second = session.open_stream({"streamtype": "error"})
        with pytest.raises(StreamReset):
            await second.read()
        # Of a type that exists, though not asked for: taken, and ended.
        extra = await open_stream(session, streamtype="stderr")
        await open_stream(session, streamtype="stdout")
        assert await read_all(extra) == b""
        assert exit_code(await read_status(error)) == 0


# Clients that are slow or go away.


async def test_a_slow_client_slows_the_process(
    server: StreamingServer, backend: FakeBackend
) -> None:
    total = 50_000_000
    async with spdy_session(server.exec_url(execute("bulk", str(total)))) as session:
        session.link.pause_reading()
        streams = await _open_paused(session)
        process = backend.processes[0]
        seen = -1
        while process.stdout.total != seen:  # until it has come to rest
            seen = process.stdout.total
            await asyncio.sleep(0.2)
        # What is under way: the pipe, our queue, and the kernel's socket buffers on loopback.
        assert seen < 16_000_000
        assert process.stdout.high_water <= 64 * 1024
        (link,) = server._links
        assert link.queued <= WRITE_HIGH + 64 * 1024 + 100
        session.link.resume_reading()
        assert await read_all(streams["stdout"]) == pattern(total)
        assert exit_code(await read_status(streams["error"])) == 0


async def _open_paused(session: SpdySession) -> dict[str, SpdyStream]:
    """Opens streams without reading what the server sends; its replies come later."""
    streams = {kind: session.open_stream({"streamtype": kind}) for kind in ("error", "stdout")}
    await asyncio.sleep(0.1)
    return streams


async def test_a_slow_process_slows_the_client(
    server: StreamingServer, backend: FakeBackend
) -> None:
    async with spdy_session(server.exec_url(execute("deaf", stdin=True))) as session:
        streams = await open_streams(session, "error", "stdin", "stdout")

        async def flood() -> None:
            while True:
                await streams["stdin"].write(bytes(65536))

        flooding = asyncio.create_task(flood())
        (link,) = server._links
        await until(lambda: not link.reading)
        flooding.cancel()
        assert link._receiver.gauge.held < 2 * MAX_BUFFERED  # type: ignore[union-attr]
        assert backend.processes[0].closed == 0
    # Reading is paused, and the client's end is seen all the same: see test_link for how.
    async with asyncio.timeout(5):
        while not link.lost.done():
            link._send_probe()
            await asyncio.sleep(0.01)
    await until(lambda: backend.processes[0].closed == 1)


async def test_what_was_sent_too_much_is_read_when_the_process_has_ended(
    server: StreamingServer, backend: FakeBackend
) -> None:
    """Or the client's end, which comes behind it, wouldn't be seen."""
    async with spdy_session(server.exec_url(execute("deaf", stdin=True))) as session:
        streams = await open_streams(session, "error", "stdin", "stdout")
        status = asyncio.create_task(read_status(streams["error"]))

        async def flood() -> None:
            while True:
                await streams["stdin"].write(bytes(65536))

        flooding = asyncio.create_task(flood())
        (link,) = server._links
        await until(lambda: not link.reading)
        backend.processes[0].release.set()
        assert exit_code(await status) == 0
        await until(lambda: link.reading)
        flooding.cancel()
    await until(lambda: server.connections == 0)


@pytest.mark.parametrize("cmd", ["hang", "deaf", "cat"])
async def test_a_client_that_vanishes_leaves_nothing(
    server: StreamingServer, backend: FakeBackend, cmd: str
) -> None:
    async with spdy_session(server.exec_url(execute(cmd, stdin=True))) as session:
        streams = await open_streams(session, "error", "stdin", "stdout")
        await streams["stdin"].write(b"x")
        await until(lambda: backend.processes)
    await until(lambda: backend.processes[0].closed == 1)
    await until(lambda: server.connections == 0)


async def test_a_client_that_vanishes_before_the_start(
    server: StreamingServer, backend: FakeBackend
) -> None:
    backend.starts.clear()
    async with spdy_session(server.exec_url(execute("hang"))) as session:
        await open_streams(session, "error", "stdout")
        await until(lambda: backend.requests)
    await until(lambda: backend.cancelled_starts == 1)
    assert backend.processes == []


async def test_closing_is_finished_though_the_server_stops(
    server: StreamingServer, backend: FakeBackend
) -> None:
    async with spdy_session(server.exec_url(execute("hang"))) as session:
        await open_streams(session, "error", "stdout")
        await until(lambda: backend.processes)
        process = backend.processes[0]
        process.close_delay.clear()
    await until(lambda: process.closed == 1)
    stopping = asyncio.create_task(server.aclose())
    await asyncio.sleep(0.05)
    assert not stopping.done()
    process.close_delay.set()
    await stopping
    assert process.closed == 1
    assert process._task.done()


async def test_status_is_json_of_version_5_too(server: StreamingServer) -> None:
    async with spdy_session(server.exec_url(execute("exit", "2")), "v5.channel.k8s.io") as session:
        streams = await open_streams(session, "error", "stdout")
        assert exit_code(json.loads(await read_all(streams["error"]))) == 2
