"""SPDY/3.1 without I/O: the session, its streams and their flow control. Either role.

Bytes go in by `receive_data`, which returns events; what is to be sent comes out of
`data_to_send`. After every call of either kind the caller sends what `data_to_send` gives.

Stream states, one row a state; an entry that is missing is the error:

                    send data   send end     receive data   receive end   reset
    OPEN            OPEN        HALF_LOCAL   OPEN           HALF_REMOTE   gone
    HALF_LOCAL      -           -            HALF_LOCAL     gone          gone
    HALF_REMOTE     HALF_REMOTE gone         -              -             gone

Flow control. The protocol says 64 KiB a stream and a session until WINDOW_UPDATE gives more. Go's
spdystream, which is what clients of Kubernetes are, does none of it: it never sends WINDOW_UPDATE
or SETTINGS, drops those it gets, and sends without looking at any window. A peer that keeps the
rule and one that doesn't must both work, so this side finds out which it has:

- Sending. A peer's windows bind us from the first SETTINGS or WINDOW_UPDATE it sends; until then
  there is nothing that would ever open a closed window again. (The windows are kept count of from
  the start, so that they are right when they begin to bind.) If we have sent beyond one by then,
  the peer has borne it, and they never bind.
- Receiving. WINDOW_UPDATEs go out as the application consumes. A peer that sent beyond its window
  doesn't keep count, so it gets no more of them: they would only fill its queues. Its overrun is
  no error; the caller bounds memory by not reading from the socket.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final

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
    MAX_DATA_LENGTH,
    Data,
    Decoder,
    Encoder,
    Frame,
    Goaway,
    GoawayStatus,
    Headers,
    LocalProtocolError,
    Ping,
    ProtocolError,
    ResetStatus,
    RstStream,
    SettingId,
    Settings,
    SynReply,
    SynStream,
    WindowUpdate,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

INITIAL_WINDOW: Final = 64 * 1024  # 2.6.8
_MAX_WINDOW: Final = (1 << 31) - 1
_MAX_STREAM_ID: Final = (1 << 31) - 1
# Streams open at once; over it a new one is refused. A forwarded connection takes two.
MAX_STREAMS: Final = 4000
_UNBOUND: Final = MAX_DATA_LENGTH


class Role(Enum):
    """Clients open odd streams, servers even ones; so with pings."""

    CLIENT = 1
    SERVER = 2


class _State(Enum):
    OPEN = auto()
    HALF_LOCAL = auto()  # we have ended our direction
    HALF_REMOTE = auto()  # the peer has ended its direction
    GONE = auto()


class _Input(Enum):
    SEND_DATA = auto()
    SEND_END = auto()
    RECEIVE_DATA = auto()
    RECEIVE_END = auto()
    RESET = auto()


TRANSITIONS: Final[Mapping[_State, Mapping[_Input, _State]]] = {
    _State.OPEN: {
        _Input.SEND_DATA: _State.OPEN,
        _Input.SEND_END: _State.HALF_LOCAL,
        _Input.RECEIVE_DATA: _State.OPEN,
        _Input.RECEIVE_END: _State.HALF_REMOTE,
        _Input.RESET: _State.GONE,
    },
    _State.HALF_LOCAL: {
        _Input.RECEIVE_DATA: _State.HALF_LOCAL,
        _Input.RECEIVE_END: _State.GONE,
        _Input.RESET: _State.GONE,
    },
    _State.HALF_REMOTE: {
        _Input.SEND_DATA: _State.HALF_REMOTE,
        _Input.SEND_END: _State.GONE,
        _Input.RESET: _State.GONE,
    },
    _State.GONE: {},
}


class _Stream:
    """What the session knows of one open stream."""

    __slots__ = ("consumed", "received", "replied", "send_window", "state")

    def __init__(self, send_window: int) -> None:
        self.state = _State.OPEN
        self.replied = False  # SYN_REPLY was sent (peer's stream) or came (ours)
        self.send_window = send_window
        self.received = 0  # of the window we gave
        self.consumed = 0  # not yet given back by WINDOW_UPDATE


class Session:
    """One SPDY/3.1 session."""

    def __init__(self, role: Role, *, max_streams: int = MAX_STREAMS) -> None:
        self._decoder = Decoder()
        self._encoder = Encoder()
        self._output: list[bytes] = []
        self._events: list[Event] = []
        self._streams: dict[int, _Stream] = {}
        self._max_streams = max_streams
        self._parity = 1 if role is Role.CLIENT else 0
        self._next_id = 1 if role is Role.CLIENT else 2
        self._next_ping = self._next_id
        self._last_peer_id = 0
        self._session = _Stream(INITIAL_WINDOW)  # 2.6.8: stream 0 is the session's window
        self._peer_initial_window = INITIAL_WINDOW
        self._bound = False  # by the peer's windows: it has shown that it opens them
        self._overran = False  # we have sent beyond one before it did
        self._peer_overruns = False  # it has sent beyond a window
        self._goaway_sent = False
        self._failed = False

    # What comes from the peer.

    def receive_data(self, data: bytes) -> list[Event]:
        """Events in the order they happened. Raises nothing, whatever the bytes."""
        if not self._failed:
            try:
                self._decoder.feed(data, self._frame)
            except ProtocolError as error:
                self._failed = True
                self.goaway(GoawayStatus.PROTOCOL_ERROR)
                self._events.append(ConnectionFailed(error))
        events, self._events = self._events, []
        return events

    def data_to_send(self) -> list[bytes]:
        """What to put on the wire, in this order. Each call gives it once."""
        output, self._output = self._output, []
        return output

    # What we do.

    def open_stream(self, headers: Mapping[str, str], *, fin: bool = False) -> int:
        """Opens a stream and returns its id. Data may be sent at once.

        Raises:
            LocalProtocolError: GOAWAY was sent, or all ids are used up.
        """
        if self._goaway_sent or self._next_id > _MAX_STREAM_ID:
            raise LocalProtocolError("no new stream on this session")
        stream_id = self._next_id
        self._send(SynStream(stream_id, headers, fin=fin))
        self._next_id += 2
        self._streams[stream_id] = _Stream(self._peer_initial_window)
        if fin:
            self._step(stream_id, _Input.SEND_END)
        return stream_id

    def reply(self, stream_id: int, headers: Mapping[str, str] | None = None) -> None:
        """Accepts a stream of the peer's. Go drops data that comes before this."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.replied or self._is_ours(stream_id):
            raise LocalProtocolError(f"no reply due on stream {stream_id}")
        self._send(SynReply(stream_id, headers or {}))
        stream.replied = True

    def sendable(self, stream_id: int) -> int:
        """Bytes that may go out on a stream now; 0 also where the stream is closed to us."""
        stream = self._streams.get(stream_id)
        if stream is None or _Input.SEND_DATA not in TRANSITIONS[stream.state]:
            return 0
        if not self._bound:
            return _UNBOUND
        return max(0, min(stream.send_window, self._session.send_window, _UNBOUND))

    def send_data(self, stream_id: int, data: bytes, *, fin: bool = False) -> None:
        """Sends `data` in one frame, and ends our direction with it where `fin` is set.

        Raises:
            LocalProtocolError: more than `sendable`, or a direction that has ended.
        """
        self._require(stream_id, _Input.SEND_DATA)
        if len(data) > self.sendable(stream_id):
            raise LocalProtocolError(f"{len(data)} bytes exceed the window of stream {stream_id}")
        self._send(Data(stream_id, data, fin=fin))
        stream = self._streams[stream_id]
        stream.send_window -= len(data)
        self._session.send_window -= len(data)
        self._overran |= not self._bound and min(stream.send_window, self._session.send_window) < 0
        if fin:
            self._step(stream_id, _Input.SEND_END)

    def end_stream(self, stream_id: int) -> None:
        """Ends our direction; the peer's goes on."""
        self.send_data(stream_id, b"", fin=True)

    def reset(self, stream_id: int, status: int = ResetStatus.CANCEL) -> None:
        """Ends one stream in both directions; nothing where it has ended already."""
        if self._streams.pop(stream_id, None) is not None:
            self._send(RstStream(stream_id, status))

    def consumed(self, stream_id: int, count: int) -> None:
        """The application has taken `count` bytes: the peer may be given as many more."""
        for window_id, stream in ((stream_id, self._streams.get(stream_id)), (0, self._session)):
            if stream is None:
                continue  # the stream is over; the session's window is still owed
            stream.consumed += count
            # Half a window at a time: an update for every read would be more frames than data.
            if stream.consumed >= INITIAL_WINDOW // 2 and not self._peer_overruns:
                self._send(WindowUpdate(window_id, stream.consumed))
                stream.received -= stream.consumed
                stream.consumed = 0

    def ping(self) -> int:
        """Sends a ping and returns its id; `PingAnswered` follows."""
        ping_id = self._next_ping
        self._next_ping = ping_id + 2 if ping_id + 2 <= _MAX_STREAM_ID else 2 - self._parity
        self._send(Ping(ping_id))
        return ping_id

    def goaway(self, status: int = GoawayStatus.OK) -> None:
        """Tells the peer that no new streams are taken; once."""
        if not self._goaway_sent:
            self._goaway_sent = True
            self._send(Goaway(self._last_peer_id, status))

    def send_settings(self, settings: Mapping[int, int]) -> None:
        """Tells the peer of limits. Go drops them."""
        self._send(Settings(tuple(settings.items())))

    @property
    def open_streams(self) -> int:  # not over in both directions
        return len(self._streams)

    def is_open(self, stream_id: int) -> bool:  # in either direction
        return stream_id in self._streams

    def _send(self, frame: Frame) -> None:
        self._output.append(self._encoder.encode(frame))

    def _is_ours(self, stream_id: int) -> bool:
        return stream_id % 2 == self._parity

    def _require(self, stream_id: int, event: _Input) -> None:
        stream = self._streams.get(stream_id)
        if stream is None or event not in TRANSITIONS[stream.state]:
            raise LocalProtocolError(f"{event.name} on stream {stream_id}, which has ended")

    def _step(self, stream_id: int, event: _Input) -> None:
        stream = self._streams[stream_id]
        stream.state = TRANSITIONS[stream.state][event]
        if stream.state is _State.GONE:
            del self._streams[stream_id]

    def _frame(self, frame: Frame) -> None:
        _HANDLERS[type(frame)](self, frame)

    def _headers(self, frame: Headers) -> None:
        if self._receiving(frame.stream_id):
            self._events.append(HeadersReceived(frame.stream_id, frame.headers))
            self._remote_end(frame.stream_id, fin=frame.fin)

    def _rst_stream(self, frame: RstStream) -> None:
        if self._streams.pop(frame.stream_id, None) is not None:
            self._events.append(StreamReset(frame.stream_id, frame.status))

    def _ping(self, frame: Ping) -> None:
        if frame.ping_id % 2 == self._parity:
            self._events.append(PingAnswered(frame.ping_id))
        else:
            self._send(frame)

    def _goaway(self, frame: Goaway) -> None:
        self._events.append(GoawayReceived(frame.last_stream_id, frame.status))

    def _syn_stream(self, frame: SynStream) -> None:
        stream_id = frame.stream_id
        if not stream_id or self._is_ours(stream_id):
            raise ProtocolError(f"SYN_STREAM for stream {stream_id}, which isn't the peer's")
        if stream_id < self._last_peer_id:
            raise ProtocolError(f"SYN_STREAM {stream_id} after {self._last_peer_id}")
        if stream_id == self._last_peer_id:  # 2.3.2: that stream's error, not the session's
            self._streams.pop(stream_id, None)
            self._send(RstStream(stream_id, ResetStatus.STREAM_IN_USE))
            self._events.append(StreamReset(stream_id, ResetStatus.STREAM_IN_USE))
            return
        self._last_peer_id = stream_id
        if self._goaway_sent:
            return  # 2.6.6: ignored after GOAWAY
        if len(self._streams) >= self._max_streams:
            self._send(RstStream(stream_id, ResetStatus.REFUSED_STREAM))
            return
        stream = _Stream(self._peer_initial_window)
        if frame.unidirectional:
            stream.state = _State.HALF_LOCAL
        self._streams[stream_id] = stream
        self._events.append(StreamOpened(stream_id, frame.headers))
        self._remote_end(stream_id, fin=frame.fin)

    def _syn_reply(self, frame: SynReply) -> None:
        stream = self._receiving(frame.stream_id)
        if stream is None:
            return
        if stream.replied or not self._is_ours(frame.stream_id):
            self._fail_stream(frame.stream_id, ResetStatus.STREAM_IN_USE)
            return
        stream.replied = True
        self._events.append(StreamReplied(frame.stream_id, frame.headers))
        self._remote_end(frame.stream_id, fin=frame.fin)

    def _data(self, frame: Data) -> None:
        if not frame.stream_id:
            raise ProtocolError("data on stream 0")
        count = len(frame.payload)
        self._account(self._session, count)
        stream = self._receiving(frame.stream_id)
        if stream is None:
            self.consumed(0, count)  # nobody will: the session's window would run dry
            return
        self._account(stream, count)
        if count:
            self._events.append(DataReceived(frame.stream_id, frame.payload))
        self._remote_end(frame.stream_id, fin=frame.fin)

    def _account(self, stream: _Stream, count: int) -> None:
        stream.received += count
        self._peer_overruns |= stream.received > INITIAL_WINDOW

    def _receiving(self, stream_id: int) -> _Stream | None:
        """The stream, if the peer may still send on it; else what the rules want is done."""
        stream = self._streams.get(stream_id)
        if stream is None:
            known = self._next_id if self._is_ours(stream_id) else self._last_peer_id + 1
            if stream_id >= known:
                self._send(RstStream(stream_id, ResetStatus.INVALID_STREAM))
            return None  # else it has ended here, and these bytes were under way
        if _Input.RECEIVE_DATA not in TRANSITIONS[stream.state]:
            self._fail_stream(stream_id, ResetStatus.STREAM_ALREADY_CLOSED)
            return None
        return stream

    def _fail_stream(self, stream_id: int, status: ResetStatus) -> None:
        del self._streams[stream_id]
        self._send(RstStream(stream_id, status))
        self._events.append(StreamReset(stream_id, status))

    def _remote_end(self, stream_id: int, *, fin: bool) -> None:
        if fin:
            self._step(stream_id, _Input.RECEIVE_END)
            self._events.append(StreamEnded(stream_id))

    def _window_update(self, frame: WindowUpdate) -> None:
        self._bound = not self._overran
        stream = self._session if not frame.stream_id else self._streams.get(frame.stream_id)
        if stream is None:
            return  # it has ended
        stream.send_window += frame.delta
        if stream.send_window <= _MAX_WINDOW:
            self._events.append(WindowOpened(frame.stream_id))
        elif frame.stream_id:
            self._fail_stream(frame.stream_id, ResetStatus.FLOW_CONTROL_ERROR)
        else:
            raise ProtocolError("the session's window exceeds 2^31-1")

    def _settings(self, frame: Settings) -> None:
        self._bound = not self._overran
        for key, value in frame.values:
            if key == SettingId.INITIAL_WINDOW_SIZE:
                if value > _MAX_WINDOW:
                    raise ProtocolError(f"initial window of {value}")
                difference = value - self._peer_initial_window
                self._peer_initial_window = value
                for stream in self._streams.values():
                    stream.send_window += difference  # may leave it negative (2.6.8)
        self._events.append(WindowOpened(0))


_HANDLERS: Final[Mapping[type[Frame], Callable[[Session, Any], None]]] = {
    Data: Session._data,
    SynStream: Session._syn_stream,
    SynReply: Session._syn_reply,
    Headers: Session._headers,
    RstStream: Session._rst_stream,
    WindowUpdate: Session._window_update,
    Settings: Session._settings,
    Ping: Session._ping,
    Goaway: Session._goaway,
}
