"""NRI's frames: the bytes, whatever way they are cut, and what breaks the connection."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zos_cri.wire import nrimux, ttrpc
from zos_cri.wire.nrimux import Broken, Mux, PayloadTooLarge, Received, Truncated, frames


def joined(events: list[nrimux.Event]) -> dict[int, bytes]:
    result: dict[int, bytes] = {}
    for event in events:
        assert isinstance(event, Received), event
        result[event.channel] = result.get(event.channel, b"") + event.data
    return result


def test_the_bytes_of_a_frame() -> None:
    assert frames(2, b"abc") == b"\0\0\0\x02\0\0\0\x03abc"


def test_the_rest_of_a_long_message_is_one_frame() -> None:
    """As Go's bufio writes it, and as upstream's reader can take it."""
    message = bytes(range(256)) * 64
    events = Mux().receive_data(frames(1, message))
    assert [len(event.data) for event in events if isinstance(event, Received)] == [4096, 12288]
    assert joined(events) == {1: message}


def test_the_largest_message() -> None:
    message = bytes(ttrpc.HEADER_LENGTH + ttrpc.MAX_DATA_LENGTH)
    assert joined(Mux().receive_data(frames(1, message))) == {1: message}


def test_other_channels_are_dropped() -> None:
    events = Mux().receive_data(frames(7, b"x") + frames(2, b"y") + frames(0, b"z"))
    assert events == [Received(2, b"y")]


def test_an_empty_frame_says_nothing() -> None:
    assert Mux().receive_data(struct.pack(">II", 1, 0)) == []


def test_a_frame_that_is_too_large_breaks_the_connection() -> None:
    mux = Mux()
    events = mux.receive_data(frames(1, b"x") + struct.pack(">II", 1, nrimux.MAX_PAYLOAD + 1))
    assert events[0] == Received(1, b"x")
    assert isinstance(events[1], Broken)
    assert isinstance(events[1].error, PayloadTooLarge)
    assert mux.error is events[1].error
    assert mux.receive_data(frames(1, b"x")) == []
    assert mux.receive_eof() == []


@pytest.mark.parametrize("length", [1, 8, 10])
def test_an_end_inside_a_frame_breaks_it(length: int) -> None:
    mux = Mux()
    assert mux.receive_data(frames(1, b"abc")[:length]) == []
    (event,) = mux.receive_eof()
    assert isinstance(event, Broken)
    assert isinstance(event.error, Truncated)


def test_an_end_between_frames_is_none() -> None:
    mux = Mux()
    mux.receive_data(frames(1, b"abc"))
    assert mux.receive_eof() == []


@given(
    st.lists(st.tuples(st.sampled_from((1, 2)), st.binary(min_size=1, max_size=9000)), max_size=5),
    st.integers(1, 5000),
)
def test_cuts_say_nothing(messages: list[tuple[int, bytes]], size: int) -> None:
    stream = b"".join(frames(channel, data) for channel, data in messages)
    mux = Mux()
    events: list[nrimux.Event] = []
    for start in range(0, len(stream), size):
        events += mux.receive_data(stream[start : start + size])
    expected: dict[int, bytes] = {}
    for channel, data in messages:
        expected[channel] = expected.get(channel, b"") + data
    assert joined(events) == expected
