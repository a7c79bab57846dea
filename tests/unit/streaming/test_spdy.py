"""SPDY sessions with waiting: windows, resets, failures."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from zos_cri.streaming.link import ConnectionLost
from zos_cri.streaming.spdy import Refused, SpdySession, SpdyStream
from zos_cri.streaming.stream import MAX_BUFFERED, StreamReset
from zos_cri.wire.spdy import INITIAL_WINDOW, Role
from zos_cri.wire.spdyframes import (
    Data,
    Decoder,
    Encoder,
    Frame,
    Goaway,
    Ping,
    RstStream,
    Settings,
    SynReply,
    SynStream,
    WindowUpdate,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class FakeLink:
    """A `ByteLink` that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.reading = True
        self.aborted = False
        self.full = asyncio.Event()
        self.full.set()

    def write(self, data: bytes) -> None:
        self.written += data

    async def drain(self) -> None:
        await self.full.wait()

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def abort(self) -> None:
        self.aborted = True


class Harness:
    """A server's session and a hand-made client."""

    def __init__(self, on_stream: Callable[[SpdyStream], None] | None = None) -> None:
        self.link = FakeLink()
        self.streams: list[SpdyStream] = []
        self.session = SpdySession(self.link, on_stream=on_stream or self.streams.append)
        self._encoder, self._decoder = Encoder(), Decoder()

    def send(self, *frames: Frame) -> None:
        self.session.data_received(b"".join(map(self._encoder.encode, frames)))

    def sent(self) -> list[Frame]:
        frames: list[Frame] = []
        self._decoder.feed(self.link.written, frames.append)
        self.link.written = b""
        return frames


async def test_a_reply_comes_before_data() -> None:
    harness = Harness()
    harness.send(SynStream(1, {"streamtype": "stdout"}))
    await harness.streams[0].write(b"x")
    assert harness.sent() == [SynReply(1, {}), Data(1, b"x")]
    assert harness.streams[0].headers == {"streamtype": "stdout"}


async def test_writes_wait_for_the_window() -> None:
    harness = Harness()
    harness.send(Settings(()), SynStream(1, {}))
    (stream,) = harness.streams
    writing = asyncio.create_task(stream.write(bytes(INITIAL_WINDOW + 10)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not writing.done()
    harness.sent()
    harness.send(WindowUpdate(1, 4), WindowUpdate(0, 100))
    await asyncio.sleep(0)
    assert harness.sent() == [Data(1, bytes(4))]
    harness.send(WindowUpdate(1, 6))
    await writing
    assert harness.sent() == [Data(1, bytes(6))]


async def test_a_reset_ends_reading_writing_and_waiting() -> None:
    harness = Harness()
    harness.send(Settings(()), SynStream(1, {}), SynStream(3, {}))
    stream, other = harness.streams
    writing = asyncio.create_task(stream.write(bytes(INITIAL_WINDOW + 10)))
    reading = asyncio.create_task(stream.read())
    waiting = asyncio.create_task(stream.wait_reset())
    await asyncio.sleep(0)
    harness.send(RstStream(1, 5))
    for task in (writing, reading):
        with pytest.raises(StreamReset):
            await task
    await waiting
    with pytest.raises(StreamReset):
        await stream.write(b"x")
    stream.write_eof()  # nothing
    stream.reset()
    harness.sent()
    other.write_eof()
    assert harness.sent() == [Data(3, b"", fin=True)]


async def test_writing_after_the_end() -> None:
    harness = Harness()
    harness.send(SynStream(1, {}))
    harness.streams[0].write_eof()
    harness.streams[0].write_eof()
    with pytest.raises(StreamReset, match="ended"):
        await harness.streams[0].write(b"x")


async def test_a_lost_connection() -> None:
    harness = Harness()
    harness.send(SynStream(1, {}))
    reading = asyncio.create_task(harness.streams[0].read())
    await asyncio.sleep(0)
    harness.session.connection_lost()
    with pytest.raises(ConnectionLost):
        await reading


async def test_refused_streams() -> None:
    def refuse(_stream: SpdyStream) -> None:
        raise Refused("no")

    harness = Harness(refuse)
    harness.send(SynStream(1, {}))
    assert harness.sent() == [RstStream(1, 3)]


async def test_too_much_unread_pauses_the_link() -> None:
    harness = Harness()
    harness.send(SynStream(1, {}), SynStream(3, {}))
    first, second = harness.streams
    harness.send(Data(1, bytes(MAX_BUFFERED)), Data(3, b"x"))
    assert not harness.link.reading
    assert await second.read() == b"x"
    assert not harness.link.reading
    first.discard()
    assert harness.link.reading


async def test_consumed_data_opens_the_peers_window() -> None:
    harness = Harness()
    harness.send(SynStream(1, {}), Data(1, bytes(40_000)))
    harness.sent()
    await harness.streams[0].read()
    assert harness.sent() == [WindowUpdate(1, 40_000), WindowUpdate(0, 40_000)]


async def test_streams_that_are_over_are_forgotten() -> None:
    harness = Harness()
    for stream_id in range(1, 200, 2):
        harness.send(SynStream(stream_id, {}), Data(stream_id, b"x", fin=True))
        stream = harness.streams[-1]
        stream.write_eof()
        assert await stream.read() == b"x"  # what had come is still to be had
        assert await stream.read() == b""
    assert harness.session._streams == {}


async def test_a_broken_peer_is_told_and_cut_off() -> None:
    harness = Harness()
    harness.send(SynStream(2, {}))
    assert harness.link.aborted
    assert harness.sent() == [Goaway(0, 1)]


async def test_goaway_and_probe() -> None:
    harness = Harness()
    harness.session.goaway()
    harness.session.probe()
    assert harness.sent() == [Goaway(0, 0), Ping(2)]


async def test_two_sessions() -> None:
    links = FakeLink(), FakeLink()
    accepted: list[SpdyStream] = []
    server = SpdySession(links[0], on_stream=accepted.append)
    client = SpdySession(links[1], on_stream=accepted.append, role=Role.CLIENT)
    stream = client.open_stream({"streamtype": "x"})
    server.data_received(links[1].written)
    client.data_received(links[0].written)
    assert stream.replied.is_set()
    assert accepted[0].headers == {"streamtype": "x"}
