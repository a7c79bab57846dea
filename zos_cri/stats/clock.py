"""Times of samples, and rates between them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

# Shorter windows show the scheduler's slices, not a load.
MIN_WINDOW: Final = 500_000_000  # ns


class Clock:
    """Nanoseconds since the epoch that go on as time does, also when somebody sets the clock back.

    A clock set forward is followed; one set back is caught up with, sooner or later.
    """

    def __init__(
        self,
        wall: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._last = wall()
        self._last_monotonic = monotonic()

    def now(self) -> int:
        monotonic = self._monotonic()
        passed = monotonic - self._last_monotonic
        self._last = max(self._wall(), self._last + max(1, passed))
        self._last_monotonic = monotonic
        return self._last


class Rate:
    """How fast a counter of nanoseconds of CPU time grows, in billionths of a CPU."""

    def __init__(self) -> None:
        self._at = 0
        self._count: int | None = None
        self._rate: int | None = None

    def update(self, at: int, count: int) -> int | None:
        """Takes a reading in (`at` in ns); the rate since the one before, None without one.

        Readings closer together than `MIN_WINDOW` leave the rate as it was.
        """
        if self._count is None or count < self._count:
            self._at, self._count, self._rate = at, count, None
        elif at - self._at >= MIN_WINDOW:
            self._rate = (count - self._count) * 1_000_000_000 // (at - self._at)
            self._at, self._count = at, count
        return self._rate
