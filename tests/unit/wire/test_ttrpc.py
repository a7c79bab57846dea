"""ttrpc's frames and streams: transcripts, both roles on one wire, and whatever bytes there are."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zos_cri.wire import ttrpc
from zos_cri.wire.ttrpc import (
    BadStreamId,
    Broken,
    Client,
    Flag,
    Frame,
    FrameTooLarge,
    FrameType,
    LocalProtocolError,
    RequestReceived,
    ResponseReceived,
    Server,
    StreamState,
    TruncatedFrame,
    UnexpectedFrame,
    UnknownFrameType,
)


def request(stream_id: int, data: bytes = b"", flags: int = 0) -> bytes:
    return Frame(stream_id, FrameType.REQUEST, flags, data).serialize()


def response(stream_id: int, data: bytes = b"") -> bytes:
    return Frame(stream_id, FrameType.RESPONSE, 0, data).serialize()


def data(stream_id: int, content: bytes = b"", flags: int = 0) -> bytes:
    return Frame(stream_id, FrameType.DATA, flags, content).serialize()


def broken(events: list[ttrpc.Event]) -> type[Exception] | None:
    """The error that a connection ended with."""
    return type(events[-1].error) if events and isinstance(events[-1], Broken) else None


class TestFrames:
    def test_the_bytes_of_a_frame(self) -> None:
        frame = Frame(3, FrameType.REQUEST, 0, b"abc")
        assert frame.serialize() == b"\0\0\0\x03\0\0\0\x03\x01\0abc"
        assert str(frame) == "REQUEST stream=3 flags=0 3 bytes"
        assert str(Frame(1, 9)) == "type 9 stream=1 flags=0 0 bytes"

    def test_the_largest_message_is_sent_and_received(self) -> None:
        client, server = Client(), Server()
        content = bytes(ttrpc.MAX_DATA_LENGTH)
        client.request(content)
        assert server.receive_data(client.data_to_send()) == [RequestReceived(1, content)]

    def test_a_larger_one_is_not_sent_and_harms_nothing(self) -> None:
        client = Client()
        with pytest.raises(LocalProtocolError, match="4194305 bytes"):
            client.request(bytes(ttrpc.MAX_DATA_LENGTH + 1))
        assert client.data_to_send() == b""
        assert client.open_streams == 0
        assert client.request(b"") == 1

    def test_a_larger_response_leaves_the_stream_to_be_answered(self) -> None:
        server = Server()
        server.receive_data(request(1))
        with pytest.raises(LocalProtocolError):
            server.respond(1, bytes(ttrpc.MAX_DATA_LENGTH + 1))
        server.respond(1, b"an error")
        assert server.data_to_send() == response(1, b"an error")

    @pytest.mark.parametrize("role", [Client, Server])
    def test_an_oversized_header_breaks_before_its_data(self, role: type[Client | Server]) -> None:
        core = role()
        header = struct.pack(">IIBB", ttrpc.MAX_DATA_LENGTH + 1, 1, 1, 0)
        assert broken(core.receive_data(header)) is FrameTooLarge
        assert isinstance(core.error, FrameTooLarge)

    @pytest.mark.parametrize("kind", [0, 4, 255])
    def test_an_unknown_type(self, kind: int) -> None:
        assert (
            broken(Server().receive_data(struct.pack(">IIBB", 0, 1, kind, 0))) is UnknownFrameType
        )

    def test_the_end_inside_a_frame(self) -> None:
        server = Server()
        assert server.receive_data(request(1, b"abc")[:-1]) == []
        assert broken(server.receive_eof()) is TruncatedFrame
        assert server.receive_eof() == []

    def test_the_end_between_frames(self) -> None:
        server = Server()
        server.receive_data(request(1))
        assert server.receive_eof() == []
        assert server.error is None

    def test_nothing_is_taken_or_sent_after_a_break(self) -> None:
        client = Client()
        client.request(b"")
        client.receive_data(response(2))
        assert client.receive_data(response(1)) == []
        with pytest.raises(LocalProtocolError, match="broken"):
            client.request(b"")

    def test_events_before_the_break_are_kept(self) -> None:
        events = Server().receive_data(request(1, b"good") + request(1, b"again"))
        assert events[0] == RequestReceived(1, b"good")
        assert broken(events) is BadStreamId


class TestClient:
    def test_ids_are_odd_and_grow(self) -> None:
        client = Client()
        assert [client.request(b"") for _ in range(3)] == [1, 3, 5]

    def test_responses_in_any_order(self) -> None:
        client = Client()
        for _ in range(3):
            client.request(b"")
        events = client.receive_data(response(5, b"c") + response(1, b"a") + response(3, b"b"))
        assert events == [
            ResponseReceived(5, b"c"),
            ResponseReceived(1, b"a"),
            ResponseReceived(3, b"b"),
        ]
        assert client.open_streams == 0

    def test_a_late_response_is_dropped(self) -> None:
        client = Client()
        client.request(b"")
        client.abandon(1)
        assert client.state(1) is StreamState.ABANDONED
        assert client.receive_data(response(1, b"late")) == []
        assert client.error is None
        assert client.open_streams == 0

    def test_abandoning_what_is_over_does_nothing(self) -> None:
        client = Client()
        client.request(b"")
        client.receive_data(response(1))
        client.abandon(1)
        assert client.open_streams == 0

    @pytest.mark.parametrize(
        "wrong", [response(3), response(0), response(2), request(1), data(1), data(1, b"", 1)]
    )
    def test_what_a_server_may_not_send(self, wrong: bytes) -> None:
        client = Client()
        client.request(b"")
        assert broken(client.receive_data(wrong)) is UnexpectedFrame

    def test_a_second_response(self) -> None:
        client = Client()
        client.request(b"")
        assert broken(client.receive_data(response(1) + response(1))) is UnexpectedFrame

    def test_ids_come_to_an_end(self) -> None:
        client = Client()
        client._last_stream_id = ttrpc.MAX_STREAM_ID
        with pytest.raises(LocalProtocolError, match="used up"):
            client.request(b"")


class TestServer:
    def test_a_call(self) -> None:
        server = Server()
        assert server.receive_data(request(1, b"q")) == [RequestReceived(1, b"q")]
        server.respond(1, b"a")
        assert server.data_to_send() == response(1, b"a")
        assert server.data_to_send() == b""
        assert server.open_streams == 0

    @pytest.mark.parametrize("ids", [(0,), (2,), (1, 1), (3, 1)])
    def test_bad_stream_ids(self, ids: tuple[int, ...]) -> None:
        server = Server()
        for stream_id in ids[:-1]:
            server.receive_data(request(stream_id))
            server.respond(stream_id, b"")
        assert broken(server.receive_data(request(ids[-1]))) is BadStreamId

    @pytest.mark.parametrize("wrong", [response(1), data(1), data(3)])
    def test_what_a_client_may_not_send(self, wrong: bytes) -> None:
        server = Server()
        server.receive_data(request(1))
        assert broken(server.receive_data(wrong)) is UnexpectedFrame

    def test_a_streaming_request_can_be_answered_with_an_error(self) -> None:
        server = Server()
        (event,) = server.receive_data(request(1, b"q", Flag.REMOTE_OPEN))
        assert event == RequestReceived(1, b"q", streaming=True)
        assert server.receive_data(data(1, b"more")) == []
        server.respond(1, b"no")
        assert server.state(1) is StreamState.DRAINING
        assert server.receive_data(data(1, b"more")) == []
        assert server.receive_data(data(1, b"", Flag.REMOTE_CLOSED | Flag.NO_DATA)) == []
        assert server.open_streams == 0
        assert server.receive_data(request(3)) == [RequestReceived(3, b"")]

    def test_a_stream_closed_by_its_client_is_over_with_the_answer(self) -> None:
        server = Server()
        server.receive_data(request(1, b"", Flag.REMOTE_OPEN) + data(1, b"", Flag.REMOTE_CLOSED))
        assert server.state(1) is StreamState.SERVING
        server.respond(1, b"")
        assert server.open_streams == 0

    def test_an_answer_to_nothing_is_our_fault(self) -> None:
        with pytest.raises(LocalProtocolError, match="stream 1 is closed"):
            Server().respond(1, b"")

    def test_an_answer_twice_is_our_fault(self) -> None:
        server = Server()
        server.receive_data(request(1))
        server.respond(1, b"")
        with pytest.raises(LocalProtocolError):
            server.respond(1, b"")


frames = st.builds(
    Frame,
    stream_id=st.integers(0, 9),
    type=st.sampled_from([1, 1, 1, 2, 3, 3, 7]),
    flags=st.integers(0, 7),
    data=st.binary(max_size=20),
)


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    return [stream[start:end] for start, end in pairwise(bounds)]


@given(st.lists(frames, max_size=8), st.lists(st.integers(0, 300), max_size=8), st.booleans())
def test_how_bytes_are_cut_makes_no_difference(
    sent: list[Frame], cuts: list[int], as_client: bool
) -> None:
    stream = b"".join(frame.serialize() for frame in sent)

    def events(chunks: list[bytes]) -> list[str]:
        core: Client | Server = Client() if as_client else Server()
        if isinstance(core, Client):
            for _ in range(3):
                core.request(b"")
        return [str(event) for chunk in chunks for event in core.receive_data(chunk)]

    assert events(pieces(stream, cuts)) == events([stream])


@given(st.lists(st.binary(max_size=200), max_size=5), st.booleans())
def test_no_bytes_of_a_peer_raise(chunks: list[bytes], as_client: bool) -> None:
    core: Client | Server = Client() if as_client else Server()
    events = [event for chunk in chunks for event in core.receive_data(chunk)]
    events += core.receive_eof()
    ends = [event for event in events if isinstance(event, Broken)]
    assert ends == events[-1:] if core.error else ends == []


@given(st.lists(st.binary(max_size=30), min_size=1, max_size=10), st.randoms(use_true_random=False))
def test_both_roles_on_one_wire(contents: list[bytes], random: object) -> None:
    """Every request is answered with its own content, whatever the order of the answers."""
    client, server = Client(), Server()
    asked = {client.request(content): content for content in contents}
    requests = server.receive_data(client.data_to_send())
    random.shuffle(requests)  # type: ignore[attr-defined]
    for event in requests:
        assert isinstance(event, RequestReceived)
        server.respond(event.stream_id, event.data)
    answers = client.receive_data(server.data_to_send())
    assert {(e.stream_id, e.data) for e in answers if not isinstance(e, Broken)} == set(
        asked.items()
    )
    assert client.open_streams == server.open_streams == 0
