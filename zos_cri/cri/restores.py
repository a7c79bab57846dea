"""Containers from checkpoints: an archive, or an image with the same in it, named as the image."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from zos_cri.checkpoint import jobs, layout
from zos_cri.errors import FailedPrecondition, InvalidArgument, NotFound
from zos_cri.images import trees
from zos_cri.linux import blocking
from zos_cri.log import get_log
from zos_cri.module.types import ContainerEventKind

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from zos_cri.checkpoint.criu import Criu
    from zos_cri.images.model import Image
    from zos_cri.images.store import ImageStore
    from zos_cri.module.types import ContainerNotice

_log = get_log(__name__)

UNPACK_TIMEOUT: Final = 300.0  # seconds; tens of GiB of memory are read and written
_KNOWN_IMAGES: Final = 4096
_MARKS: Final = (layout.CONFIG, layout.SPEC)


class Checkpoint(NamedTuple):
    """A checkpoint that a container is made from.

    Attributes:
        directory: with CRIU's images; it lasts until the container has started.
        image: what the container was made from.
        config, spec: of the container that was captured.
        described: the new container's configuration must describe the captured process.
    """

    directory: Path
    image: Image
    config: layout.Config
    spec: dict[str, Any]
    described: bool = False

    @property
    def criu_images(self) -> str:
        return str(self.directory / layout.IMAGES)


class Restores:
    """Takes checkpoints apart for the containers that are made from them."""

    def __init__(self, *, images: ImageStore, criu: Criu, directory: Path) -> None:
        """
        Args:
            directory: each container's checkpoint is `<directory>/<id>`.
        """
        self._images = images
        self._criu = criu
        self._directory = directory
        self._known: dict[str, bool] = {}  # an image's id is its digest: what it is stays so

    async def of_image(self, id_: str, image: Image) -> Checkpoint | None:
        """The checkpoint that an image holds, taken apart; None where it holds none.

        Args:
            id_: of the container to be made.

        Raises:
            FailedPrecondition: CRIU can't work on this host.
            NotFound: the image that the container was made from isn't here.
            Error: it is damaged; nothing is left.
        """
        return await self._open_image(id_, image) if await self._is_checkpoint(image) else None

    async def _is_checkpoint(self, image: Image) -> bool:
        known = self._known.get(image.id)
        if known is None:
            found = await self._images.read_files(image.id, _MARKS, layout.DOCUMENT_LIMIT)
            if len(self._known) >= _KNOWN_IMAGES:
                self._known.clear()
            known = all(content is not None for content in found.values())
            self._known[image.id] = known
        return known

    async def _open_image(self, id_: str, image: Image) -> Checkpoint:
        # Under a name of its own: the container's directory isn't there yet.
        holder = f"checkpoint-{id_}"
        try:
            await self._images.prepare_rootfs(image.id, holder)
            view = await self._images.mount_view(image.id, holder, "0")
            assert view is not None  # it is the whole image
            return await self.open(id_, view)
        finally:
            await self._images.release_rootfs(holder)

    async def open(self, id_: str, source: Path) -> Checkpoint:
        """The same, from an archive or a directory.

        Raises:
            FailedPrecondition: CRIU can't work on this host.
            NotFound: the image that the container was made from isn't here.
            Error: it is no checkpoint, or damaged; nothing is left.
        """
        await self._criu.check()
        directory = self._directory / id_
        try:
            await jobs.run(jobs.Unpack(str(source), str(directory)), timeout=UNPACK_TIMEOUT)
            config, spec = await blocking.call(_documents, directory)
            return Checkpoint(directory, await self._image(config, source), config, spec)
        except BaseException:
            await self.forget(id_)
            raise

    async def _image(self, config: layout.Config, source: Path) -> Image:
        names = (config.rootfs_image_ref, config.rootfs_image_name, config.rootfs_image)
        for name in filter(None, names):
            with contextlib.suppress(InvalidArgument):
                image = await self._images.status(name)
                if image is not None:
                    return image
        wanted = config.rootfs_image_name or config.rootfs_image_ref
        raise NotFound(
            f'{source}: its container was made from "{wanted}", which is not on this host: pull'
            " it first"
        )

    async def apply(self, checkpoint: Checkpoint, id_: str) -> None:
        """Puts what the container had written into the new one's layer, which is there, empty.

        Raises:
            Error: the archive is damaged, or the disk is full.
        """
        await jobs.run(
            jobs.Apply(
                str(checkpoint.directory),
                str(self._images.layout.container(id_) / "fs"),
                tuple(map(str, self._images.layer_paths(checkpoint.image.id))),
            ),
            timeout=UNPACK_TIMEOUT,
        )

    async def forget(self, id_: str) -> None:
        """Removes a container's checkpoint; nothing to do where it has none."""
        await blocking.call(_remove, self._directory / id_)

    def follow(
        self, later: Callable[[Coroutine[Any, Any, None]], None]
    ) -> Callable[[ContainerNotice], None]:
        """For `Containers.subscribe`: what has started needs its checkpoint no more."""

        def notice(notice: ContainerNotice) -> None:
            if notice.kind is ContainerEventKind.STARTED and notice.record.meta.checkpoint:
                later(self.forget(notice.record.meta.id))

        return notice


def check_spec(checkpoint: Checkpoint, image: Image, spec: dict[str, Any]) -> None:
    """Makes sure that a container's configuration describes the process that is restored.

    Raises:
        FailedPrecondition: it names another image, command, directory or user.
    """
    then, now = checkpoint.spec.get("process", {}), spec["process"]
    for field, old, new in (
        ("image", checkpoint.image.id, image.id),
        ("command and args", then.get("args"), now["args"]),
        ("working_dir", then.get("cwd"), now["cwd"]),
        ("user", _ids(then.get("user", {})), _ids(now["user"])),
    ):
        if old != new:
            raise FailedPrecondition(
                f'container "{checkpoint.config.name}": {field}: {new} is not what was captured:'
                f" {old}"
            )


def _ids(user: dict[str, Any]) -> tuple[int, int]:
    return user.get("uid", 0), user.get("gid", 0)


def _documents(directory: Path) -> tuple[layout.Config, dict[str, Any]]:
    documents = []
    for name in _MARKS:
        with (directory / name).open("rb") as file:
            documents.append(file.read(layout.DOCUMENT_LIMIT + 1))
        if len(documents[-1]) > layout.DOCUMENT_LIMIT:
            raise InvalidArgument(f"{name}: larger than {layout.DOCUMENT_LIMIT} bytes")
    return layout.parse_config(documents[0], layout.CONFIG), layout.parse(documents[1], layout.SPEC)


def _remove(directory: Path) -> None:
    if directory.exists():
        trees.remove(str(directory))
