"""Received bytes that wait for their reader, and what they may amount to."""

from __future__ import annotations

import asyncio

import pytest

from zos_cri.streaming.stream import Gauge, Inbox, StreamReset


class Source:
    """Counts what is consumed; notes pauses."""

    def __init__(self, limit: int = 100) -> None:
        self.consumed = 0
        self.log: list[str] = []
        self.gauge = Gauge(
            pause=lambda: self.log.append("pause"),
            resume=lambda: self.log.append("resume"),
            limit=limit,
        )
        self.inbox = Inbox(self.gauge, self._consumed)

    def _consumed(self, count: int) -> None:
        self.consumed += count


async def test_bytes_in_order_and_then_the_end() -> None:
    source = Source()
    source.inbox.feed(b"abc")
    source.inbox.feed(b"d")
    source.inbox.feed_eof()
    assert [await source.inbox.read(2) for _ in range(5)] == [b"ab", b"c", b"d", b"", b""]
    assert source.consumed == 4
    assert source.gauge.held == 0


async def test_a_reader_waits() -> None:
    source = Source()
    reading = asyncio.create_task(source.inbox.read(10))
    await asyncio.sleep(0)
    source.inbox.feed(b"late")
    assert await reading == b"late"
    reading = asyncio.create_task(source.inbox.read(10))
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait([reading])
    source.inbox.feed(b"kept")
    assert await source.inbox.read(10) == b"kept"


async def test_too_much_pauses_and_half_of_it_resumes() -> None:
    source = Source(limit=100)
    source.inbox.feed(bytes(100))
    assert source.log == []
    source.inbox.feed(bytes(1))
    source.inbox.feed(bytes(50))
    assert source.log == ["pause"]
    await source.inbox.read(100)
    assert source.log == ["pause"]
    await source.inbox.read(100)
    assert source.log == ["pause", "resume"]


async def test_an_error_drops_what_is_held() -> None:
    source = Source(limit=10)
    source.inbox.feed(bytes(11))
    source.inbox.fail(StreamReset("reset"))
    source.inbox.fail(StreamReset("another"))
    with pytest.raises(StreamReset, match=r"^reset$"):
        await source.inbox.read(1)
    source.inbox.feed(bytes(5))
    assert (source.consumed, source.gauge.held) == (16, 0)
    assert source.log == ["pause", "resume"]


async def test_discarding_holds_nothing() -> None:
    source = Source()
    source.inbox.feed(bytes(7))
    source.inbox.discard()
    source.inbox.feed(bytes(5))
    source.inbox.feed_eof()
    assert (source.consumed, source.gauge.held) == (12, 0)
    assert await source.inbox.read(1) == b""
