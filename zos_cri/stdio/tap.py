"""A subscriber to a container's streams: a descriptor that gets a copy of what comes."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from zos_cri.stdio.loop import Loop

# Only a container that has exited may have this much pending: its FIFO's content and a step more.
MAX_PENDING: Final = 4 << 20


class Tap:
    """One descriptor: the write end of a pipe, or a socket.

    What it won't take is kept, at most one step's; while something is kept the stream isn't read.
    """

    def __init__(self, fd: int, loop: Loop, on_change: Callable[[], None]) -> None:
        """Owns `fd`. `on_change` is called when it can go on, and when it is gone."""
        os.set_blocking(fd, False)
        self._fd = fd
        self._loop = loop
        self._on_change = on_change
        self._pending = b""
        self._ending = False
        loop.register(fd, 0, self._event)  # errors and hang-ups are always told

    @property
    def behind(self) -> bool:
        return bool(self._pending)

    @property
    def gone(self) -> bool:
        return self._fd < 0

    def push(self, data: bytes) -> None:
        """Writes it, or keeps what doesn't fit."""
        if self.gone:
            return
        if len(self._pending) + len(data) > MAX_PENDING:
            self.close()
            return
        was_behind = self.behind
        self._pending += data
        if not was_behind:
            self._flush()
            if self.behind:
                self._loop.modify(self._fd, select.EPOLLOUT)

    def end(self) -> None:
        """Nothing more comes: closes it once all is written."""
        self._ending = True
        if not self.behind:
            self.close()

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.unregister(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._pending = b""

    def _event(self, events: int) -> None:
        if events & (select.EPOLLERR | select.EPOLLHUP):
            self.close()
            self._on_change()
            return
        self._flush()
        if not self.behind and not self.gone:
            if self._ending:
                self.close()
            else:
                self._loop.modify(self._fd, 0)
        if not self.behind:
            self._on_change()

    def _flush(self) -> None:
        try:
            written = os.write(self._fd, self._pending)
        except BlockingIOError:
            return
        except OSError:  # its reader is gone
            self.close()
            return
        self._pending = self._pending[written:]
