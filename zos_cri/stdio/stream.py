"""One container stream: from its FIFO into the log, so that a SIGKILL at any instant loses nothing.

Each step takes at most `QUANTUM` bytes and goes in this order:
1. *look*: tee(2) copies what is in the FIFO into a pipe of our own; the FIFO keeps it;
2. *write*: the whole entries among it are appended to the log file by one write(2);
3. *take*: exactly the bytes that those entries hold are read away from the FIFO.
An unterminated line stays in the FIFO until its end comes.

Killed before the write, nothing has happened. Killed in it, the file may end in a torn entry; the
next logger removes that (`LogFile.open`). Killed between the write and the end of the take, the
next logger writes the same entries again: at most one step's, `QUANTUM` bytes of output, and always
whole entries, because the kernel reads from a pipe that holds enough in one go that no signal
interrupts (splice(2) to /dev/null may stop half-way, which is why it isn't used here; it measured
no faster).

A line that could fill the FIFO without an end (only where `max_line` is far over its default) is
gathered outside of it, in memory and on tmpfs (`Part`). For those lines alone the repetition after
a kill may begin inside the line.
"""

from __future__ import annotations

import array
import contextlib
import enum
import fcntl
import os
import select
import stat
import termios
import time
from typing import TYPE_CHECKING, Final

from zos_cri.errors import Error, FailedPrecondition, InvalidArgument, NotFound
from zos_cri.linux import syscalls
from zos_cri.log import get_log
from zos_cri.wire import crilog

if TYPE_CHECKING:
    from collections.abc import Callable

    from zos_cri.stdio.loop import Loop
    from zos_cri.stdio.sink import Sink
    from zos_cri.stdio.state import Part
    from zos_cri.stdio.tap import Tap

_log = get_log(__name__)

# Measured: 64 KiB costs a third more CPU a byte, and at 1 MiB all of it falls out of the cache and
# costs twice as much.
QUANTUM: Final = 256 * 1024
# Of empty lines every byte becomes 43; a smaller step keeps that under 3 MiB.
_SHORT_LINES_QUANTUM: Final = 64 * 1024
_SAMPLE: Final = 4096
_SHORT_LINE: Final = 16
PIPE_SIZE: Final = 1 << 20  # what /proc/sys/fs/pipe-max-size allows by default
MAX_LINE: Final = 16 << 20  # what "no limit" means: memory has one
_NONBLOCK: Final = 2  # SPLICE_F_NONBLOCK


class Outcome(enum.Enum):
    """What a step of a stream found."""

    IDLE = "nothing to do until the FIFO changes"
    MORE = "more is there now"
    HELD = "a tap hasn't taken what it was given"
    WAIT = "the log file takes nothing before the sink's retry_at"
    ENDED = "all is written and nobody has the FIFO open for writing"


class Pipe:
    """Our own pipe, by which FIFOs are looked into; one for all streams, empty between steps."""

    def __init__(self, size: int = PIPE_SIZE) -> None:
        self._read, self._write = os.pipe()
        self.capacity = set_capacity(self._write, size)
        self._scratch = memoryview(bytearray(QUANTUM))

    def look(self, fd: int, count: int) -> bytes | None:
        """Up to `count` bytes of what the FIFO holds; None: nothing now; b"": and no writer."""
        try:
            size = syscalls.tee(fd, self._write, count, _NONBLOCK)
        except BlockingIOError:
            return None
        return os.read(self._read, size) if size else b""

    def take(self, fd: int, count: int) -> None:
        """Reads away bytes that the FIFO is known to hold."""
        while count > 0:
            count -= os.readv(fd, [self._scratch[:count]])

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class Stream:
    """A stream of one container. The caller calls `pump` when the FIFO changed."""

    def __init__(
        self,
        *,
        name: str,
        path: str,
        max_line: int,
        sink: Sink,
        part: Part,
        pipe: Pipe,
        loop: Loop,
        on_change: Callable[[Stream], None],
    ) -> None:
        """`name` is `stdout` or `stderr`; `on_change` is called when the FIFO changed."""
        self.name = name
        self.path = path
        self.fd = -1
        self.hung_up = False  # poll(2) said that the last writer is gone
        self._others = False  # there may be writers of an earlier try, who are about to go
        self.ended = True
        self.finishing = False
        self.cut_off = False  # nobody waits for more: an unterminated line is written as well
        self.queued = False  # the caller's mark: it is among those to be pumped
        self.waiting = False  # likewise: a timer will pump it
        self.bytes_in = 0
        self.taps: list[Tap] = []
        self._tag = name.encode()
        self._pipe = pipe
        self._sink = sink
        self._part = part
        self._loop = loop
        self._on_change = on_change
        self._clock = crilog.Clock()
        self._seen = 0  # bytes at the FIFO's head that the taps have been given
        self._max_line = max_line if 0 < max_line < MAX_LINE else MAX_LINE
        self._small = min(QUANTUM, self._max_line + 1)
        self._gather_from = QUANTUM
        self._sees_all = True

    def open(self, *, taken_over: bool = False) -> None:
        """Opens the FIFO for reading, which waits for no writer.

        Where it is open, it is opened anew: poll(2) tells a new descriptor nothing of writers that
        have gone before it came. One hang-up that may be that of older ones is passed over, and the
        end is then told by `finish`.

        Raises:
            NotFound, InvalidArgument: it isn't there; it is something else.
        """
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(self.path, flags)
        except FileNotFoundError as error:
            raise NotFound(f"{self.name}: no FIFO {self.path}") from error
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.close(fd)
            raise InvalidArgument(f"{self.name}: {self.path} is no FIFO")
        capacity = set_capacity(fd, PIPE_SIZE)
        self._sees_all = self._pipe.capacity >= capacity
        # A FIFO can be full with little over half its bytes, where writes don't fill its pages.
        self._gather_from = min(QUANTUM, self._pipe.capacity // 3, capacity // 3)
        self._others = self.fd >= 0
        if self._others:  # not before: what is in the FIFO stays only while somebody has it open
            self._loop.unregister(self.fd)
            os.close(self.fd)
        else:
            self._seen = 0
        self.fd, self.ended, self.hung_up = fd, False, False
        if taken_over:
            self._part.load()
        # Edge-triggered, or an unterminated line in the FIFO would report without end.
        self._loop.register(fd, select.EPOLLIN | select.EPOLLET, self._event, patient=True)

    def _event(self, events: int) -> None:
        if events & select.EPOLLHUP:
            self.hung_up = self.finishing or not self._outlives_others()
        self._on_change(self)

    def _outlives_others(self) -> bool:
        """Whether a hang-up may be that of writers who had come before `open`, and it goes on."""
        if self._others:
            with contextlib.suppress(OSError, Error):
                self.open()
                self._others = False
                return True
        return False

    def close(self) -> None:
        if self.fd >= 0:
            self._loop.unregister(self.fd)
            os.close(self.fd)
            self.fd = -1
        self.ended = True
        for tap in self.taps:
            tap.end()
        self.taps.clear()

    def poke(self) -> None:
        """Makes poll(2) tell whether there is a writer, even if there never was one since `open`.

        Only for a container that has exited: before that, no writer may mean not yet.
        """
        with contextlib.suppress(OSError):
            path = f"/proc/self/fd/{self.fd}"
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))

    def pump(self, now: float) -> Outcome:
        """One step; `now` is the monotonic clock, seconds."""
        if self.ended:
            return Outcome.ENDED
        if landed := self._sink.landed(self.name):
            self._took_entries(landed)
        if not self.finishing and any(tap.behind for tap in self.taps):
            return Outcome.HELD
        data, more, last = self._look()
        if not data and not (last and self._part.data):
            if self.cut_off or (self.hung_up and data is not None):
                self._end()
            return Outcome.ENDED if self.ended else Outcome.IDLE
        data = data or b""
        self._copy(data)
        done = self._write(data, now, last=last)
        if done is None:
            return Outcome.WAIT
        if last and (self.hung_up or self.cut_off):
            self._end()
            return Outcome.ENDED
        return Outcome.MORE if more and done else Outcome.IDLE

    def _look(self) -> tuple[bytes | None, bool, bool]:
        """What to work on, as from `Pipe.look`; may there be more; can nothing follow it."""
        quantum = self._small if self._sink.failing else QUANTUM
        data = self._pipe.look(self.fd, quantum)
        size = len(data or b"")
        more = not self._sees_all or size >= quantum
        last = (self.hung_up or self.cut_off) and unread(self.fd) == size
        short = data is not None and data.count(b"\n", 0, _SAMPLE) > _SAMPLE // _SHORT_LINE
        if data is not None and short and size > _SHORT_LINES_QUANTUM:
            return data[:_SHORT_LINES_QUANTUM], True, False
        return data, more, last

    def finish(self, now: float) -> None:
        """Writes what there is, though somebody may still hold the FIFO open, and closes it.

        Not what is written in the background: while the sink is busy, the stream ends later, by
        its steps, or by `give_up`.
        """
        self.finishing = self.cut_off = True
        # What was in it when the container exited is surely under its capacity; a writer that
        # goes on isn't waited for.
        for _ in range(2 * PIPE_SIZE // _SHORT_LINES_QUANTUM):
            if self.ended or self.pump(now) is not Outcome.MORE:
                break
        if not self._sink.busy:
            self.give_up()

    def give_up(self) -> None:
        """Ends it here and now; what it holds is dropped and counted."""
        if self.ended:
            return
        left = unread(self.fd) + len(self._part.data)
        if left:
            _log.warning("output left behind", fifo=self.path, bytes=left)
            self._sink.drop(left)
        self._end()

    def _write(self, data: bytes, now: float, *, last: bool) -> int | None:
        """How many bytes were taken from the FIFO; None where the sink wants them later."""
        part = self._part.data
        if self._sink.discards:
            used = len(data)
        else:
            entries, used = crilog.encode(
                part + data if part else data,
                stamp=self._clock.stamp(time.time_ns()),
                stream=self._tag,
                max_line=self._max_line,
                eof=last,
            )
            if not entries:
                return self._gather(data)
            if not self._sink.put(entries, used, now, self.name):
                return None
        self._took_entries(used)
        return used

    def _took_entries(self, used: int) -> None:
        """Takes what entries held; a gathered line's beginning isn't in the FIFO any more."""
        used -= len(self._part.data)
        self._part.clear()
        self._take(used)

    def _gather(self, data: bytes) -> int:
        if len(data) < self._gather_from:
            return 0
        try:
            self._part.add(data)
        except OSError as error:  # the FIFO keeps it
            _log.error("a long line can't be gathered", fifo=self.path, error=str(error))
            return 0
        self._take(len(data))
        return len(data)

    def _take(self, count: int) -> None:
        self._pipe.take(self.fd, count)
        self.bytes_in += count
        self._seen -= min(self._seen, count)

    def _copy(self, data: bytes) -> None:
        """Gives the taps what they haven't been given yet."""
        if len(data) > self._seen:
            fresh = data[self._seen :] if self._seen else data
            self._seen = len(data)
            for tap in self.taps:
                tap.push(fresh)
            if any(tap.gone for tap in self.taps):
                self.taps = [tap for tap in self.taps if not tap.gone]

    def _end(self) -> None:
        self._part.clear()
        self.close()

    def tap(self, tap: Tap) -> None:
        """Adds a tap.

        Raises:
            FailedPrecondition: the stream has come to its end.
        """
        if self.ended:
            raise FailedPrecondition(f"{self.name} has come to its end")
        self.taps.append(tap)


def set_capacity(fd: int, size: int) -> int:
    """Makes a pipe as large as that, or leaves it as it is; its size then."""
    with contextlib.suppress(OSError):  # the limit is lower, or it holds too much to be shrunk
        if fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) < size:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)
    return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)


def unread(fd: int) -> int:
    """How many bytes a pipe holds."""
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]
