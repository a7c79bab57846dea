"""Calls on paths that users name, in threads of their own: a dead file system never answers.

One such call may hold up its own container's log, never the logger.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

from zos_cri.errors import ResourceExhausted
from zos_cri.log import get_log

if TYPE_CHECKING:
    from collections.abc import Callable

    from zos_cri.stdio.loop import Loop

_log = get_log(__name__)

# As linux.blocking has it: beyond this many the host's storage is gone.
MAX_RUNNING: Final = 256
_STACK: Final = 256 * 1024  # a few frames deep; only touched pages count


class Background:
    """Runs jobs in threads and tells the loop of their ends."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._ended: deque[Callable[[], None]] = deque()
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()  # between a thread's last word and `close`
        self._closed = False
        self.running = 0  # jobs that haven't come to their end
        threading.stack_size(_STACK)
        loop.register(self._event, select.EPOLLIN, self._hear)

    def run(
        self, job: Callable[[], object], done: Callable[[Exception | None], None] | None = None
    ) -> None:
        """Runs `job` in a thread; then, in the loop, `done` with the error that it raised.

        Raises:
            ResourceExhausted: `MAX_RUNNING` earlier ones haven't come to an end.
        """
        if self.running >= MAX_RUNNING:
            raise ResourceExhausted(f"logger: {MAX_RUNNING} calls on log files are stuck")
        self.running += 1
        threading.Thread(target=self._work, args=(job, done), daemon=True).start()

    def close(self) -> None:
        """What still runs is left behind."""
        with self._lock:
            self._closed = True
            self._loop.unregister(self._event)
            os.close(self._event)

    def _work(
        self, job: Callable[[], object], done: Callable[[Exception | None], None] | None
    ) -> None:
        error: Exception | None = None
        try:
            job()
        except Exception as raised:
            error = raised
        with self._lock:
            if not self._closed:
                self._ended.append(partial(self._end, done, error))
                os.eventfd_write(self._event, 1)

    def _hear(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)
        while self._ended:
            self._ended.popleft()()

    def _end(
        self, done: Callable[[Exception | None], None] | None, error: Exception | None
    ) -> None:
        self.running -= 1
        if done is None:
            if error is not None:
                _log.debug("a log file's job failed", error=str(error))
            return
        try:
            done(error)
        except Exception:  # one container's trouble must not be all the others'
            _log.exception("after a log file's job")
