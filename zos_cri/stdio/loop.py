"""The logger's event loop: epoll and timers, and nothing else.

asyncio would do, but for its size (10 MiB of RSS, more than all the rest) and for its selector,
which is level-triggered: an unterminated line waiting in a FIFO would keep it awake.
"""

from __future__ import annotations

import heapq
import itertools
import select
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_EVENTS: Final = 256


class Timer:
    """A call to come; `cancel` may be called at any time."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Loop:
    """Calls back on events of descriptors and at times."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        # Registered while events are handled: what those still say of such a descriptor's number
        # is about one that was closed.
        self._fresh: set[int] = set()
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()

    def register(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """`callback` gets the events that are there; EPOLLERR and EPOLLHUP always count."""
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback
        self._fresh.add(fd)

    def modify(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def unregister(self, fd: int) -> None:
        """Before the descriptor is closed."""
        del self._callbacks[fd]
        self._epoll.unregister(fd)

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        timer = Timer(call)
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._count), timer))
        return timer

    def poll(self, *, block: bool) -> None:
        """Handles what there is; with `block`, waits for something first."""
        found = self._epoll.poll(self._timeout() if block else 0, _EVENTS)
        self._fresh.clear()
        for fd, events in found:
            callback = self._callbacks.get(fd)  # an earlier one may have closed it
            if callback is not None and fd not in self._fresh:
                callback(events)
        while self._timers and self._timers[0][0] <= time.monotonic():
            timer = heapq.heappop(self._timers)[2]
            if timer.call is not None:
                timer.call()

    def close(self) -> None:
        self._epoll.close()

    def _timeout(self) -> float | None:
        while self._timers and self._timers[0][2].call is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
