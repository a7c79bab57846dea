"""SPDY frames: round trips, any chunking, bounds, and bytes that Go's library really sent."""

from __future__ import annotations

import hashlib
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zos_cri.wire.spdyframes import (
    HEADER_DICTIONARY,
    MAX_CONTROL_LENGTH,
    MAX_DATA_LENGTH,
    MAX_HEADER_BLOCK,
    MAX_HEADERS,
    Data,
    Decoder,
    Encoder,
    Frame,
    Goaway,
    Headers,
    LocalProtocolError,
    Ping,
    ProtocolError,
    RstStream,
    Settings,
    SynReply,
    SynStream,
    WindowUpdate,
    parse_header_block,
)

ids = st.integers(1, (1 << 31) - 1)
words = st.integers(0, (1 << 32) - 1)
names = st.from_regex(r"[a-z:][a-z0-9-]{0,20}", fullmatch=True)
headers = st.dictionaries(names, st.text(st.characters(max_codepoint=255), max_size=50), max_size=8)
frames: st.SearchStrategy[Frame] = st.one_of(
    st.builds(
        SynStream,
        ids,
        headers,
        fin=st.booleans(),
        unidirectional=st.booleans(),
        associated_id=st.integers(0, 100),
        priority=st.integers(0, 7),
    ),
    st.builds(SynReply, ids, headers, fin=st.booleans()),
    st.builds(Headers, ids, headers, fin=st.booleans()),
    st.builds(RstStream, ids, words),
    st.builds(
        Settings,
        st.lists(st.tuples(st.integers(0, 0xFFFFFF), words), max_size=5).map(tuple),
        clear=st.booleans(),
    ),
    st.builds(Ping, words),
    st.builds(Goaway, ids, words),
    st.builds(WindowUpdate, ids, st.integers(0, (1 << 31) - 1)),
    st.builds(Data, ids, st.binary(max_size=300), fin=st.booleans()),
)


def decode(*pieces: bytes) -> list[Frame]:
    """Frames of bytes in pieces, pieces of one data frame joined."""
    decoder, out = Decoder(), list[Frame]()
    for piece in pieces:
        decoder.feed(piece, out.append)
    return join_data(out)


def join_data(pieces: list[Frame]) -> list[Frame]:
    joined: list[Frame] = []
    for frame in pieces:
        last = joined[-1] if joined else None
        if (
            isinstance(frame, Data)
            and isinstance(last, Data)
            and last.stream_id == frame.stream_id
            and not last.fin
        ):
            joined[-1] = Data(frame.stream_id, last.payload + frame.payload, frame.fin)
        else:
            joined.append(frame)
    return joined


def control(kind: int, body: bytes, *, version: int = 3, flags: int = 0) -> bytes:
    return struct.pack(">HHI", 0x8000 | version, kind, flags << 24 | len(body)) + body


def test_dictionary_is_the_drafts() -> None:
    # Of draft-mbelshe-httpbis-spdy-00, section 2.6.10.1, and of Go's library.
    digest = "51d27341373f923f3cd88e1eb7162aeaa3723d7585ff2399201dc06498407f02"
    assert hashlib.sha256(HEADER_DICTIONARY).hexdigest() == digest


@settings(deadline=None)
@given(st.lists(frames, max_size=8), st.data())
def test_frames_survive_any_chunking(sent: list[Frame], data: st.DataObject) -> None:
    encoder = Encoder()
    wire = b"".join(encoder.encode(frame) for frame in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=10)))
    pieces = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    assert decode(*pieces) == join_data(sent)


@settings(deadline=None)
@given(st.lists(frames, min_size=1, max_size=4))
def test_single_bytes_will_do(sent: list[Frame]) -> None:
    encoder = Encoder()
    wire = b"".join(encoder.encode(frame) for frame in sent)
    assert decode(*(bytes((byte,)) for byte in wire)) == join_data(sent)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=5))
def test_garbage_raises_nothing_but_the_protocols_error(pieces: list[bytes]) -> None:
    decoder = Decoder()
    for piece in pieces:
        try:
            decoder.feed(piece, lambda _frame: None)
        except ProtocolError:
            return


@settings(deadline=None)
@given(st.sampled_from([1, 2, 3, 4, 6, 7, 8, 9, 10, 77]), st.binary(max_size=60), st.integers(0, 3))
def test_garbage_in_control_frames(kind: int, body: bytes, flags: int) -> None:
    try:
        Decoder().feed(control(kind, body, flags=flags), lambda _frame: None)
    except ProtocolError as error:
        assert str(error)  # noqa: PT017


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_garbage_header_blocks(block: bytes) -> None:
    try:
        parse_header_block(block)
    except ProtocolError as error:
        assert str(error)  # noqa: PT017


def test_names_go_out_in_lower_case() -> None:
    sent = Encoder().encode(SynStream(1, {"streamType": "error"}))
    assert decode(sent) == [SynStream(1, {"streamtype": "error"})]


def test_what_go_writes_for_two_streams() -> None:
    # http.Header{"Streamtype": {"error"}} and {"Streamtype": {"data"}} on one connection of
    # moby/spdystream: the second block refers back to the first by zlib's state.
    compressor = zlib.compressobj(9, zdict=HEADER_DICTIONARY)

    def block(value: bytes) -> bytes:
        raw = struct.pack(">II", 1, 10) + b"streamtype" + struct.pack(">I", len(value)) + value
        return compressor.compress(raw) + compressor.flush(zlib.Z_SYNC_FLUSH)

    wire = control(1, struct.pack(">IIBB", 1, 0, 0, 0) + block(b"error"))
    wire += control(1, struct.pack(">IIBB", 3, 0, 0, 0) + block(b"data"))
    assert decode(wire) == [
        SynStream(1, {"streamtype": "error"}),
        SynStream(3, {"streamtype": "data"}),
    ]


def test_data_is_handed_on_as_it_comes() -> None:
    decoder, out = Decoder(), list[Frame]()
    decoder.feed(struct.pack(">II", 5, 1 << 24 | MAX_DATA_LENGTH), out.append)
    decoder.feed(b"abc", out.append)
    assert out == [Data(5, b"abc")]
    decoder.feed(b"x" * (MAX_DATA_LENGTH - 3), out.append)
    assert isinstance(out[-1], Data)
    assert out[-1].fin


def test_empty_data_frame_carries_the_end() -> None:
    assert decode(struct.pack(">II", 5, 1 << 24)) == [Data(5, b"", fin=True)]


def test_unknown_control_frames_are_passed_over() -> None:
    assert decode(control(10, b"credential"), control(6, b"\0\0\0\1")) == [Ping(1)]


def test_frames_before_a_broken_one_are_delivered() -> None:
    out: list[Frame] = []
    wire = control(6, b"\0\0\0\1") + control(6, b"")
    with pytest.raises(ProtocolError, match="type 6 of 0 bytes"):
        Decoder().feed(wire, out.append)
    assert out == [Ping(1)]


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        (control(6, b"\0\0\0\1", version=2), "version 2"),
        (struct.pack(">HHI", 0x8003, 1, MAX_CONTROL_LENGTH + 1), "control frame of"),
        (control(4, struct.pack(">I", 2) + bytes(8)), "says it has 2"),
        (control(1, struct.pack(">IIBB", 1, 0, 0, 0) + b"no zlib"), "header block"),
        (control(9, b"\0\0\0\1"), "type 9 of 4 bytes"),
    ],
)
def test_broken_frames(wire: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        decode(wire)


def test_header_bomb_is_not_inflated() -> None:
    compressor = zlib.compressobj(9, zdict=HEADER_DICTIONARY)
    bomb = compressor.compress(bytes(50 * 1024 * 1024)) + compressor.flush(zlib.Z_SYNC_FLUSH)
    assert len(bomb) < MAX_CONTROL_LENGTH
    with pytest.raises(ProtocolError, match=f"more than {MAX_HEADER_BLOCK} bytes"):
        decode(control(1, struct.pack(">IIBB", 1, 0, 0, 0) + bomb))


def string(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (b"", "inside a length"),
        (struct.pack(">I", 1), "inside a length"),
        (struct.pack(">I", 1) + struct.pack(">I", 9) + b"short", "inside a string"),
        (struct.pack(">I", MAX_HEADERS + 1), "are more than"),
        (struct.pack(">I", 1) + string(b"Name") + string(b""), "not in lower case"),
        (struct.pack(">I", 1) + string(b"") + string(b""), "is empty"),
        (struct.pack(">I", 2) + (string(b"a") + string(b"b")) * 2, "stands twice"),
        (struct.pack(">I", 0) + b"more", "4 bytes after"),
    ],
)
def test_broken_header_blocks(block: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        parse_header_block(block)


def test_what_cannot_be_sent() -> None:
    with pytest.raises(LocalProtocolError):
        Encoder().encode(Data(1, bytes(MAX_DATA_LENGTH + 1)))
    with pytest.raises(LocalProtocolError):
        Encoder().encode(SynStream(1, {"a": "b" * MAX_HEADER_BLOCK}))
    with pytest.raises(LocalProtocolError):
        Encoder().encode(SynStream(1, {str(n): "" for n in range(MAX_HEADERS + 1)}))
