"""Where a container's entries go: its log file, or nowhere; and what is done when the disk refuses.

The policy: a write that fails (ENOSPC, EDQUOT, EIO, …) is counted and tried again with a growing
pause, and meanwhile the output waits in the FIFO, which in time makes the container wait. After
`drop_after` seconds of that the container matters more than its log: output is dropped, whole
entries at a time, and counted; the file is tried again all the while, and the log goes on as soon
as it takes something. `drop_after` 0 lets the container wait for ever. A file system that doesn't
answer at all is treated likewise.

A file that lies on a disk of this host is written to directly. Any other (NFS, FUSE, …) may hang,
so it is opened and written to in the background, one call at a time; the stream offers its output
again, and learns from `landed` what has been written meanwhile.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri.errors import Error, one_line
from zos_cri.log import get_log

if TYPE_CHECKING:
    from collections.abc import Callable

    from zos_cri.stdio.background import Background
    from zos_cri.stdio.logfile import LogFile

    Answer = Callable[[Exception | None], None]

_log = get_log(__name__)

FIRST_PAUSE: Final = 0.1
# The longest time for which a log stays silent after its disk has room again.
LONGEST_PAUSE: Final = 2.0
_SILENT: Final = "no answer from the file system"


class _Flight(msgspec.Struct):  # dataclasses would cost the logger 2 MiB
    """A write in the background: of which stream, and of how much of its output."""

    stream: str
    size: int
    dropped: bool = False  # the stream doesn't wait for it any more


class Sink:
    """One container's log, shared by its streams."""

    def __init__(
        self,
        owner: str,
        log: LogFile | None,
        drop_after: float,
        *,
        background: Background,
        on_landed: Callable[[], None],
    ) -> None:
        """
        Args:
            owner: the container's id.
            log: None drops everything, uncounted.
            on_landed: called when something in the background has come to its end.
        """
        self._owner = owner
        self._log = log
        self._drop_after = drop_after
        self._background = background
        self._on_landed = on_landed
        self._since = 0.0  # of the first failure in a row
        self._pause = FIRST_PAUSE
        self._busy = False  # something is under way in the background
        self._busy_since = 0.0  # as a stream saw it first
        self._flight: _Flight | None = None
        self._landed = Counter[str]()  # bytes by stream
        self._reopens: list[Answer] = []  # that wait for what is under way
        self._closed = False
        self.retry_at = 0.0
        self.failing = ""
        self.errors = 0
        self.dropped = 0  # bytes of output
        self.written = 0  # bytes of entries

    @property
    def discards(self) -> bool:
        return self._log is None

    @property
    def dropping(self) -> bool:
        return bool(self.failing) and self.retry_at - self._since >= self._drop_after > 0

    @property
    def inode(self) -> int:
        return self._log.inode if self._log is not None else 0

    @property
    def busy(self) -> bool:
        """Whether an end of something in the background is still to come."""
        return self._busy

    def open(self, answer: Answer, taken_over: int | None = None) -> None:
        """As `LogFile.open`; in the end `answer` gets the error."""
        if self._log is None:
            answer(None)
        else:
            self._start(partial(self._log.open, taken_over), answer)

    def reopen(self, answer: Answer) -> None:
        """Goes on in a new file of the same path; in the old one where that can't be opened.

        `answer` gets the error: InvalidArgument or OSError.
        """
        if self._log is None:
            answer(None)
        elif self._busy:
            self._reopens.append(answer)
        elif self._log.is_local:
            try:
                self._log.open()
            except (OSError, Error) as error:
                answer(error)
            else:
                self._reopened(answer, None)
        else:
            self._start(self._log.open, partial(self._reopened, answer))

    def put(self, entries: bytes, size: int, now: float, stream: str) -> bool:
        """Writes entries that hold `size` bytes of a stream's output.

        Args:
            now: the monotonic clock, seconds.

        Returns:
            Whether the output is done with: written, or dropped. If not, the same (or less of it,
            or more) is to be offered again from `retry_at` on, less what has `landed` by then.
        """
        log = self._log
        if log is None:
            return True
        if self._busy:
            return self._unanswered(size, now, stream)
        if now < self.retry_at:
            return self._refuse(size)
        if not (log.is_open and log.is_local):
            self._flight = _Flight(stream, size)
            self._start(partial(_append, log, entries), partial(self._land, len(entries), now))
            return self._unanswered(size, now, stream)
        try:
            log.append(entries)
        except (OSError, Error) as error:
            self._failed(one_line(error), now)
            return self._refuse(size)
        self._took(len(entries))
        return True

    def landed(self, stream: str) -> int:
        """How much of a stream's output has been written in the background; told once."""
        return self._landed.pop(stream, 0)

    def drop(self, size: int) -> None:
        """Counts output that could not be written."""
        if self._log is not None:
            self.dropped += size

    def close(self) -> None:
        """Closes the file, as soon as nobody uses it."""
        self._closed = True
        if self._log is None or self._busy or not self._log.is_open:
            return
        if self._log.is_local:
            self._log.close()
        else:
            self._background.run(self._log.close)

    # In the background

    def _start(self, job: Callable[[], object], answer: Answer) -> None:
        try:
            self._background.run(job, partial(self._end, answer))
        except Error as error:
            self._flight = None
            answer(error)
        else:
            self._busy, self._busy_since = True, 0.0

    def _end(self, answer: Answer, error: Exception | None) -> None:
        self._busy = False
        if self._closed:
            self.close()
            return
        if error is None:  # it answers again: what waits needn't wait longer
            self.retry_at = 0.0
        answer(error)
        waiting, self._reopens = self._reopens, []
        for each in waiting:
            self.reopen(each)
        self._on_landed()

    def _reopened(self, answer: Answer, error: Exception | None) -> None:
        if error is None:
            self.retry_at = 0.0  # it may lie on another disk, or the old one has room now
        answer(error)

    def _land(self, length: int, now: float, error: Exception | None) -> None:
        flight, self._flight = self._flight, None
        if error is not None:
            self._failed(one_line(error), max(now, self.retry_at))
            return
        self._took(length)
        if flight is not None and not flight.dropped:
            self._landed[flight.stream] += flight.size

    def _unanswered(self, size: int, now: float, stream: str) -> bool:
        if not self._busy:  # it failed at once
            return self._refuse(size)
        self._busy_since = self._busy_since or now
        if not self.failing and now - self._busy_since >= LONGEST_PAUSE:
            self._failed(_SILENT, now)
            self._since = self._busy_since
        self.retry_at = now + LONGEST_PAUSE
        if not self._refuse(size):
            return False
        if self._flight is not None and self._flight.stream == stream:
            self._flight.dropped = True
        return True

    # The policy

    def _took(self, length: int) -> None:
        self.written += length
        if self.failing:
            _log.info("log file takes entries again", container=self._owner, dropped=self.dropped)
            self.failing, self.retry_at, self._pause = "", 0.0, FIRST_PAUSE

    def _refuse(self, size: int) -> bool:
        if not self.dropping:
            return False
        self.dropped += size
        return True

    def _failed(self, reason: str, now: float) -> None:
        self.errors += 1
        if not self.failing:
            self._since = now
            _log.warning("log file refuses entries", container=self._owner, error=reason)
        self.failing = reason
        self.retry_at = now + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)


def _append(log: LogFile, entries: bytes) -> None:
    if not log.is_open:
        log.open()
    log.append(entries)
