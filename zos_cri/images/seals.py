"""Whether the layers are what they were: looked at once after each start, before they are used.

Soon after a layer was made it is put on disk (syncfs) and its seal is taken. Only with its seal is
its record good for more than this boot of the host: after another boot a layer without one counts
as damaged, since its data may never have reached the disk. So no pull waits for the disk, and yet
no record that is believed after a crash names data that aren't there.

After a start all seals are compared in a worker of low priority; a container that needs a layer
which wasn't come to yet has it compared at once. A layer that isn't what it was leaves the
catalogue with the images that stand on it, and so they are pulled again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from zos_cri.errors import Error
from zos_cri.images import workers
from zos_cri.images.jobs import Sealed, SealJob
from zos_cri.images.model import Usage
from zos_cri.log import get_log

if TYPE_CHECKING:
    from collections.abc import Collection

    from zos_cri.images.catalog import Catalog
    from zos_cri.images.jobs import AnyEvent
    from zos_cri.images.layout import Layout

_log = get_log(__name__)


class Holder(Protocol):
    """What seals need of the store."""

    layout: Layout

    @property
    def catalog(self) -> Catalog: ...

    async def set_seal(self, number: int, seal: str, usage: Usage) -> None:
        """Records a layer's first seal."""

    async def set_damaged(self, number: int) -> None:
        """A layer isn't what it was; said again, or of a layer that has gone, it is no error."""


class Seals:
    """Which layers have been looked at since the start."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
        self._unseen: set[int] = set()

    def begin(self) -> None:
        """At start: no layer has been looked at."""
        self._unseen = {
            layer.n for layer in self._holder.catalog.layers.values() if not layer.damaged
        }

    async def check_all(self) -> None:
        """Looks at all that weren't, the ones of images in order; for the background."""
        if self._unseen:
            await self._look(sorted(self._unseen))

    async def check(self, numbers: Collection[int]) -> None:
        """Returns when these layers have been looked at since the start.

        Raises:
            Error: the worker failed.
        """
        unseen = sorted(self._unseen & set(numbers))
        if unseen:
            await self._look(unseen)

    async def seal(self, numbers: Collection[int]) -> None:
        """Takes the seals of new layers; for the background."""
        try:
            await self._look(numbers)
        except Error as error:  # taken after the next start then
            _log.warning("layers were not sealed", layers=sorted(numbers), error=error)

    async def _look(self, numbers: Collection[int]) -> None:
        seen: list[Sealed] = []

        def on_event(event: AnyEvent) -> None:
            if isinstance(event, Sealed):
                seen.append(event)

        by_number = {layer.n: layer for layer in list(self._holder.catalog.layers.values())}
        new = any(n in by_number and not by_number[n].seal for n in numbers)
        root = str(self._holder.layout.root)
        await workers.run(
            SealJob(root=root, staging="", numbers=tuple(numbers), sync=new), on_event
        )
        by_number = {layer.n: layer for layer in list(self._holder.catalog.layers.values())}
        for event in seen:
            layer = by_number.get(event.number)
            if layer is None:
                continue
            if event.seal and not layer.seal:
                usage = Usage(event.bytes, event.inodes)
                await self._holder.set_seal(event.number, event.seal, usage)
            elif event.seal != layer.seal:
                await self._holder.set_damaged(event.number)
            self._unseen.discard(event.number)
