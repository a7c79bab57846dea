"""SPDY sessions: two cores joined by a fake wire, and one core against bytes it must not like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from zos_cri.wire import spdy
from zos_cri.wire.spdy import INITIAL_WINDOW, Role, Session
from zos_cri.wire.spdyevents import (
    ConnectionFailed,
    DataReceived,
    Event,
    GoawayReceived,
    HeadersReceived,
    PingAnswered,
    StreamEnded,
    StreamOpened,
    StreamReplied,
    StreamReset,
    WindowOpened,
)
from zos_cri.wire.spdyframes import (
    Data,
    Decoder,
    Encoder,
    Frame,
    Goaway,
    GoawayStatus,
    Headers,
    LocalProtocolError,
    Ping,
    ResetStatus,
    RstStream,
    SettingId,
    Settings,
    SynReply,
    SynStream,
    WindowUpdate,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class ConnectionPair:
    """Two sessions and the wire between them."""

    def __init__(self) -> None:
        self.client, self.server = Session(Role.CLIENT), Session(Role.SERVER)

    def exchange(self, *, chunk: int = 1 << 20) -> tuple[list[Event], list[Event]]:
        """Moves bytes until there are none; the events of client and server."""
        seen: tuple[list[Event], list[Event]] = ([], [])
        while True:
            to_server = b"".join(self.client.data_to_send())
            to_client = b"".join(self.server.data_to_send())
            if not to_server and not to_client:
                return seen
            for wire, session, events in (
                (to_client, self.client, seen[0]),
                (to_server, self.server, seen[1]),
            ):
                for start in range(0, len(wire), chunk):
                    events.extend(session.receive_data(wire[start : start + chunk]))

    def open(self, **headers: str) -> int:
        stream_id = self.client.open_stream(headers)
        self.exchange()
        self.server.reply(stream_id)
        self.exchange()
        return stream_id


class Peer:
    """A server session and a hand-made client."""

    def __init__(self, *, max_streams: int = 100) -> None:
        self.session = Session(Role.SERVER, max_streams=max_streams)
        self._encoder, self._decoder = Encoder(), Decoder()

    def send(self, *frames: Frame) -> list[Event]:
        return self.session.receive_data(b"".join(map(self._encoder.encode, frames)))

    def answers(self) -> list[Frame]:
        frames: list[Frame] = []
        for data in self.session.data_to_send():
            self._decoder.feed(data, frames.append)
        return frames


@pytest.fixture
def pair() -> ConnectionPair:
    return ConnectionPair()


@pytest.fixture
def peer() -> Peer:
    return Peer()


def test_open_reply_data_and_half_closes(pair: ConnectionPair) -> None:
    stream_id = pair.client.open_stream({"streamtype": "data"})
    assert stream_id == 1
    assert pair.exchange() == ([], [StreamOpened(1, {"streamtype": "data"})])
    pair.server.reply(1)
    assert pair.exchange() == ([StreamReplied(1, {})], [])
    pair.client.send_data(1, b"in", fin=True)
    assert pair.exchange()[1] == [DataReceived(1, b"in"), StreamEnded(1)]
    pair.server.send_data(1, b"out")
    pair.server.end_stream(1)
    assert pair.exchange()[0] == [DataReceived(1, b"out"), StreamEnded(1)]
    assert pair.client.open_streams == pair.server.open_streams == 0


def test_either_side_opens_with_its_own_ids(pair: ConnectionPair) -> None:
    assert [pair.client.open_stream({}) for _ in range(3)] == [1, 3, 5]
    assert [pair.server.open_stream({}) for _ in range(3)] == [2, 4, 6]
    opened = pair.exchange()
    assert [[e.stream_id for e in side if isinstance(e, StreamOpened)] for side in opened] == [
        [2, 4, 6],
        [1, 3, 5],
    ]


def test_opened_with_its_end(pair: ConnectionPair) -> None:
    pair.client.open_stream({}, fin=True)
    assert pair.exchange()[1] == [StreamOpened(1, {}), StreamEnded(1)]
    with pytest.raises(LocalProtocolError):
        pair.client.send_data(1, b"more")


def test_reset_ends_one_stream_only(pair: ConnectionPair) -> None:
    first, second = pair.open(), pair.open()
    pair.server.reset(first, ResetStatus.CANCEL)
    pair.client.send_data(first, b"crosses the reset")
    pair.client.send_data(second, b"goes on")
    events = pair.exchange()
    assert events[0] == [StreamReset(first, ResetStatus.CANCEL)]
    assert events[1] == [DataReceived(second, b"goes on")]
    pair.server.reset(first)  # nothing
    assert pair.exchange() == ([], [])


def test_ping_both_ways(pair: ConnectionPair) -> None:
    assert (pair.client.ping(), pair.client.ping(), pair.server.ping()) == (1, 3, 2)
    assert pair.exchange() == ([PingAnswered(1), PingAnswered(3)], [PingAnswered(2)])


def test_goaway_keeps_open_streams(pair: ConnectionPair) -> None:
    stream_id = pair.open()
    pair.server.goaway()
    pair.server.goaway()  # once
    assert pair.exchange()[0] == [GoawayReceived(stream_id, GoawayStatus.OK)]
    pair.client.open_stream({})
    pair.client.send_data(stream_id, b"still")
    assert pair.exchange()[1] == [DataReceived(stream_id, b"still")]
    with pytest.raises(LocalProtocolError):
        pair.server.open_stream({})


def test_more_headers(peer: Peer) -> None:
    peer.send(SynStream(1, {}))
    more = Headers(1, {"a": "b"}, fin=True)
    assert peer.send(more) == [HeadersReceived(1, {"a": "b"}), StreamEnded(1)]


# Flow control.


def test_a_peer_without_windows_is_sent_all(pair: ConnectionPair) -> None:
    # Go's: it never sends WINDOW_UPDATE or SETTINGS. Waiting for it would be for ever.
    peer = Peer()
    peer.send(SynStream(1, {}))
    for _ in range(10):
        assert peer.session.sendable(1) >= INITIAL_WINDOW
        peer.session.send_data(1, bytes(INITIAL_WINDOW))


def test_a_peer_with_windows_binds_us(peer: Peer) -> None:
    peer.send(SynStream(1, {}), SynStream(3, {}))
    peer.session.send_data(1, bytes(40_000))
    assert WindowOpened(0) in peer.send(Settings(()))
    # What was sent before counts: of the stream's window, and of the session's.
    assert peer.session.sendable(1) == INITIAL_WINDOW - 40_000
    assert peer.session.sendable(3) == INITIAL_WINDOW - 40_000
    with pytest.raises(LocalProtocolError, match="window"):
        peer.session.send_data(1, bytes(INITIAL_WINDOW))
    assert peer.send(WindowUpdate(0, 40_000)) == [WindowOpened(0)]
    assert peer.session.sendable(1) == INITIAL_WINDOW - 40_000
    assert peer.session.sendable(3) == INITIAL_WINDOW
    assert peer.send(WindowUpdate(1, 10_000)) == [WindowOpened(1)]
    assert peer.session.sendable(1) == INITIAL_WINDOW - 30_000


def test_windows_that_were_overrun_before_they_were_known_never_bind(peer: Peer) -> None:
    peer.send(SynStream(1, {}))
    peer.session.send_data(1, bytes(INITIAL_WINDOW + 1))
    peer.send(WindowUpdate(1, 1))
    assert peer.session.sendable(1) >= INITIAL_WINDOW


def test_two_of_us_that_begin_by_overrunning_do_not_wait_for_each_other() -> None:
    pair = ConnectionPair()
    stuck, busy = pair.open(), pair.open()
    pair.client.send_data(stuck, bytes(100_000))
    pair.exchange()
    pair.server.consumed(stuck, 40_000)
    pair.exchange()
    for _ in range(20):
        pair.client.send_data(busy, bytes(min(60_000, pair.client.sendable(busy)) or 1))
        for event in pair.exchange()[1]:
            if isinstance(event, DataReceived):
                pair.server.consumed(busy, len(event.data))
        assert pair.client.sendable(busy) > 0


def test_a_changed_initial_window_counts_for_open_streams(peer: Peer) -> None:
    peer.send(SynStream(1, {}), Settings(()))
    peer.session.send_data(1, bytes(50_000))
    peer.send(Settings(((SettingId.INITIAL_WINDOW_SIZE, 40_000), (4, 7))))
    assert peer.session.sendable(1) == 0  # below zero inside
    peer.send(WindowUpdate(1, 20_000))
    assert peer.session.sendable(1) == 10_000
    peer.send(SynStream(3, {}), WindowUpdate(0, 100_000))
    assert peer.session.sendable(3) == 40_000


def test_windows_are_given_back_as_data_is_consumed(peer: Peer) -> None:
    peer.send(SynStream(1, {}), Data(1, bytes(40_000)))
    assert peer.answers() == []
    peer.session.consumed(1, 20_000)
    assert peer.answers() == []  # half a window at a time
    peer.session.consumed(1, 20_000)
    assert peer.answers() == [WindowUpdate(1, 40_000), WindowUpdate(0, 40_000)]


def test_a_peer_that_overruns_its_window_gets_no_updates(peer: Peer) -> None:
    assert peer.send(SynStream(1, {}), Data(1, bytes(INITIAL_WINDOW + 1)))[1:]
    peer.session.consumed(1, INITIAL_WINDOW + 1)
    assert peer.answers() == []
    assert peer.session.is_open(1)  # no error either


def test_data_for_streams_that_ended_frees_the_sessions_window(peer: Peer) -> None:
    peer.send(SynStream(1, {}))
    peer.session.reset(1)
    peer.answers()
    peer.send(Data(1, bytes(40_000)))
    assert peer.answers() == [WindowUpdate(0, 40_000)]


@settings(deadline=None)
@given(st.lists(st.integers(1, 90_000), min_size=1, max_size=6), st.integers(2_000, 70_000))
def test_any_amount_passes_between_two_that_keep_windows(sizes: list[int], take: int) -> None:
    pair = ConnectionPair()
    pair.client.send_settings({})
    pair.server.send_settings({})
    stream_id = pair.open()
    waiting, received, held = b"".join(bytes([n % 251]) * n for n in sizes), b"", 0
    sent = waiting
    while waiting or held:
        room = pair.client.sendable(stream_id)
        pair.client.send_data(stream_id, waiting[:room])
        waiting = waiting[room:]
        for event in pair.exchange(chunk=9_999)[1]:
            if isinstance(event, DataReceived):
                received += event.data
                held += len(event.data)
        assert held <= INITIAL_WINDOW
        pair.server.consumed(stream_id, min(take, held))
        held -= min(take, held)
        pair.exchange()
    assert received == sent


def test_windows_have_an_end(peer: Peer) -> None:
    peer.send(SynStream(1, {}))
    most = (1 << 31) - 1
    assert StreamReset(1, ResetStatus.FLOW_CONTROL_ERROR) in peer.send(WindowUpdate(1, most))
    assert peer.answers() == [RstStream(1, ResetStatus.FLOW_CONTROL_ERROR)]
    assert peer.send(WindowUpdate(1, 1)) == []
    assert isinstance(peer.send(WindowUpdate(0, most))[-1], ConnectionFailed)


# What a peer does wrong.


@pytest.mark.parametrize(
    "frames",
    [
        [SynStream(2, {})],
        [SynStream(0, {})],
        [SynStream(5, {}), SynStream(3, {})],
        [Data(0, b"x")],
        [Settings(((SettingId.INITIAL_WINDOW_SIZE, 1 << 31),))],
    ],
)
def test_session_errors(peer: Peer, frames: list[Frame]) -> None:
    events = peer.send(*frames)
    assert isinstance(events[-1], ConnectionFailed)
    last = peer.answers()[-1]
    assert isinstance(last, Goaway)
    assert last.status == GoawayStatus.PROTOCOL_ERROR
    assert peer.send(SynStream(9, {})) == []  # nothing is heard any more


@pytest.mark.parametrize(
    ("frames", "status"),
    [
        ([Data(9, b"x")], ResetStatus.INVALID_STREAM),
        ([Data(2, b"x")], ResetStatus.INVALID_STREAM),
        ([Headers(9, {})], ResetStatus.INVALID_STREAM),
        ([SynStream(1, {}, fin=True), Data(1, b"x")], ResetStatus.STREAM_ALREADY_CLOSED),
        ([SynStream(1, {}), SynStream(1, {})], ResetStatus.STREAM_IN_USE),
        ([SynStream(1, {}), SynReply(1, {})], ResetStatus.STREAM_IN_USE),
    ],
)
def test_stream_errors_leave_the_session(
    peer: Peer, frames: list[Frame], status: ResetStatus
) -> None:
    stream_id = frames[-1].stream_id  # type: ignore[union-attr]
    peer.send(*frames)
    assert peer.answers() == [RstStream(stream_id, status)]
    assert peer.send(SynStream(11, {})) == [StreamOpened(11, {})]


def test_too_many_streams_are_refused(peer: Peer) -> None:
    peer = Peer(max_streams=2)
    assert len(peer.send(SynStream(1, {}), SynStream(3, {}), SynStream(5, {}))) == 2
    assert peer.answers() == [RstStream(5, ResetStatus.REFUSED_STREAM)]
    peer.send(RstStream(1, ResetStatus.CANCEL))
    assert peer.send(SynStream(7, {})) == [StreamOpened(7, {})]


def test_data_for_a_stream_that_ended_is_dropped(pair: ConnectionPair) -> None:
    stream_id = pair.open()
    pair.server.reset(stream_id)
    pair.client.send_data(stream_id, b"under way")
    assert pair.exchange()[1] == []


def test_pings_flood_no_state(peer: Peer) -> None:
    assert peer.send(*(Ping(2 * n + 1) for n in range(1000))) == []
    assert len(peer.answers()) == 1000


def test_unidirectional_streams_take_no_data_from_us(peer: Peer) -> None:
    peer.send(SynStream(1, {}, unidirectional=True))
    assert peer.session.sendable(1) == 0
    peer.send(Data(1, b"", fin=True))
    assert not peer.session.is_open(1)


# What we do wrong.


@pytest.mark.parametrize(
    "do",
    [
        lambda s: s.reply(9),
        lambda s: (s.reply(1), s.reply(1)),
        lambda s: s.send_data(9, b""),
        lambda s: (s.end_stream(1), s.end_stream(1)),
        lambda s: s.reply(s.open_stream({})),
    ],
)
def test_our_own_mistakes(peer: Peer, do: Callable[[Session], object]) -> None:
    peer.send(SynStream(1, {}))
    with pytest.raises(LocalProtocolError):
        do(peer.session)


def test_every_state_can_be_reset() -> None:
    for state, row in spdy.TRANSITIONS.items():
        assert state is spdy._State.GONE or spdy._Input.RESET in row


def test_ping_ids_start_again() -> None:
    for role, first in ((Role.CLIENT, 1), (Role.SERVER, 2)):
        session = Session(role)
        session._next_ping = (1 << 31) - 2 + (first % 2)
        assert session.ping() < 1 << 31
        assert session.ping() == first


# Whatever comes.


@settings(deadline=None)
@given(st.binary(max_size=400), st.integers(1, 50))
def test_garbage_raises_nothing(data: bytes, chunk: int) -> None:
    session = Session(Role.SERVER)
    for start in range(0, len(data), chunk):
        for event in session.receive_data(data[start : start + chunk]):
            assert not isinstance(event, ConnectionFailed) or event.error
    session.data_to_send()


any_frame = st.one_of(
    st.builds(SynStream, st.integers(0, 9), st.just({}), fin=st.booleans()),
    st.builds(SynReply, st.integers(0, 9), st.just({}), fin=st.booleans()),
    st.builds(Headers, st.integers(0, 9), st.just({}), fin=st.booleans()),
    st.builds(Data, st.integers(0, 9), st.binary(max_size=9), fin=st.booleans()),
    st.builds(RstStream, st.integers(0, 9), st.integers(0, 20)),
    st.builds(WindowUpdate, st.integers(0, 9), st.integers(0, (1 << 31) - 1)),
    st.builds(Ping, st.integers(0, 9)),
    st.builds(Goaway, st.integers(0, 9), st.integers(0, 3)),
    st.builds(
        Settings, st.lists(st.tuples(st.integers(1, 8), st.integers(0, 1 << 32 - 1))).map(tuple)
    ),
)


@settings(deadline=None)
@given(st.lists(any_frame, max_size=20))
def test_any_frames_in_any_order_raise_nothing_and_chunking_changes_nothing(
    frames: list[Frame],
) -> None:
    encoder = Encoder()
    wire = b"".join(map(encoder.encode, frames))
    whole, bytewise = Session(Role.SERVER), Session(Role.SERVER)
    at_once = whole.receive_data(wire)
    one_by_one = [e for byte in wire for e in bytewise.receive_data(bytes((byte,)))]
    assert _joined(at_once) == _joined(one_by_one)
    assert whole.open_streams == bytewise.open_streams


def _joined(events: list[Event]) -> list[object]:
    """Events with pieces of data that follow each other joined, and errors as their text."""
    out: list[object] = []
    for event in events:
        last = out[-1] if out else None
        if isinstance(event, ConnectionFailed):
            out.append(str(event.error))
        elif (
            isinstance(event, DataReceived)
            and isinstance(last, DataReceived)
            and last.stream_id == event.stream_id
        ):
            out[-1] = DataReceived(event.stream_id, last.data + event.data)
        else:
            out.append(event)
    return out


class TwoSessions(RuleBasedStateMachine):
    """Whatever two well-behaved sides do, both see the same of every stream."""

    streams = Bundle("streams")

    @initialize()
    def start(self) -> None:
        self.pair = ConnectionPair()
        self.sent: dict[tuple[str, int], bytes] = {}
        self.got: dict[tuple[str, int], bytes] = {}

    @rule(target=streams)
    def open(self) -> int:
        stream_id = self.pair.client.open_stream({})
        self.exchange()
        self.pair.server.reply(stream_id)
        return stream_id

    @rule(stream=streams, side=st.sampled_from(["client", "server"]), data=st.binary(max_size=99))
    def send(self, stream: int, side: str, data: bytes) -> None:
        session = getattr(self.pair, side)
        if session.sendable(stream) >= len(data) and session.is_open(stream):
            try:
                session.send_data(stream, data)
            except LocalProtocolError:
                return  # this direction has ended
            self.sent[side, stream] = self.sent.get((side, stream), b"") + data

    @rule(stream=streams, side=st.sampled_from(["client", "server"]))
    def end(self, stream: int, side: str) -> None:
        try:
            getattr(self.pair, side).end_stream(stream)
        except LocalProtocolError:
            return

    @rule(stream=consumes(streams), side=st.sampled_from(["client", "server"]))
    def reset(self, stream: int, side: str) -> None:
        self.exchange()
        getattr(self.pair, side).reset(stream)

    @rule()
    def exchange(self) -> None:
        for side, events in zip(("server", "client"), self.pair.exchange(chunk=7), strict=True):
            for event in events:
                assert not isinstance(event, ConnectionFailed)
                if isinstance(event, DataReceived):
                    key = (side, event.stream_id)
                    self.got[key] = self.got.get(key, b"") + event.data

    @invariant()
    def nothing_is_made_up(self) -> None:
        for key, data in getattr(self, "got", {}).items():
            assert self.sent[key].startswith(data)

    def teardown(self) -> None:
        if hasattr(self, "pair"):
            self.exchange()
            assert self.got == {key: data for key, data in self.sent.items() if data}
            assert self.pair.client.open_streams == self.pair.server.open_streams


TestTwoSessions = TwoSessions.TestCase
TestTwoSessions.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
