"""Clients of the streaming server, made of this project's own protocol cores in the other role."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from zos_cri.streaming.link import Link
from zos_cri.streaming.spdy import SpdySession, SpdyStream
from zos_cri.wire.spdy import Role

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from zos_cri.streaming.link import Receiver

DEADLINE = 10.0
V4 = "v4.channel.k8s.io"


async def until(condition: Callable[[], object]) -> None:
    """Waits for a condition that nothing announces."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.002)


class Answer:
    """An HTTP answer, and the link behind an upgrade."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.received = b""
        self.closed = asyncio.Event()
        self.headed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.received += data
        if b"\r\n\r\n" in self.received:
            self.headed.set()

    def connection_lost(self) -> None:
        self.closed.set()
        self.headed.set()

    def probe(self) -> None:
        pass

    @property
    def status(self) -> int:
        return int(self.received.split(b" ", 2)[1])

    @property
    def headers(self) -> list[tuple[str, str]]:
        head = self.received.split(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
        return [(k.lower(), v) for k, v in (line.split(": ", 1) for line in head)]

    @property
    def rest(self) -> bytes:
        return self.received.split(b"\r\n\r\n", 1)[1]


async def connect(url: str, make: Callable[[Link], Receiver]) -> Link:
    """A link to a URL's server."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    loop = asyncio.get_running_loop()
    _, link = await loop.create_connection(lambda: Link(make), parts.hostname, parts.port)
    return link


@asynccontextmanager
async def raw(url: str) -> AsyncIterator[Answer]:
    """A connection that takes what comes."""
    link = await connect(url, Answer)
    answer = link._receiver
    assert isinstance(answer, Answer)
    try:
        yield answer
    finally:
        link.abort()
        await link.lost


def request(url: str, *headers: tuple[str, str], method: str = "POST") -> bytes:
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    lines = [f"{method} {target} HTTP/1.1", f"Host: {parts.netloc}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode()


def spdy_request(url: str, *protocols: str) -> bytes:
    upgrade = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")]
    return request(url, *upgrade, *(("X-Stream-Protocol-Version", name) for name in protocols))


async def get(url: str, data: bytes) -> Answer:
    """The answer to one request, when its connection has ended."""
    async with raw(url) as answer, asyncio.timeout(DEADLINE):
        answer.link.write(data)
        await answer.closed.wait()
        return answer


@asynccontextmanager
async def spdy_session(url: str, *protocols: str) -> AsyncIterator[SpdySession]:
    """A SPDY session in the client's role."""
    async with raw(url) as answer, asyncio.timeout(DEADLINE * 3):
        answer.link.write(spdy_request(url, *(protocols or (V4,))))
        await answer.headed.wait()
        assert answer.status == 101, answer.received

        def unexpected(stream: SpdyStream) -> None:
            raise AssertionError("servers open no streams")

        session = SpdySession(answer.link, on_stream=unexpected, role=Role.CLIENT)
        answer.link.attach(session)
        session.data_received(answer.rest)
        yield session


async def open_stream(session: SpdySession, **headers: str) -> SpdyStream:
    stream = session.open_stream(headers)
    async with asyncio.timeout(DEADLINE):
        await stream.replied.wait()
    return stream


async def open_streams(session: SpdySession, *kinds: str) -> dict[str, SpdyStream]:
    return {kind: await open_stream(session, streamtype=kind) for kind in kinds}


async def read_all(stream: SpdyStream) -> bytes:
    parts = []
    async with asyncio.timeout(DEADLINE):
        while data := await stream.read():
            parts.append(data)
    return b"".join(parts)


async def read_status(stream: SpdyStream) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(await read_all(stream))
    return status
