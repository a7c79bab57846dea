"""A layer's entries on their way from the parser into its directory.

Making a small file takes the kernel as long as fetching, decompressing, digesting and parsing it
take us. So a layer that nothing else is unpacked beside has a process of its own to write it
(`Apart`); data go there through shared memory, entries through a socket.
"""

from __future__ import annotations

import marshal
import mmap
import os
import signal
import socket
import struct
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from zos_cri.errors import Internal
from zos_cri.images import trees
from zos_cri.images.directories import UnpackError
from zos_cri.images.jobs import Failed, as_error, failed
from zos_cri.images.layerfs import LayerWriter
from zos_cri.linux import syscalls
from zos_cri.wire.tarheader import Entry, Kind, Segment

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zos_cri.images.layerfs import Limits
    from zos_cri.wire.tarstream import Data

# The largest chunk of an archive; it fits the second-level cache, on its way from hand to hand.
CHUNK: Final = 1 << 18
_SLOTS: Final = 16  # chunks that may be on their way
_LENGTH: Final = struct.Struct("!I")
_KINDS: Final = tuple(Kind)
_FILE: Final = _KINDS[0]  # of which there are most
_NUMBERS: Final = {kind: number for number, kind in enumerate(_KINDS)}


class Written(msgspec.Struct, frozen=True, tag=True):
    """What a `LayerWriter` leaves to `lowerfix.fix`."""

    implied: tuple[bytes, ...]
    missing_links: tuple[tuple[bytes, bytes], ...]
    whiteouts: tuple[bytes, ...]


_DECODER: Final[msgspec.json.Decoder[Written | Failed]] = msgspec.json.Decoder(Written | Failed)


class Sink(Protocol):
    """Where the entries of a layer go."""

    def take(self, chunk: bytes, events: Iterable[Entry | Data]) -> None:
        """The next chunk of the archive, of at most `CHUNK` bytes, and what the parser finds in it.

        Raises:
            As `LayerWriter`, of this chunk or an earlier one.
        """

    def finish(self) -> Written:
        """After the last chunk: returns when everything is written."""

    def close(self) -> None:
        """Ends the work, at whatever point; idempotent."""


class Here:
    """Writes in this process."""

    def __init__(self, root: str, limits: Limits | None = None) -> None:
        self._writer = LayerWriter(root, limits)

    def take(self, _chunk: bytes, events: Iterable[Entry | Data]) -> None:
        writer = self._writer
        for event in events:
            if isinstance(event, Entry):
                writer.add(event)
            else:
                writer.write(event.offset, event.data)

    def finish(self) -> Written:
        writer = self._writer
        writer.finish()
        return Written(writer.implied, tuple(writer.missing_links), tuple(writer.whiteouts))

    def close(self) -> None:
        self._writer.close()


class Apart:
    """Writes in a process of its own, which is forked at once: there must be no other threads.

    It dies with this process, and is gone after `close`.
    """

    def __init__(self, root: str, limits: Limits | None = None) -> None:
        self._root = root
        self._memory = mmap.mmap(-1, _SLOTS * CHUNK)
        self._under_way = 0
        self._slot = 0
        ours, theirs = socket.socketpair()
        self._line = _Line(ours)
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid:
            theirs.close()
            return
        try:
            syscalls.set_parent_death_signal(signal.SIGKILL)
            if os.getppid() == parent:
                ours.close()
                keep_off_standard_files()
                _serve(_Line(theirs), self._memory, root, limits)
        finally:
            os._exit(0)

    def take(self, chunk: bytes, events: Iterable[Entry | Data]) -> None:
        if self._under_way == _SLOTS:
            self._hear()
        start = self._slot * CHUNK
        self._memory[start : start + len(chunk)] = chunk
        plain = [_plain(event, start) for event in events]
        self._slot = (self._slot + 1) % _SLOTS
        self._under_way += 1
        self._say(marshal.dumps(plain))

    def finish(self) -> Written:
        self._say(b"")
        while True:
            written = self._hear()
            if written is not None:
                return written

    def _say(self, message: bytes) -> None:
        try:
            self._line.send(message)
        except ConnectionError:
            while True:  # it said why before it went
                self._hear()

    def _hear(self) -> Written | None:
        """The end of one chunk's work, or of all. Raises what the process has met with."""
        said = self._line.receive()
        if said is None:
            raise Internal("the process that writes the layer has died")
        if not said:
            self._under_way -= 1
            return None
        answer = _DECODER.decode(said)
        if isinstance(answer, Written):
            return answer
        if answer.kind == "InvalidArgument":
            raise UnpackError(answer.message)
        raise as_error(answer)

    def close(self) -> None:
        if not self._pid:
            return
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._pid = 0
        self._line.close()
        self._memory.close()
        trees.remove(LayerWriter.trash(self._root))


def _serve(line: _Line, memory: mmap.mmap, root: str, limits: Limits | None) -> None:
    """The life of the process that writes."""
    encode = msgspec.json.Encoder().encode
    try:
        writer = LayerWriter(root, limits)
        view = memoryview(memory)
        while message := line.receive():
            for event in marshal.loads(message):
                if len(event) == 3:
                    offset, start, stop = event
                    writer.write(offset, view[start:stop])
                else:
                    writer.add(_entry(*event))
            line.send(b"")
        if message is None:  # nobody wants it any more
            return
        writer.finish()
        line.send(
            encode(Written(writer.implied, tuple(writer.missing_links), tuple(writer.whiteouts)))
        )
    except BaseException as error:
        line.send(encode(failed(error)))
        while line.receive() is not None:  # until it is heard, at the latest in `finish`
            pass


def _plain(event: Entry | Data, start: int) -> tuple[Any, ...]:
    """An event for `marshal`, which takes numbers, names and times as they come, of any size.

    Args:
        start: where its chunk lies in the shared memory.
    """
    if not isinstance(event, Entry):
        begin = start + event.start
        return event.offset, begin, begin + len(event.data)
    return (
        event.path,
        0 if event.kind is _FILE else _NUMBERS[event.kind],
        event.mode,
        event.uid,
        event.gid,
        event.size,
        event.mtime,
        event.link,
        event.major,
        event.minor,
        event.xattrs,
        None if event.sparse is None else [tuple(segment) for segment in event.sparse],
    )


def _entry(path: bytes, kind: int, *rest: Any) -> Entry:
    entry = Entry(path, _KINDS[kind], *rest)
    if entry.sparse is not None:
        entry.sparse = tuple(Segment(*pair) for pair in entry.sparse)
    return entry


class _Line:
    """Messages over a socket, each with its length in front."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._file = link.makefile("rb")

    def send(self, message: bytes) -> None:
        self._link.sendall(_LENGTH.pack(len(message)) + message)

    def receive(self) -> bytes | None:
        """The next message; None where the other end has gone."""
        try:
            head = self._file.read(_LENGTH.size)
            if len(head) < _LENGTH.size:
                return None
            (length,) = _LENGTH.unpack(head)
            message = self._file.read(length)
        except ConnectionError:
            return None
        return message if len(message) == length else None

    def close(self) -> None:
        self._file.close()
        self._link.close()


def keep_off_standard_files() -> None:
    """For what a worker forks: its standard files lead to the server, which must see them end with
    the worker."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(nothing, number)
    os.close(nothing)
