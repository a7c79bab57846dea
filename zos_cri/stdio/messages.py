"""The logger's control protocol: what is said over its unix socket, and how it is framed.

A frame is a 4-byte big-endian length and that many bytes of JSON. A client sends requests, each
with a `seq` of its own choice; the logger answers each once, with that `seq`, not always in order
(`Finish` waits). Every request may be sent again after a broken connection: all are idempotent.
A `Tap` carries descriptors (SCM_RIGHTS) with the first byte of its frame.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec
from msgspec.structs import replace

from zos_cri.errors import Internal, InvalidArgument
from zos_cri.wire.crilog import DEFAULT_MAX_LINE

MAX_REQUEST: Final = 64 * 1024  # an Attach with four paths of PATH_MAX is 17 KiB
MAX_REPLY: Final = 16 * 1024 * 1024  # a List of 10,000 containers with long paths
FINISH_TIMEOUT: Final = 2.0
DROP_AFTER: Final = 30.0
EXIT_RUNNING: Final = 3  # the exit code of a logger that finds another one at its socket

_LENGTH: Final = struct.Struct(">I")


class ProtocolError(Internal):
    """The peer broke the framing; the connection is of no more use."""


class LogSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A container's streams and where they go; also what the logger keeps on tmpfs.

    Attributes:
        log_path: absolute; "" reads the streams and drops what they bring.
        log_root: a directory that `log_path` must lie below, without `..` and symbolic links on
            the way; the log's own directory where "".
        stdout: a FIFO's path; "" where there is no such stream. Likewise stderr (a terminal's is
            "").
        max_line: bytes of one log entry. Lines of more than `streams.MAX_LINE` (16 MiB) are cut at
            that, and so are all where it is 0 or less.
        drop_after: seconds for which the log's file system may refuse (ENOSPC, EDQUOT, EIO) until
            output is dropped and counted; 0 never drops, and the container waits.
    """

    id: str
    log_path: str = ""
    log_root: str = ""
    stdout: str = ""
    stderr: str = ""
    max_line: int = DEFAULT_MAX_LINE
    drop_after: float = DROP_AFTER

    def same_streams(self, other: LogSpec) -> bool:
        """Whether it is about the same FIFOs and the same file; settings may have changed since."""
        return self == replace(other, max_line=self.max_line, drop_after=self.drop_after)


class Request(msgspec.Struct, tag_field="op", kw_only=True, frozen=True):
    """What all requests have."""

    seq: int = 0


class Attach(Request, tag="attach", frozen=True):
    """Begin to read a container's FIFOs; answered once they and the log file are open.

    The same again is nothing; other FIFOs or another file under the same id is AlreadyExists.
    DeadlineExceeded: the log's file system doesn't answer; nothing is attached.
    """

    spec: LogSpec


class Reopen(Request, tag="reopen", frozen=True):
    """Go on in a new file of the same path, from the next entry on.

    NotFound: no such container. One whose streams have ended, and that hasn't exited, has a log
    to be rotated all the same.
    """

    id: str


class Finish(Request, tag="finish", frozen=True):
    """The container has exited: write what is left, forget it, then answer with `Finished`.

    After `timeout` seconds what is there is written and the FIFOs are closed although somebody
    still holds them. An unknown id is answered at once.
    """

    id: str
    timeout: float = FINISH_TIMEOUT


class Detach(Request, tag="detach", frozen=True):
    """Forget a container, whatever its state; an unknown one is nothing."""

    id: str


class Tap(Request, tag="tap", frozen=True):
    """Copy what comes from now on to the descriptors sent along, stdout's first.

    The container waits for a tap that doesn't read. A tap whose reader is gone is removed.
    """

    id: str
    stdout: bool = True
    stderr: bool = True


class List(Request, tag="list", frozen=True):
    """All containers: `list[Attached]`."""


class Status(Request, tag="status", frozen=True):
    """The logger's own state: `LoggerStatus`."""


class Ping(Request, tag="ping", frozen=True):
    """Answered with nothing."""


AnyRequest = Attach | Reopen | Finish | Detach | Tap | List | Status | Ping


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An answer. `code` is the name of a gRPC code, "" for success; `result` is the request's."""

    seq: int
    code: str = ""
    error: str = ""
    result: msgspec.Raw = msgspec.Raw(b"null")


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """How a container's log ended.

    Attributes:
        known: it was attached.
        complete: both streams came to their end by themselves, within the time.
        dropped: bytes that the log's file system wouldn't take, in the container's whole life.
    """

    known: bool
    complete: bool = True
    dropped: int = 0


class Attached(msgspec.Struct, frozen=True, kw_only=True):
    """A container's state.

    Attributes:
        ended: its streams have all come to their end.
        failing: the log file refuses what should be written, why and since when (text).
    """

    spec: LogSpec
    ended: bool
    taps: int
    bytes_in: int
    bytes_dropped: int
    failing: str = ""


class LoggerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The logger process; counters are since its start.

    Attributes:
        waiting: calls on log files that file systems haven't answered yet.
    """

    pid: int
    version: str
    uptime: float
    containers: int
    taps: int
    bytes_in: int
    bytes_out: int
    bytes_dropped: int
    write_errors: int
    cpu_seconds: float
    waiting: int = 0


_request_decoder: msgspec.json.Decoder[AnyRequest] = msgspec.json.Decoder(AnyRequest)
_reply_decoder = msgspec.json.Decoder(Reply)
_encoder = msgspec.json.Encoder()


def frame(message: msgspec.Struct) -> bytes:
    """A message as it goes over the socket."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def raw(result: object) -> msgspec.Raw:
    """A request's result, for `Reply.result`."""
    return msgspec.Raw(_encoder.encode(result))


def parse_request(body: bytes) -> AnyRequest:
    """Raises InvalidArgument where it is none."""
    try:
        return _request_decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise InvalidArgument(f"logger: request: {error}") from error


def parse_reply(body: bytes) -> Reply:
    """Raises ProtocolError where it is none."""
    try:
        return _reply_decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"logger: reply: {error}") from error


class Frames:
    """Cuts received bytes into frames."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that are complete now.

        Raises:
            ProtocolError: a frame is longer than the limit.
        """
        self._data += data
        bodies: list[bytes] = []
        while len(self._data) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._data)
            if length > self._limit:
                raise ProtocolError(f"logger: a frame of {length} bytes, limit {self._limit}")
            end = _LENGTH.size + length
            if len(self._data) < end:
                break
            bodies.append(bytes(self._data[_LENGTH.size : end]))
            del self._data[:end]
        return bodies
