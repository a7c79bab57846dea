"""The image store: what the server knows about images and does with them.

Reads (`status`, `list`, `get`) are answered from memory. Writes go through one thread that owns
the catalogue; long removals through another one. A name or an image vanishes from the catalogue
first and from the disk afterwards; an image's data come the other way round.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final

from zos_cri.errors import InvalidArgument, NotFound
from zos_cri.images import builtin, rootfs, sweep, views, volumes, workers
from zos_cri.images.core import Core
from zos_cri.images.jobs import Fetching, SavedImage, SaveJob
from zos_cri.images.merged import MergedView
from zos_cri.images.model import FsInfo, Image, NewImage, Usage
from zos_cri.images.pulls import PullProgress, PullReport, Pulls
from zos_cri.images.trees import remove, tree_usage
from zos_cri.wire import reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from zos_cri.images.model import Auth
    from zos_cri.linux.idmap import IdMappings
    from zos_cri.linux.mount import Mount

_CONTAINER_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_ID_PREFIX: Final = re.compile(r"(?:sha256:)?([0-9a-f]{4,64})")
# /etc/passwd and /etc/group of the images in use; each entry is bounded by its caller's limit.
_CACHED_FILES: Final = 256
_FLIST: Final = "flist:"
# Parts a container's id from the name of its view; no id has it.
_VIEW: Final = "@"
_COPIERS: Final = 2  # image volumes that are copied at once


def is_flist(ref: str) -> bool:
    """Whether a reference means an flist: `flist:…`, a URL, or an absolute path ending in .fl."""
    return ref.startswith((_FLIST, "https://", "http://")) or (
        ref.startswith("/") and ref.endswith((".fl", ".flist"))
    )


def normal_key(ref: str) -> str:
    """The key that a reference is stored under.

    Raises:
        InvalidArgument: it is no reference.
    """
    if is_flist(ref):
        return ref if ref.startswith(_FLIST) else f"{_FLIST}{ref}"
    try:
        return reference.parse(ref).key
    except reference.InvalidReference as error:
        raise InvalidArgument(str(error)) from error


class ImageStore(Core):
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
        super().__init__(root)
        self._busybox = busybox
        self._fetching = fetching or Fetching()
        self._files: dict[tuple[str, str, int], bytes | None] = {}
        self._upper_usage: dict[str, Usage] = {}
        self._builtin = asyncio.Lock()
        # Of its own: a volume of many GiB must hold up neither the catalogue nor other calls.
        self._copiers = ThreadPoolExecutor(_COPIERS, thread_name_prefix="images-copy")
        self._pulls = Pulls(
            self, fetching=self._fetching, certs_dirs=certs_dirs, on_report=on_report
        )

    async def aclose(self) -> None:
        """Ends pulls and background work, and closes the catalogue."""
        await self._pulls.aclose()
        self._copiers.shutdown(wait=False, cancel_futures=True)
        await super().aclose()

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
        """What all images take (archives and flists' blocks too), and what the containers' layers
        were seen to."""
        catalog = self.catalog
        layers = [*catalog.layers.values()]
        blobs = {b.digest: b.size for m in [*catalog.manifests.values()] for b in m.blobs}
        uppers = [*self._upper_usage.values()]
        return FsInfo(
            mountpoint=str(self.layout.root),
            used_bytes=sum(x.bytes for x in layers) + sum(blobs.values()) + self._blocks.bytes,
            used_inodes=sum(x.inodes for x in layers) + len(blobs) + self._blocks.inodes,
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

    def layer_paths(self, image_id: str) -> tuple[Path, ...]:
        """The directories of an image's layers, the base layer's first.

        Raises:
            NotFound: no such image.
        """
        return self._layer_paths(self._image(image_id).chain_ids)

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
        if is_flist(ref):
            try:
                return await self._pulls.flist(normal_key(ref), timeout)
            finally:
                self._background(self._sweep_blocks)
        if normal_key(ref) == builtin.NAME:
            return (await self.ensure_builtin()).id
        return await self._pulls.pull(ref, auth, timeout)

    async def ensure(self, ref: str) -> Image:
        """The image that `ref` means; an flist that isn't here yet is fetched.

        Raises:
            NotFound: it isn't on this host and is no flist.
            Else as `pull`.
        """
        image = await self.status(ref)
        if image is None and is_flist(ref):
            return self._image(await self.pull(ref))
        if image is None:
            raise NotFound(f"image {ref}: not on this host")
        return image

    async def load(
        self, path: Path, *, on_progress: Callable[[PullProgress], None] | None = None
    ) -> tuple[Image, ...]:
        """Takes in the images of an OCI layout (a directory or an archive) or Docker archive.

        Raises:
            InvalidArgument: it is none of these, or holds what no layer may.
            NotFound: none of its images is for this machine.
            DataLoss: it is damaged.
        """
        ids = await self._pulls.load(path, on_progress)
        return tuple(self._image(image_id) for image_id in ids)

    async def save(self, refs: Sequence[str], path: Path) -> None:
        """Writes images to a file that is an OCI layout and a Docker archive at once.

        Raises:
            NotFound: an image isn't here, or its archives weren't kept.
            InvalidArgument: the file can't be written.
        """
        images = [(ref, await self.ensure(ref)) for ref in refs]
        saved = [await self._write(self._saved, ref, image) for ref, image in images]
        job = SaveJob(root=str(self.layout.root), staging="", path=str(path), images=tuple(saved))
        await workers.run(job)

    def _saved(self, ref: str, image: Image) -> SavedImage:
        manifests = [m for m in self.catalog.manifests.values() if m.image_id == image.id]
        if not manifests:
            raise NotFound(f"image {ref}: it has no manifest")
        chosen = manifests[-1]
        tags = tuple(tag for tag in image.repo_tags if not is_flist(tag))
        named = "" if image.id.endswith(ref) else normal_key(ref)
        return SavedImage(
            id=image.id,
            config=self.catalog.raw_config(image.id),
            manifest=self.catalog.raw_manifest(chosen.digest),
            manifest_type=chosen.media_type,
            blobs=chosen.blobs,
            names=(named,) if named in tags else tags,
        )

    def progress(self, ref: str) -> PullProgress | None:
        """How far the pull of a reference is; None where none is under way."""
        return self._pulls.progress(ref)

    def all_progress(self) -> tuple[PullProgress, ...]:
        """Of every pull under way."""
        return self._pulls.all_progress()

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
            return await self.commit(await self._write(self._make_builtin, applets))

    def _make_builtin(self, applets: Sequence[str]) -> NewImage:
        staging = self.layout.ingest / "builtin"
        remove(str(staging))
        return builtin.make(staging, self._busybox, applets, self.layout.blob)

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
        await self._write(self._remove, image.id)
        self._forget_files(image.id)
        self._background(self._sweep)

    def _remove(self, image_id: str) -> None:
        archives = frozenset(blob.digest for blob in self.catalog.blobs_of(image_id))
        self.catalog.remove_image(image_id)
        self._drop_archives(archives)
        self._collect(sweep.GRACE)

    def _forget_files(self, image_id: str) -> None:
        self._files = {key: value for key, value in self._files.items() if key[0] != image_id}

    # Containers' root filesystems

    async def prepare_rootfs(
        self,
        image_id: str,
        container_id: str,
        *,
        id_mappings: IdMappings | None = None,
        options: Sequence[str] = (),
    ) -> tuple[Mount, ...]:
        """Makes a container's writable layer, and says how its root filesystem is mounted.

        Called again for the same container it answers the same, so long as nothing has mounted
        it yet.

        Args:
            id_mappings: of the container's user namespace, where it has one of its own. Only shims
                of containerd 2 or later understand the mount then.
            options: more mount options of the overlay.

        Raises:
            NotFound: no such image.
            InvalidArgument: the id can't be a directory's name.
        """
        _check_id(container_id)
        layers = self.catalog.layers
        chain = self._image(image_id).chain_ids
        await self._seals.check([layers[c].n for c in chain if c in layers])
        mounts = await self._write(self._prepare, image_id, container_id, id_mappings)
        return rootfs.with_options(mounts, options)

    def _prepare(
        self, image_id: str, container_id: str, id_mappings: IdMappings | None
    ) -> tuple[Mount, ...]:
        image = self._image(image_id)
        self.catalog.add_container(container_id, image_id, image.chain_ids)
        return rootfs.prepare(
            self.layout.container(container_id),
            self._layer_paths(image.chain_ids) or (self.layout.layer(0),),
            id_mappings,
        )

    async def prepare_volumes(
        self, image_id: str, container_id: str, targets: Sequence[str]
    ) -> dict[str, str]:
        """Makes a container's directories for its image's VOLUMEs, with what the image has there.

        `prepare_rootfs` comes first; they go with `release_rootfs`. What was made by an earlier
        call stays as it is.

        Args:
            targets: absolute paths in the container.

        Returns:
            The directories on the host by target. Owners are those of the image.

        Raises:
            NotFound: no such image.
            FailedPrecondition: the image has something else than a directory at such a path.
            ResourceExhausted: the disk is full.
            Internal: one can't be copied.
        """
        _check_id(container_id)
        view = MergedView(
            [os.fsencode(p) for p in self._layer_paths(self._image(image_id).chain_ids)]
        )
        if not targets:
            return {}
        base = self.layout.container(container_id) / "volumes"
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._copiers, volumes.prepare, base, view, targets)

    async def mount_view(
        self, image_id: str, container_id: str, name: str, sub_path: str = "", *, userns: str = ""
    ) -> Path | None:
        """Mounts an image, or a part of it, read-only for a container; see `views.mount_view`.

        `prepare_rootfs` comes first; until `release_rootfs` the layers stay and it is mounted.

        Args:
            name: tells the container's views apart.

        Raises:
            NotFound: no such image.
            MountError, OSError: the kernel refused.
        """
        _check_id(container_id)
        layers, chain = self.catalog.layers, self._image(image_id).chain_ids
        await self._seals.check([layers[c].n for c in chain if c in layers])
        view_id = f"{container_id}{_VIEW}{name}"
        await self._write(self.catalog.add_container, view_id, image_id, chain)
        view = MergedView([os.fsencode(p) for p in self._layer_paths(chain)])
        mount = partial(views.mount_view, filler=self.layout.layer(0), userns=userns)
        base = self.layout.container(container_id) / "views"
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._copiers, mount, base, name, view, sub_path)

    async def release_rootfs(self, container_id: str) -> None:
        """Removes a container's writable layer, which must be unmounted, and its views. Idempotent.

        Raises:
            MountError: a view can't be unmounted.
        """
        _check_id(container_id)
        await self._write(self._release, container_id)
        self._upper_usage.pop(container_id, None)  # no measurement adds it any more
        self._background(self._sweep)

    def _release(self, container_id: str) -> None:
        views.unmount_views(self.layout.container(container_id) / "views")
        sweep.discard(self.layout, self.layout.container(container_id))
        for known in [c for c in self.catalog.containers if c.partition(_VIEW)[0] == container_id]:
            self.catalog.remove_container(known)

    async def container_ids(self) -> tuple[str, ...]:
        """All containers that have a writable layer here, with a record or without."""
        found = await self._write(os.listdir, self.layout.containers)
        return tuple(sorted({*found, *(c.partition(_VIEW)[0] for c in self.catalog.containers)}))

    async def container_usage(self, container_id: str) -> Usage:
        """Bytes and inodes of a container's writable layer and its volumes, measured now.

        Raises:
            NotFound: it has none.
        """
        loop = asyncio.get_running_loop()
        base = self.layout.container(container_id)
        try:
            usage = await loop.run_in_executor(self._sweeper, _written, base)
        except FileNotFoundError:
            raise NotFound(f"container {container_id}: no writable layer here") from None
        if container_id in self.catalog.containers:  # not released meanwhile
            self._upper_usage[container_id] = usage
        return usage


def _check_id(container_id: str) -> None:
    if not _CONTAINER_ID.fullmatch(container_id):
        raise InvalidArgument(f"container id {container_id!r}: not a plain name")


def _written(base: Path) -> Usage:
    """What a container has written, and what it was given to write over: its image's VOLUMEs."""
    usage = tree_usage(os.fsencode(base / "fs"))
    try:
        volumes = tree_usage(os.fsencode(base / "volumes"))
    except FileNotFoundError:
        return usage
    return Usage(usage.bytes + volumes.bytes, usage.inodes + volumes.inodes)


def _read_all(view: MergedView, paths: Sequence[str], limit: int) -> dict[str, bytes | None]:
    return {path: view.read(os.fsencode(path), limit) for path in paths}
