"""The image store: what the server knows about images and does with them.

Reads (`status`, `list`, `get`) are answered from memory. Writes go through one thread that owns
the catalogue; long removals through another one. A name or an image vanishes from the catalogue
first and from the disk afterwards; an image's data come the other way round.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from zos_cri.errors import FailedPrecondition, InvalidArgument, NotFound
from zos_cri.images import builtin, rootfs, sweep
from zos_cri.images.catalog import Catalog
from zos_cri.images.jobs import Fetching
from zos_cri.images.layout import Layout, sync_directory
from zos_cri.images.merged import MergedView
from zos_cri.images.model import FsInfo, Image, Layer, NewImage, Usage
from zos_cri.images.pulls import PullProgress, PullReport, Pulls
from zos_cri.images.trees import remove, tree_usage
from zos_cri.log import get_log
from zos_cri.wire import reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from zos_cri.images.model import Auth
    from zos_cri.images.sweep import GcReport
    from zos_cri.linux.mount import Mount

_log = get_log(__name__)
T = TypeVar("T")

_CONTAINER_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_ID_PREFIX: Final = re.compile(r"(?:sha256:)?([0-9a-f]{4,64})")
# /etc/passwd and /etc/group of the images in use; each entry is bounded by its caller's limit.
_CACHED_FILES: Final = 256
_FLIST: Final = "flist:"


def normal_key(ref: str) -> str:
    """The key that a reference is stored under.

    Raises:
        InvalidArgument: it is no reference.
    """
    if ref.startswith(_FLIST):
        return ref
    try:
        return reference.parse(ref).key
    except reference.InvalidReference as error:
        raise InvalidArgument(str(error)) from error


class ImageStore:
    """All images of this host. `start` first, `aclose` last."""

    def __init__(
        self,
        root: Path,
        *,
        busybox: Path = builtin.BUSYBOX,
        certs_dirs: Sequence[Path] = (),
        fetching: Fetching | None = None,
        on_report: Callable[[PullReport], None] | None = None,
    ) -> None:
        """
        Args:
            root: the store's directory; it belongs to this object alone while it is open.
            busybox: a statically linked busybox, for the built-in image.
            certs_dirs: trees of `<registry>/hosts.toml`; the first that knows a registry counts.
            fetching: how pulls deal with the network and the disk.
            on_report: told of each pull's end.
        """
        self.layout = Layout(root)
        self._busybox = busybox
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="images")
        self._sweeper = ThreadPoolExecutor(1, thread_name_prefix="images-sweep")
        self._catalog: Catalog | None = None
        self._lock_fd = -1
        self._next_layer = 1
        self._files: dict[tuple[str, str, int], bytes | None] = {}
        self._upper_usage: dict[str, Usage] = {}
        self._builtin = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._leases: dict[object, frozenset[str]] = {}
        self._pulls = Pulls(
            self, fetching=fetching or Fetching(), certs_dirs=certs_dirs, on_report=on_report
        )

    # Opening and closing

    async def start(self) -> None:
        """Opens the store and throws away what no record names.

        Raises:
            FailedPrecondition: another process has it open, or a newer version wrote it.
            DataLoss: the catalogue is damaged.
        """
        await self._write(self._open)
        self._background(self._sweep())

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
        sweep.discard_strays(catalog, self.layout)

    async def aclose(self) -> None:
        """Ends pulls and background work, and closes the catalogue."""
        await self._pulls.aclose()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._write(self._close)
        self._writer.shutdown()
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
        loop = asyncio.get_running_loop()
        return await asyncio.shield(loop.run_in_executor(self._writer, fn, *args))

    def _background(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Reads

    def find(self, ref: str) -> Image | None:
        """The image that a name, an id or an unambiguous id prefix (4 digits or more) means.

        Raises:
            InvalidArgument: it is neither a reference nor an id, or it is an ambiguous prefix.
        """
        catalog = self.catalog
        image = catalog.images.get(ref) or catalog.images.get(f"sha256:{ref}")
        if image is not None:
            return image
        prefix = _ID_PREFIX.fullmatch(ref)
        try:
            image = catalog.images.get(catalog.names.get(normal_key(ref), ""))
        except InvalidArgument:
            if prefix is None:
                raise
        if image is not None or prefix is None:
            return image
        start = f"sha256:{prefix[1]}"
        matches = [image for image in list(catalog.images.values()) if image.id.startswith(start)]
        if len(matches) > 1:
            raise InvalidArgument(f"image id {ref}: {len(matches)} images' ids begin so")
        return matches[0] if matches else None

    async def status(self, ref: str) -> Image | None:
        """As `find`; the built-in image is made if it is asked for and isn't there."""
        image = self.find(ref)
        if image is None and ref.startswith("localhost/") and normal_key(ref) == builtin.NAME:
            return await self.ensure_builtin()
        return image

    async def list(self, ref_filter: str = "") -> tuple[Image, ...]:
        """All images, or the one that `ref_filter` names."""
        if ref_filter:
            image = self.find(ref_filter)
            return (image,) if image else ()
        return tuple(self.catalog.images.values())

    async def raw_config(self, image_id: str) -> bytes:
        """An image's configuration, the JSON document whose digest is the image's id.

        Raises:
            NotFound: no such image.
        """
        try:
            return await self._write(self.catalog.raw_config, image_id)
        except KeyError:
            raise NotFound(f"image {image_id}: not here") from None

    async def fs_info(self) -> FsInfo:
        """What all images take (archives too), and what the containers' layers were seen to."""
        catalog = self.catalog
        layers = [*catalog.layers.values()]
        blobs = {b.digest: b.size for m in [*catalog.manifests.values()] for b in m.blobs}
        uppers = [*self._upper_usage.values()]
        return FsInfo(
            mountpoint=str(self.layout.root),
            used_bytes=sum(layer.bytes for layer in layers) + sum(blobs.values()),
            used_inodes=sum(layer.inodes for layer in layers) + len(blobs),
            containers_bytes=sum(usage.bytes for usage in uppers),
            containers_inodes=sum(usage.inodes for usage in uppers),
            timestamp_ns=time.time_ns(),
        )

    async def read_files(
        self, image_id: str, paths: Sequence[str], limit: int
    ) -> dict[str, bytes | None]:
        """Regular files of an image, None for those that it doesn't have.

        Symbolic links are resolved within the image. Results are cached.

        Raises:
            NotFound: no such image.
            ResourceExhausted: a file is larger than `limit` bytes.
        """
        image = self._image(image_id)
        missing = [path for path in paths if (image_id, path, limit) not in self._files]
        if missing:
            view = MergedView([os.fsencode(p) for p in self._layer_paths(image.chain_ids)])
            read = await self._write(_read_all, view, missing, limit)
            for path, content in read.items():
                self._files[(image_id, path, limit)] = content
        result = {path: self._files[(image_id, path, limit)] for path in paths}
        while len(self._files) > _CACHED_FILES:
            del self._files[next(iter(self._files))]
        return result

    def _image(self, image_id: str) -> Image:
        image = self.catalog.images.get(image_id)
        if image is None:
            raise NotFound(f"image {image_id}: not here")
        return image

    def _layer_paths(self, chain_ids: Iterable[str]) -> tuple[Path, ...]:
        layers = self.catalog.layers
        return tuple(self.layout.layer(layers[chain_id].n) for chain_id in chain_ids)

    # Images come

    async def pull(
        self, ref: str, auth: Auth | None = None, *, timeout: float | None = None
    ) -> str:
        """Pulls an image, or joins who is pulling it with the same credentials.

        The work goes on as long as one caller waits for it; when the last one is cancelled it
        ends and leaves nothing behind.

        Returns:
            The image's id.

        Raises:
            InvalidArgument: `ref` is no reference, or `auth` is malformed.
            NotFound, PermissionDenied, RegistryUnavailable, DataLoss, ResourceExhausted, …: one
                line that names the hosts that were tried, or the layer, and why each failed.
            DeadlineExceeded: `timeout` (seconds) ran out.
        """
        if ref.startswith("localhost/") and normal_key(ref) == builtin.NAME:
            return (await self.ensure_builtin()).id
        return await self._pulls.pull(ref, auth, timeout)

    def progress(self, ref: str) -> PullProgress | None:
        """How far the pull of a reference is; None where none is under way."""
        return self._pulls.progress(ref)

    def all_progress(self) -> tuple[PullProgress, ...]:
        """Of every pull under way."""
        return self._pulls.all_progress()

    async def commit(self, new: NewImage) -> Image:
        """Takes over an image that a worker has made."""
        return await self._write(self._commit, new)

    async def add_names(self, image_id: str, names: tuple[str, ...]) -> Image:
        """Further names for an image that is here."""
        return await self._write(self.catalog.add_names, image_id, names)

    async def ensure_builtin(self) -> Image:
        """The built-in image, made from the distribution's busybox if it isn't there yet.

        Raises:
            FailedPrecondition: there is no usable busybox.
        """
        async with self._builtin:
            image = self.catalog.images.get(self.catalog.names.get(builtin.NAME, ""))
            if image is not None:
                return image
            applets = await builtin.applets(self._busybox)
            staging = self.layout.ingest / "builtin"
            return await self._write(self._make_builtin, staging, applets)

    def _make_builtin(self, staging: Path, applets: Sequence[str]) -> Image:
        remove(str(staging))
        return self._commit(builtin.make(staging, self._busybox, applets, self.layout.blob))

    def _commit(self, new: NewImage) -> Image:
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
        sync_directory(self.layout.layers)
        return catalog.add_image(new, layers, pinned=builtin.NAME in new.names)

    # Images go

    async def remove(self, ref: str) -> None:
        """Removes an image and all its names; nothing to do where there is none.

        Layers that a container stands on stay until it is released.

        Raises:
            InvalidArgument: `ref` is neither a reference nor an id.
        """
        image = self.find(ref)
        if image is None:
            return
        leased = frozenset(what for lease in self._leases.values() for what in lease)
        await self._write(self._remove, image.id, leased)
        self._forget_files(image.id)
        self._background(self._sweep())

    def _remove(self, image_id: str, leased: frozenset[str]) -> None:
        archives = {blob.digest for blob in self.catalog.blobs_of(image_id)}
        self.catalog.remove_image(image_id)
        sweep.drop_archives(self.catalog, self.layout, archives - leased)

    def _forget_files(self, image_id: str) -> None:
        self._files = {key: value for key, value in self._files.items() if key[0] != image_id}

    async def gc(self) -> GcReport:
        """Removes all that no image, container or pull needs; unlike `remove`, leftovers of
        failed pulls too, which are kept for a while otherwise to be gone on with.
        """
        return await self._sweep(grace=0)

    async def _sweep(self, *, grace: float = sweep.GRACE) -> GcReport:
        leased = frozenset(what for lease in self._leases.values() for what in lease)
        report = await self._write(sweep.collect, self.catalog, self.layout, leased, grace)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._sweeper, sweep.empty_trash, self.layout)
        return report

    def lease(self, key: object, what: frozenset[str]) -> None:
        """Keeps chain ids and archives' digests from being collected until `end_lease`."""
        self._leases[key] = what

    async def end_lease(self, key: object, *, drop_partials: bool) -> None:
        """Ends a lease; with `drop_partials` what was fetched under it alone goes at once."""
        mine = self._leases.pop(key, frozenset())
        if drop_partials:
            others = frozenset(what for lease in self._leases.values() for what in lease)
            await self._write(sweep.drop_archives, self.catalog, self.layout, mine - others)

    # Containers' root filesystems

    async def prepare_rootfs(self, image_id: str, container_id: str) -> tuple[Mount, ...]:
        """Makes a container's writable layer, and says how its root filesystem is mounted.

        Called again for the same container it answers the same, so long as nothing has mounted
        it yet.

        Raises:
            NotFound: no such image.
            InvalidArgument: the id can't be a directory's name.
        """
        _check_id(container_id)
        return await self._write(self._prepare, image_id, container_id)

    def _prepare(self, image_id: str, container_id: str) -> tuple[Mount, ...]:
        image = self._image(image_id)
        self.catalog.add_container(container_id, image_id, image.chain_ids)
        return rootfs.prepare(
            self.layout.container(container_id),
            self._layer_paths(image.chain_ids) or (self.layout.layer(0),),
        )

    async def release_rootfs(self, container_id: str) -> None:
        """Removes a container's writable layer, which must be unmounted. Idempotent."""
        _check_id(container_id)
        self._upper_usage.pop(container_id, None)
        await self._write(self._release, container_id)
        self._background(self._sweep())

    def _release(self, container_id: str) -> None:
        sweep.discard(self.layout, self.layout.container(container_id))
        if container_id in self.catalog.containers:
            self.catalog.remove_container(container_id)

    async def container_ids(self) -> tuple[str, ...]:
        """All containers that have a writable layer here, with a record or without."""
        found = await self._write(os.listdir, self.layout.containers)
        return tuple(sorted({*found, *self.catalog.containers}))

    async def container_usage(self, container_id: str) -> Usage:
        """Bytes and inodes of a container's writable layer, measured now.

        Raises:
            NotFound: it has none.
        """
        upper = self.layout.container(container_id) / "fs"
        loop = asyncio.get_running_loop()
        try:
            usage = await loop.run_in_executor(self._sweeper, tree_usage, os.fsencode(upper))
        except FileNotFoundError:
            raise NotFound(f"container {container_id}: no writable layer here") from None
        self._upper_usage[container_id] = usage
        return usage


def _check_id(container_id: str) -> None:
    if not _CONTAINER_ID.fullmatch(container_id):
        raise InvalidArgument(f"container id {container_id!r}: not a plain name")


def _read_all(view: MergedView, paths: Sequence[str], limit: int) -> dict[str, bytes | None]:
    return {path: view.read(os.fsencode(path), limit) for path in paths}
