"""Where a container's entries go: its log file, or nowhere; and what is done when the disk refuses.

The policy: a write that fails (ENOSPC, EDQUOT, EIO, …) is counted and tried again with a growing
pause, and meanwhile the output waits in the FIFO, which in time makes the container wait. After
`drop_after` seconds of that the container matters more than its log: output is dropped, whole
entries at a time, and counted; the file is tried again all the while, and the log goes on as soon
as it takes something. `drop_after` 0 lets the container wait for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zos_cri.errors import Error, one_line
from zos_cri.log import get_log

if TYPE_CHECKING:
    from zos_cri.stdio.logfile import LogFile

_log = get_log(__name__)

FIRST_PAUSE: Final = 0.1
# The longest time for which a log stays silent after its disk has room again.
LONGEST_PAUSE: Final = 2.0


class Sink:
    """One container's log, shared by its streams."""

    def __init__(self, owner: str, log: LogFile | None, drop_after: float) -> None:
        """`log` None drops everything, uncounted. `owner` is the container's id."""
        self._owner = owner
        self._log = log
        self._drop_after = drop_after
        self._since = 0.0  # of the first failure in a row
        self._pause = FIRST_PAUSE
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

    def open(self, taken_over: int | None = None) -> None:
        """As `LogFile.open`."""
        if self._log is not None:
            self._log.open(taken_over)

    def reopen(self) -> None:
        """Goes on in a new file of the same path; in the old one where that can't be opened.

        Raises:
            InvalidArgument, OSError: it can't.
        """
        if self._log is not None:
            self._log.open()
            self.retry_at = 0.0  # it may lie on another disk, or the old one has room now

    def put(self, entries: bytes, size: int, now: float) -> bool:
        """Writes entries that hold `size` bytes of output.

        Args:
            now: the monotonic clock, seconds.

        Returns:
            Whether the output is done with: written, or dropped. If not, the same (or less of it)
            is to be offered again from `retry_at` on.
        """
        if self._log is None:
            return True
        if now < self.retry_at:
            return self._refuse(size)
        try:
            if not self._log.is_open:
                self._log.open()
            self._log.append(entries)
        except (OSError, Error) as error:
            self._failed(one_line(error), now)
            return self._refuse(size)
        self.written += len(entries)
        if self.failing:
            _log.info("log file takes entries again", container=self._owner, dropped=self.dropped)
            self.failing, self.retry_at, self._pause = "", 0.0, FIRST_PAUSE
        return True

    def drop(self, size: int) -> None:
        """Counts output that could not be written."""
        if self._log is not None:
            self.dropped += size

    def close(self) -> None:
        if self._log is not None:
            self._log.close()

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
