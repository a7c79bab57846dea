"""The logger's event loop: epoll and timers, and nothing else.

asyncio would do, but for its size (10 MiB of RSS, more than all the rest) and for its selector,
which is level-triggered: an unterminated line waiting in a FIFO would keep it awake.

Streams are *patient*: while they are busy they are looked at once a millisecond, so that a writer
of many small pieces doesn't wake us for each (measured with 100-byte writes: a quarter of the CPU).
Clients and taps are served at once all the same, and so is a stream that was quiet.
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
# A FIFO of 1 MiB holds what a writer of 1 GB/s writes in this time.
REST: Final = 0.001
_BUSY: Final = 0.005  # a stream that changes again within this time is busy


class Timer:
    """A call to come; `cancel` may be called at any time."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Loop:
    """Calls back on events of descriptors and at times."""

    def __init__(self) -> None:
        self._prompt = select.epoll()
        self._patient = select.epoll()
        self._all = select.epoll()
        self._all.register(self._prompt.fileno(), select.EPOLLIN)
        self._all.register(self._patient.fileno(), select.EPOLLIN)
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._patient_fds: set[int] = set()
        # Registered while events are handled: what those still say of such a descriptor's number
        # is about one that was closed.
        self._fresh: set[int] = set()
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()
        self._last_change = 0.0  # of a patient descriptor
        self._resting = False

    def register(
        self, fd: int, events: int, callback: Callable[[int], None], *, patient: bool = False
    ) -> None:
        """`callback` gets the events that are there; EPOLLERR and EPOLLHUP always count."""
        self._of(patient).register(fd, events)
        self._callbacks[fd] = callback
        self._fresh.add(fd)
        if patient:
            self._patient_fds.add(fd)

    def modify(self, fd: int, events: int) -> None:
        self._of(fd in self._patient_fds).modify(fd, events)

    def unregister(self, fd: int) -> None:
        """Before the descriptor is closed."""
        del self._callbacks[fd]
        self._of(fd in self._patient_fds).unregister(fd)
        self._patient_fds.discard(fd)

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        timer = Timer(call)
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._count), timer))
        return timer

    def hurry(self) -> None:
        """Ends a rest: somebody waits for a stream's end."""
        self._resting = False

    def poll(self, *, block: bool) -> None:
        """Handles what there is; with `block`, waits for something first."""
        if self._resting and block:
            self._resting = False
            self._handle(self._prompt.poll(self._timeout(REST), _EVENTS))
        elif block:
            self._all.poll(self._timeout(), 2)
            self._handle(self._prompt.poll(0, _EVENTS))
        else:
            self._handle(self._prompt.poll(0, _EVENTS))
        changed = self._patient.poll(0, _EVENTS)
        if changed:
            last, self._last_change = self._last_change, time.monotonic()
            self._resting = self._last_change - last < _BUSY
            self._handle(changed)
        now = time.monotonic()  # a timer that sets itself anew has its turn after the others
        while self._timers and self._timers[0][0] < now:
            timer = heapq.heappop(self._timers)[2]
            if timer.call is not None:
                timer.call()

    def close(self) -> None:
        for epoll in (self._all, self._patient, self._prompt):
            epoll.close()

    def _handle(self, found: list[tuple[int, int]]) -> None:
        self._fresh.clear()
        for fd, events in found:
            callback = self._callbacks.get(fd)  # an earlier one may have closed it
            if callback is not None and fd not in self._fresh:
                callback(events)

    def _of(self, patient: bool) -> select.epoll:
        return self._patient if patient else self._prompt

    def _timeout(self, most: float | None = None) -> float | None:
        while self._timers and self._timers[0][2].call is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return most
        left = max(0.0, self._timers[0][0] - time.monotonic())
        return left if most is None else min(left, most)
