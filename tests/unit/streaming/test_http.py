"""The HTTP request in front of a session."""

from __future__ import annotations

import itertools
from http import HTTPStatus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zos_cri.streaming.http import (
    MAX_REQUEST,
    HttpError,
    Request,
    RequestParser,
    error_response,
    switching_protocols,
)

HEAD = (
    b"POST /exec/tok%41en?port=1&port=2 HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\n"
    b"Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io, channel.k8s.io\r\n"
    b"X-Stream-Protocol-Version: v1\r\nContent-Length: 0\r\n\r\n"
)


@settings(deadline=None)
@given(st.lists(st.integers(0, len(HEAD)), max_size=8))
def test_a_request_in_any_pieces(cuts: list[int]) -> None:
    parser, request = RequestParser(), None
    edges = [0, *sorted(cuts), len(HEAD)]
    for start, end in itertools.pairwise(edges):
        if end > start:
            assert request is None
            request = parser.feed(HEAD[start:end])
    assert request is not None
    assert (request.method, request.path, request.query) == (
        "POST",
        "/exec/tok%41en",
        "port=1&port=2",
    )
    assert request.items("x-stream-protocol-version") == [
        "v4.channel.k8s.io",
        "channel.k8s.io",
        "v1",
    ]
    assert request.upgrades_to("spdy/3.1")
    assert not request.upgrades_to("websocket")
    assert request.rest == b""


def test_the_sessions_first_bytes_are_kept() -> None:
    request = RequestParser().feed(HEAD + b"\x80\x03 and more")
    assert request is not None
    assert request.rest == b"\x80\x03 and more"


def test_an_upgrade_needs_both_headers() -> None:
    for headers in ((("upgrade", "SPDY/3.1"),), (("connection", "upgrade"),)):
        request = Request("GET", "/", "", "/", headers, b"")
        assert not request.upgrades_to("SPDY/3.1")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * MAX_REQUEST, 431),
        (b"GET /" + b"x" * MAX_REQUEST, 431),
        (b"\x80\x03\x00\x01 SPDY without a request\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", 413),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n", 400),
    ],
)
def test_what_is_refused(data: bytes, status: int) -> None:
    with pytest.raises(HttpError) as caught:
        RequestParser().feed(data)
    assert caught.value.status == status


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=100), max_size=5))
def test_garbage(pieces: list[bytes]) -> None:
    parser = RequestParser()
    for piece in pieces:
        try:
            parser.feed(piece)
        except HttpError:
            return


def test_answers() -> None:
    assert switching_protocols([("X-Stream-Protocol-Version", "v4.channel.k8s.io")]) == (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
        b"X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"
    )
    answer = error_response(HttpError(HTTPStatus.METHOD_NOT_ALLOWED, "no", [("Allow", "GET")]))
    assert answer.startswith(b"HTTP/1.1 405")
    assert b"\r\nAllow: GET\r\n" in answer
    assert answer.endswith(b"\r\n\r\nno\n")
