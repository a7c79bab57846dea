"""Remote command protocols: negotiation, status texts, terminal sizes, WebSocket channels."""

from __future__ import annotations

import base64
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zos_cri.wire.remotecommand import (
    CHANNELS,
    SPDY_PROTOCOLS,
    WEBSOCKET_PROTOCOLS,
    ChannelClosed,
    ChannelData,
    ChannelDecoder,
    ChannelEvent,
    RemoteCommandError,
    ResizeDecoder,
    StreamType,
    TerminalSize,
    WebSocketProtocol,
    encode_channel,
    exit_status,
    expected_streams,
    failure_status,
    header_list,
    negotiate,
    stream_type,
)

V5 = WebSocketProtocol("v5.channel.k8s.io", 5)
V4 = WebSocketProtocol("v4.channel.k8s.io", 4)
BASE64 = WebSocketProtocol("v4.base64.channel.k8s.io", 4, base64=True)


def test_the_clients_first_known_protocol_is_taken() -> None:
    # What client-go offers.
    offered = [f"v{n}.channel.k8s.io" for n in (5, 4, 3, 2)] + ["channel.k8s.io"]
    assert negotiate(["v9.channel.k8s.io", *offered], SPDY_PROTOCOLS) == "v5.channel.k8s.io"
    assert negotiate(["channel.k8s.io", "v4.channel.k8s.io"], SPDY_PROTOCOLS) == "channel.k8s.io"
    assert negotiate(["x"], SPDY_PROTOCOLS) is None
    assert negotiate([], SPDY_PROTOCOLS) is None


def test_header_lists() -> None:
    assert header_list(["a, b,,", " c "]) == ["a", "b", "c"]


def test_channels_have_the_numbers_of_the_protocol() -> None:
    assert [kind.value for kind in CHANNELS] == ["stdin", "stdout", "stderr", "error", "resize"]


@pytest.mark.parametrize(
    ("version", "tty", "expected"),
    [
        (4, False, {"error", "stdin", "stdout", "stderr"}),
        (4, True, {"error", "stdin", "stdout", "resize"}),
        (3, True, {"error", "stdin", "stdout", "resize"}),
        (2, True, {"error", "stdin", "stdout"}),
    ],
)
def test_expected_streams(version: int, tty: bool, expected: set[str]) -> None:
    kinds = expected_streams(version, stdin=True, stdout=True, stderr=True, tty=tty)
    assert {kind.value for kind in kinds} == expected
    assert expected_streams(version, stdin=False, stdout=False, stderr=False, tty=False) == {
        StreamType.ERROR
    }


def test_stream_types() -> None:
    assert stream_type({"streamtype": "resize"}) is StreamType.RESIZE
    for headers in ({}, {"streamtype": "data"}):
        with pytest.raises(RemoteCommandError, match="unexpected stream type"):
            stream_type(headers)


# Status.


def test_status_of_version_4() -> None:
    assert json.loads(exit_status(4, 0)) == {"metadata": {}, "status": "Success"}
    failed = json.loads(exit_status(5, 137))
    assert failed["status"] == "Failure"
    assert failed["reason"] == "NonZeroExitCode"
    assert failed["details"] == {"causes": [{"reason": "ExitCode", "message": "137"}]}
    broken = json.loads(failure_status(4, "no such container"))
    assert (broken["status"], broken["reason"], broken["code"]) == ("Failure", "InternalError", 500)
    assert broken["message"] == "Internal error occurred: no such container"


def test_status_of_earlier_versions_is_text_and_only_of_failures() -> None:
    assert exit_status(3, 0) == b""
    assert exit_status(1, 3) == b"command terminated with non-zero exit code: 3"
    assert failure_status(2, "no such container") == b"no such container"


# Terminal sizes.


def test_sizes_as_go_writes_them() -> None:
    decoder = ResizeDecoder()
    assert decoder.feed(b'{"Width":80,"Height":24}\n') == TerminalSize(80, 24)
    assert decoder.feed(b'{"Width":100,"Height":30}\n{"width":1,"height":2}') == TerminalSize(1, 2)


def test_sizes_in_pieces() -> None:
    decoder = ResizeDecoder()
    assert [decoder.feed(bytes((b,))) for b in b'{"Width":8,"Height":9}'][-1] == TerminalSize(8, 9)


@pytest.mark.parametrize("text", [b'{"Width":0,"Height":0}', b'{"Width":80,"Height":0}', b"{}"])
def test_zero_says_nothing(text: bytes) -> None:
    assert ResizeDecoder().feed(text) is None
    assert ResizeDecoder().feed(b'{"Width":8,"Height":9}' + text) == TerminalSize(8, 9)


@pytest.mark.parametrize(
    "text",
    [
        b"[1]",
        b"7",
        b"x",
        b'{"Width":-1,"Height":5}',
        b'{"Width":65536,"Height":5}',
        b'{"Width":1.5,"Height":5}',
        b'{"Width":true,"Height":5}',
        b'{"Width":"8","Height":5}',
        b'{"' + b"x" * 2000,
        b"{" + b'"a":[' * 5000,
    ],
)
def test_what_is_no_size(text: bytes) -> None:
    with pytest.raises(RemoteCommandError):
        ResizeDecoder().feed(text)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=6))
def test_garbage_sizes(pieces: list[bytes]) -> None:
    decoder = ResizeDecoder()
    for piece in pieces:
        try:
            decoder.feed(piece)
        except RemoteCommandError:
            return


def test_a_flood_of_sizes_leaves_only_the_newest() -> None:
    flood = b"".join(b'{"Width":%d,"Height":1}' % n for n in range(1, 10_001))
    assert ResizeDecoder().feed(flood) == TerminalSize(10_000, 1)


# Channels.


def feed(protocol: WebSocketProtocol, *fragments: bytes) -> list[ChannelEvent]:
    decoder = ChannelDecoder(protocol)
    return [
        event
        for index, fragment in enumerate(fragments)
        for event in decoder.feed(fragment, last=index == len(fragments) - 1)
    ]


def test_binary_channels() -> None:
    assert feed(V4, b"\x00hello") == [ChannelData(0, b"hello")]
    assert feed(V4, b"\x04{}") == [ChannelData(4, b"{}")]
    assert feed(V4, b"\x00") == []
    assert feed(V4, b"") == []


def test_fragments_are_handed_on_one_by_one() -> None:
    assert feed(V4, b"", b"\x00he", b"llo", b"") == [ChannelData(0, b"he"), ChannelData(0, b"llo")]


def test_close_is_version_5s() -> None:
    assert feed(V5, b"\xff\x00") == [ChannelClosed(0)]
    assert feed(V5, b"\xff", b"\x02", b"") == [ChannelClosed(2)]
    assert feed(V4, b"\xff\x00") == [ChannelData(255, b"\x00")]


@pytest.mark.parametrize("message", [b"\xff", b"\xff\x00\x01"])
def test_close_names_one_channel(message: bytes) -> None:
    with pytest.raises(RemoteCommandError):
        feed(V5, message)


def test_base64_channels() -> None:
    assert feed(BASE64, b"0Zm9v") == [ChannelData(0, b"foo")]
    assert feed(BASE64, b"0Zm", b"9vZg", b"==") == [ChannelData(0, b"foo"), ChannelData(0, b"f")]
    for damaged in (b"0Zm9", b"0Z*9v", b"0Zm9v=x"):
        with pytest.raises(RemoteCommandError, match="base64"):
            feed(BASE64, damaged)


def test_messages_go_out_with_their_channel() -> None:
    assert encode_channel(V4, 1, b"out") == b"\x01out"
    assert encode_channel(BASE64, 3, b"out") == b"3" + base64.b64encode(b"out")
    assert encode_channel(BASE64, 11, b"") == b";"  # as Go counts on from '9'


@settings(deadline=None)
@given(
    st.sampled_from(WEBSOCKET_PROTOCOLS),
    st.integers(0, 40),
    st.binary(max_size=200),
    st.lists(st.integers(0, 300), max_size=5),
)
def test_what_is_encoded_is_decoded_from_any_fragments(
    protocol: WebSocketProtocol, channel: int, data: bytes, cuts: list[int]
) -> None:
    message = encode_channel(protocol, channel, data)
    edges = [0, *sorted(min(cut, len(message)) for cut in cuts), len(message)]
    pieces = [message[a:b] for a, b in itertools.pairwise(edges)]
    events = feed(protocol, *pieces)
    assert all(isinstance(e, ChannelData) and e.channel == channel for e in events)
    assert b"".join(e.data for e in events if isinstance(e, ChannelData)) == data


@settings(deadline=None)
@given(
    st.sampled_from(WEBSOCKET_PROTOCOLS),
    st.lists(st.tuples(st.binary(max_size=9), st.booleans()), max_size=8),
)
def test_garbage_messages(protocol: WebSocketProtocol, pieces: list[tuple[bytes, bool]]) -> None:
    decoder = ChannelDecoder(protocol)
    for fragment, last in pieces:
        try:
            decoder.feed(fragment, last=last)
        except RemoteCommandError:
            return
