"""Several layers at once, each in a process of its own: forked from the worker, gone with it.

A layer is digested twice, decompressed, parsed and written, a chunk at a time. Threads of one
interpreter hand its lock to each other at every step of that; processes don't.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from zos_cri.errors import Internal
from zos_cri.images.jobs import Failed, as_error, failed
from zos_cri.images.unpack import Unpacked
from zos_cri.images.writing import keep_off_standard_files
from zos_cri.linux import syscalls

if TYPE_CHECKING:
    from types import TracebackType

# Beyond this the registry or the disk is what everybody waits for.
MOST: Final = 6
_READ: Final = 1 << 16


class _Made(msgspec.Struct, frozen=True, tag=True):
    """A layer is complete."""

    unpacked: Unpacked


_DECODER: Final[msgspec.json.Decoder[_Made | Failed]] = msgspec.json.Decoder(_Made | Failed)


class Work(Protocol):
    """What a helper does with a layer's index; in the helper's process."""

    def __call__(self, index: int) -> Unpacked: ...


class Helpers:
    """Some processes that do `work`, one layer after another. To be used by a `with` statement.

    They are forked by `__enter__`: there must be no other threads then. `run` may be called by as
    many threads as there are helpers. At the end all are killed, whatever they do, and are gone.
    """

    def __init__(self, count: int, work: Work) -> None:
        self._count = count
        self._work = work
        self._pids: list[int] = []
        self._idle: queue.SimpleQueue[_Line] = queue.SimpleQueue()
        self._lines: list[_Line] = []

    def __enter__(self) -> Helpers:
        try:
            for _ in range(self._count):
                self._fork()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._end()

    def _fork(self) -> None:
        ours, theirs = socket.socketpair()
        parent = os.getpid()
        pid = os.fork()
        if pid:
            theirs.close()
            self._pids.append(pid)
            line = _Line(ours)
            self._lines.append(line)
            self._idle.put(line)
            return
        try:
            syscalls.set_parent_death_signal(signal.SIGKILL)
            if os.getppid() == parent:
                ours.close()
                for line in self._lines:  # those of the helpers before
                    line.close()
                keep_off_standard_files()
                _serve(_Line(theirs), self._work)
        finally:
            os._exit(0)

    def _end(self) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
        for pid in self._pids:
            os.waitpid(pid, 0)
        self._pids.clear()
        for line in self._lines:
            line.close()

    def run(self, index: int) -> Unpacked:
        """Has a helper make a layer.

        Raises:
            Error: as the work's, or the nearest class of `zos_cri.errors`.
            Internal: the helper died.
        """
        line = self._idle.get()
        try:
            return _converse(line, index)
        finally:
            self._idle.put(line)  # a dead one too: whoever waits for one must hear of it


def _converse(line: _Line, index: int) -> Unpacked:
    try:
        line.send(b"%d\n" % index)
    except ConnectionError:
        raise Internal("the process that unpacks has died") from None
    said = line.next()
    if not said:
        raise Internal("the process that unpacked it has died")
    answer = _DECODER.decode(said)
    if isinstance(answer, Failed):
        raise as_error(answer)
    return answer.unpacked


class _Line:
    """Lines over a socket, of any length."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._held = bytearray()

    def send(self, line: bytes) -> None:
        self._link.sendall(line)

    def next(self) -> bytes:
        """The next line; empty where the other side is gone."""
        while (end := self._held.find(b"\n")) < 0:
            try:
                more = self._link.recv(_READ)
            except ConnectionError:
                more = b""
            if not more:
                return b""
            self._held += more
        line = bytes(self._held[:end])
        del self._held[: end + 1]
        return line

    def close(self) -> None:
        self._link.close()


def _serve(line: _Line, work: Work) -> None:
    """A helper's life: an index a line comes, what became of it goes back."""
    encode = msgspec.json.Encoder().encode
    while asked := line.next():
        answer: _Made | Failed
        try:
            answer = _Made(work(int(asked)))
        except BaseException as error:
            answer = failed(error)
        line.send(encode(answer) + b"\n")
