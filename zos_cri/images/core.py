"""The store's ground: its files open, its writer's thread, what is kept and what is swept away."""

from __future__ import annotations

import asyncio
import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from zos_cri.errors import Error, FailedPrecondition
from zos_cri.images import builtin, sweep
from zos_cri.images.catalog import Catalog
from zos_cri.images.layout import Layout
from zos_cri.images.model import Image, Layer, NewImage, Usage
from zos_cri.images.seals import Seals
from zos_cri.linux.threads import Threads
from zos_cri.log import get_log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from zos_cri.images.sweep import GcReport

_log = get_log(__name__)
T = TypeVar("T")


class Core:
    """What pulls, seals and the store itself stand on."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        self._writer = Threads("images", 1)
        self._sweeper = ThreadPoolExecutor(1, thread_name_prefix="images-sweep")
        self._catalog: Catalog | None = None
        self._lock_fd = -1
        self._next_layer = 1
        self._tasks: set[asyncio.Task[Any]] = set()
        self._leases: dict[object, frozenset[str]] = {}
        self._seals = Seals(self)
        self._blocks = Usage(0, 0)  # flists' blocks, as they were last counted

    # Opening and closing

    async def start(self) -> None:
        """Opens the store and throws away what no record names.

        Raises:
            FailedPrecondition: another process has it open, or a newer version wrote it.
            DataLoss: the catalogue is damaged.
        """
        await self._write(self._open)
        self._seals.begin()
        self._background(self._seals.check_all)
        self._background(self._sweep)
        self._background(self._sweep_blocks)

    def _open(self) -> None:
        self.layout.create()
        self._lock_fd = os.open(self.layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_fd)
            raise FailedPrecondition(
                f"{self.layout.root}: another process has this image store open"
            ) from None
        catalog = Catalog(self.layout.database)
        numbers = [int(entry) for entry in os.listdir(self.layout.layers) if entry.isdigit()]
        self._next_layer = max([0, *numbers, *(x.n for x in catalog.layers.values())]) + 1
        self._catalog = catalog
        self._distrust_unsealed(catalog)
        sweep.discard_strays(catalog, self.layout)

    def _distrust_unsealed(self, catalog: Catalog) -> None:
        """After another boot, what wasn't sealed may never have come to the disk (`seals`)."""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        if catalog.boot_id() == boot:
            return
        for layer in list(catalog.layers.values()):
            if not layer.seal and (gone := catalog.set_damaged(layer.n)) is not None:
                _log.warning(
                    "layer was not on disk when the host went down: its images are gone",
                    layer=layer.n,
                    images=" ".join(gone),
                )
        catalog.set_boot_id(boot)

    async def aclose(self) -> None:
        """Ends background work and closes the catalogue."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._write(self._close)
        self._writer.close()
        self._sweeper.shutdown(cancel_futures=True)

    def _close(self) -> None:
        if self._catalog is not None:
            self._catalog.close()
            self._catalog = None
            os.close(self._lock_fd)

    @property
    def catalog(self) -> Catalog:
        if self._catalog is None:
            raise FailedPrecondition("the image store isn't open")
        return self._catalog

    async def _write(self, fn: Callable[..., T], *args: Any) -> T:
        """Runs `fn` in the thread that owns the catalogue; it goes on if the caller leaves."""
        return await self._writer.submit(fn, *args)

    def _background(self, work: Callable[[], Awaitable[object]]) -> None:
        task = asyncio.ensure_future(_logged(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def commit(self, new: NewImage) -> Image:
        """Takes over an image that a worker has made."""
        image, layers = await self._write(self._commit, new)
        if layers:
            numbers = [layer.n for layer in layers]
            self._background(lambda: self._seals.seal(numbers))
        return image

    async def add_names(self, image_id: str, names: tuple[str, ...]) -> Image:
        """Further names for an image that is here."""
        return await self._write(self.catalog.add_names, image_id, names)

    def _commit(self, new: NewImage) -> tuple[Image, list[Layer]]:
        """Takes over what a worker made: directories into their places, then the records."""
        catalog = self.catalog
        layers: list[Layer] = []
        for made in new.layers:
            if made.chain_id in catalog.layers:  # somebody else was faster
                sweep.discard(self.layout, Path(made.staged))
                continue
            number = self._next_layer
            self._next_layer += 1
            os.rename(made.staged, self.layout.layer(number))
            layers.append(
                Layer(number, made.chain_id, made.diff_id, made.parent, made.bytes, made.inodes)
            )
        missing = [
            chain_id
            for chain_id in new.chain_ids
            if chain_id not in catalog.layers and all(x.chain_id != chain_id for x in layers)
        ]
        if missing:  # removed since the worker was told that they are there
            for layer in layers:
                sweep.discard(self.layout, self.layout.layer(layer.n))
            raise FailedPrecondition(f"image {new.id}: layer {missing[0]} has gone: pull it again")
        image = catalog.add_image(new, layers, pinned=builtin.NAME in new.names)
        return image, layers

    async def set_seal(self, number: int, seal: str, usage: Usage) -> None:
        """Records a layer's first seal."""
        await self._write(self.catalog.set_seal, number, seal, usage)

    async def set_damaged(self, number: int) -> None:
        """A layer isn't what it was: its images go, it stays as long as containers use it."""
        gone = await self._write(self.catalog.set_damaged, number)
        if gone is None:  # another look at it was faster
            return
        _log.error(
            "layer is damaged: its images will be pulled again",
            layer=number,
            images=" ".join(gone),
        )
        self._background(self._sweep)

    async def gc(self, *, dry_run: bool = False) -> GcReport:
        """Removes all that no image, container or pull needs; unlike `remove`, leftovers of
        failed pulls too, which are kept for a while otherwise to be gone on with, and flists'
        blocks.

        Args:
            dry_run: only say what would go.
        """
        report = await self._sweep(grace=0, dry_run=dry_run)
        blocks = await self._sweep_blocks(grace=0, dry_run=dry_run)
        return msgspec.structs.replace(
            report, blocks=blocks.blocks, bytes=report.bytes + blocks.bytes
        )

    async def _sweep(self, *, grace: float = sweep.GRACE, dry_run: bool = False) -> GcReport:
        report = await self._write(self._collect, grace, dry_run)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._sweeper, sweep.empty_trash, self.layout)
        return report

    async def _sweep_blocks(
        self, *, grace: float = sweep.BLOCKS_GRACE, dry_run: bool = False
    ) -> GcReport:
        look = partial(sweep.collect_blocks, self.layout, grace, dry_run=dry_run)
        report, left = await asyncio.get_running_loop().run_in_executor(self._sweeper, look)
        if not dry_run:
            self._blocks = left
        return report

    async def lease_all(self, key: object) -> dict[str, int]:
        """Keeps all layers there are from being collected; answers their numbers by chain id."""
        return await self._write(self._lease_all, key)

    def _lease_all(self, key: object) -> dict[str, int]:
        layers = {chain_id: layer.n for chain_id, layer in self.catalog.layers.items()}
        self._leases[key] = frozenset(layers)
        return layers

    def _leased(self) -> frozenset[str]:
        return frozenset(what for lease in list(self._leases.values()) for what in lease)

    def lease(self, key: object, what: frozenset[str]) -> None:
        """Changes a lease: keeps these chain ids and archives' digests from being collected."""
        self._leases[key] = what

    async def end_job(self, staging: str, *, drop_partials: bool) -> None:
        """A worker is gone: its lease ends, and what it left in its staging directory goes.

        With `drop_partials` what was fetched under the lease alone goes at once too.
        """
        await self._write(self._end_job, staging, drop_partials)
        self._background(self._sweep)

    def _end_job(self, staging: str, drop_partials: bool) -> None:
        # In the writer's thread: a commit that the caller was cancelled in has ended by now.
        mine = self._leases.pop(staging, frozenset())
        sweep.discard(self.layout, Path(staging))
        if drop_partials:
            self._drop_archives(mine)

    def _collect(self, grace: float, dry_run: bool = False) -> GcReport:
        # In the writer's thread: no lease can begin between the look and the deed.
        return sweep.collect(self.catalog, self.layout, self._leased(), grace, dry_run=dry_run)

    def _drop_archives(self, digests: frozenset[str]) -> None:
        sweep.drop_archives(self.catalog, self.layout, digests - self._leased())


async def _logged(work: Callable[[], Awaitable[object]]) -> None:
    """Nobody waits for background work, so its failure must be heard of elsewhere."""
    try:
        await work()
    except (Error, OSError) as error:
        _log.warning("background work on images failed", error=error)
