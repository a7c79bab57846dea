"""The image store: what the server knows about images and does with them.

Reads (`status`, `list`, `get`) are answered from memory. Writes go through one thread that owns
the catalogue; long removals through another one. A name or an image vanishes from the catalogue
first and from the disk afterwards; an image's data come the other way round.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeVar

from zos_cri.errors import FailedPrecondition, InvalidArgument, NotFound
from zos_cri.images import builtin
from zos_cri.images.catalog import Catalog
from zos_cri.images.layout import Layout, sync_directory
from zos_cri.images.merged import MergedView
from zos_cri.images.model import FsInfo, Image, Layer, NewImage, Usage
from zos_cri.images.usage import tree_usage
from zos_cri.linux.mount import Mount
from zos_cri.log import get_log
from zos_cri.wire import reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

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

    def __init__(self, root: Path, *, busybox: Path = builtin.BUSYBOX) -> None:
        """
        Args:
            root: the store's directory; it belongs to this object alone while it is open.
            busybox: a statically linked busybox, for the built-in image.
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
        self._tasks: set[asyncio.Task[None]] = set()

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
        self._discard_strays(catalog)

    def _discard_strays(self, catalog: Catalog) -> None:
        """Moves into the trash what a kill left without a record, before anyone can come upon it.

        Containers' directories without a record are left to the module, which knows its
        containers and releases those that it doesn't.
        """
        known = {str(layer.n) for layer in catalog.layers.values()} | {"0"}
        for name in set(os.listdir(self.layout.layers)) - known:
            self._discard(self.layout.layers / name)

    async def aclose(self) -> None:
        """Ends background work and closes the catalogue."""
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
        shutil.rmtree(staging, ignore_errors=True)
        new = builtin.make(staging, self._busybox, applets, self.layout.blob)
        return self._commit(new, pinned=True)

    def _commit(self, new: NewImage, *, pinned: bool = False) -> Image:
        """Takes over what a worker made: directories into their places, then the records."""
        catalog = self.catalog
        layers: list[Layer] = []
        for made in new.layers:
            if made.chain_id in catalog.layers:  # somebody else was faster
                self._discard(self.layout.ingest / made.staged)
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
                self._discard(self.layout.layer(layer.n))
            raise FailedPrecondition(f"image {new.id}: layer {missing[0]} has gone: pull it again")
        sync_directory(self.layout.layers)
        return catalog.add_image(new, layers, pinned=pinned)

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
        await self._write(self.catalog.remove_image, image.id)
        self._forget_files(image.id)
        self._background(self._sweep())

    def _forget_files(self, image_id: str) -> None:
        self._files = {key: value for key, value in self._files.items() if key[0] != image_id}

    async def _sweep(self) -> None:
        """Removes layers and archives that nothing needs, and empties the trash."""
        await self._write(self._collect)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._sweeper, _empty, self.layout.trash)

    def _collect(self) -> None:
        unused = self.catalog.unused_layers()
        if unused:
            self.catalog.drop_layers([layer.chain_id for layer in unused])
            for layer in unused:
                self._discard(self.layout.layer(layer.n))
        used = self.catalog.used_blobs()
        for algorithm in self.layout.blobs.iterdir():
            for blob in algorithm.iterdir():
                if f"{algorithm.name}:{blob.name}" not in used:
                    blob.unlink()

    def _discard(self, path: Path) -> None:
        """Moves a tree into the trash, which is one rename; `_empty` does the work later."""
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, self.layout.trash / f"{time.monotonic_ns()}-{path.name}")

    # Containers' root filesystems

    async def prepare_rootfs(self, image_id: str, container_id: str) -> tuple[Mount, ...]:
        """Makes a container's writable layer, and says how its root filesystem is mounted.

        Called again for the same container it answers the same, so long as nothing has mounted
        it yet.

        Raises:
            NotFound: no such image.
            InvalidArgument: the id can't be a directory's name.
        """
        if not _CONTAINER_ID.fullmatch(container_id):
            raise InvalidArgument(f"container id {container_id!r}: not a plain name")
        return await self._write(self._prepare, image_id, container_id)

    def _prepare(self, image_id: str, container_id: str) -> tuple[Mount, ...]:
        image = self._image(image_id)
        self.catalog.add_container(container_id, image_id, image.chain_ids)
        lowers = self._layer_paths(image.chain_ids) or (self.layout.layer(0),)
        base = self.layout.container(container_id)
        upper, work = base / "fs", base / "work"
        base.mkdir(mode=0o700, exist_ok=True)
        work.mkdir(mode=0o700, exist_ok=True)
        # An earlier `volatile` mount that was never used to an end would forbid this one.
        shutil.rmtree(work / "work", ignore_errors=True)
        if not upper.exists():
            _make_upper(upper, lowers[-1])
        options = [f"lowerdir={':'.join(str(path) for path in reversed(lowers))}"]
        options += [f"upperdir={upper}", f"workdir={work}", *overlay_options()]
        return (Mount(type="overlay", source="overlay", options=tuple(options)),)

    async def release_rootfs(self, container_id: str) -> None:
        """Removes a container's writable layer, which must be unmounted. Idempotent."""
        if not _CONTAINER_ID.fullmatch(container_id):
            raise InvalidArgument(f"container id {container_id!r}: not a plain name")
        self._upper_usage.pop(container_id, None)
        await self._write(self._release, container_id)
        self._background(self._sweep())

    def _release(self, container_id: str) -> None:
        self._discard(self.layout.container(container_id))
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


def overlay_options() -> tuple[str, ...]:
    """What every overlay of a container is mounted with.

    `index=off`: an upper directory may be seen from two mounts for a moment (shim and debugger),
    which an index forbids. `volatile` (Linux 5.10): a container's layer needs no sync at unmount;
    it doesn't outlive a crash of the host anyway.
    """
    options: tuple[str, ...] = ("index=off",)
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if release is not None and (int(release[1]), int(release[2])) >= (5, 10):
        options += ("volatile",)
    return options


def _make_upper(upper: Path, top: Path) -> None:
    """The upper directory's owner and mode are those that the merged root shows: the image's."""
    status = os.stat(top)
    upper.mkdir(mode=0o700)
    os.chown(upper, status.st_uid, status.st_gid)
    os.chmod(upper, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(top):
        if not name.startswith("trusted.overlay."):
            with contextlib.suppress(OSError):  # a label that this filesystem doesn't take
                os.setxattr(upper, name, os.getxattr(top, name))


def _read_all(view: MergedView, paths: Sequence[str], limit: int) -> dict[str, bytes | None]:
    return {path: view.read(os.fsencode(path), limit) for path in paths}


def _empty(trash: Path) -> None:
    """Removes all that is in the trash; what can't be removed now is tried again next time."""
    for entry in os.scandir(trash):
        try:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
        except OSError as error:
            _log.warning("can't remove", path=entry.path, error=error)
