"""How much the containers have written into their layers: measured all the time, slowly.

Measuring walks a whole tree. A container with a million files takes seconds, so each is measured
again only after a rest many times as long as the measurement took.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from zos_cri.errors import Error, NotFound, one_line
from zos_cri.log import get_log
from zos_cri.stats import messages
from zos_cri.stats.clock import Clock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from zos_cri.images.model import Usage

    LayerUsage = Callable[[str], Awaitable[Usage]]

_log = get_log(__name__)

SETTLE: Final = 1.0  # seconds; while pods come and go, that is what goes first
REST: Final = 20  # times as long as a measurement took: at most 5 % of a core go into these


class _Layer(NamedTuple):
    used: int
    encoded: bytes  # a ContainerStats with its writable_layer alone
    due: float  # when to measure again, by the monotonic clock
    final: bool  # nothing wrote to it any more


class Layers:
    """The writable layers' sizes, as last measured."""

    def __init__(
        self,
        containers: Callable[[], Mapping[str, bool]],
        measure: LayerUsage,
        mountpoint: str,
        *,
        interval: float,
        settle: float = SETTLE,
    ) -> None:
        """
        Args:
            containers: the ids of all that have a layer, and whether something may write to it.
            interval: seconds between two measurements of a layer, at least.
            settle: seconds without a `wake`, after which those are measured that it was for;
                after an interval they are at the latest.
        """
        self._containers = containers
        self._measure = measure
        self._mountpoint = mountpoint
        self._interval = interval
        self._settle = settle
        self._layers: dict[str, _Layer] = {}
        self._clock = Clock()
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """A container came, or stopped writing."""
        self._wake.set()

    def encoded(self, id_: str) -> bytes:
        """A ContainerStats with the layer's usage alone; of nothing where it isn't known yet."""
        layer = self._layers.get(id_)
        return b"" if layer is None else layer.encoded

    def used(self, id_: str) -> int:
        """Bytes; 0 where it isn't known yet."""
        layer = self._layers.get(id_)
        return 0 if layer is None else layer.used

    async def run(self) -> None:
        """Measures, until it is cancelled."""
        while True:
            self._wake.clear()
            await self.measure_due()
            with contextlib.suppress(TimeoutError):
                # not wait_for: before Python 3.12 it loses a cancel that comes with the event
                async with asyncio.timeout(self._interval):
                    await self._wake.wait()
                    await self._settled()

    async def _settled(self) -> None:
        while self._wake.is_set():
            self._wake.clear()
            await asyncio.sleep(self._settle)

    async def measure_due(self) -> None:
        """Measures those whose time has come, and forgets those that are gone."""
        containers = self._containers()
        for id_ in [id_ for id_ in self._layers if id_ not in containers]:
            del self._layers[id_]
        for id_, written_to in containers.items():
            if self._is_due(id_, written_to):
                await self._measure_one(id_, written_to)

    def _is_due(self, id_: str, written_to: bool) -> bool:
        layer = self._layers.get(id_)
        if layer is None or layer.final == written_to:
            return True  # new, started, or stopped and to be measured for the last time
        return written_to and time.monotonic() >= layer.due

    async def _measure_one(self, id_: str, written_to: bool) -> None:
        begun = time.monotonic()
        try:
            usage = await self._measure(id_)
        except NotFound:
            return
        except (Error, OSError) as error:
            _log.warning("layer not measured", container=id_, error=one_line(error))
            return
        now = time.monotonic()
        encoded = messages.writable_layer(
            self._clock.now(), self._mountpoint, usage.bytes, usage.inodes
        )
        rest = max(self._interval, REST * (now - begun))
        self._layers[id_] = _Layer(usage.bytes, encoded, now + rest, not written_to)
