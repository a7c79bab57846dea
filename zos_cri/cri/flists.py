"""What the module's `flist` may name beside a directory: an image, or an flist file or URL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri.errors import NotFound
from zos_cri.images.store import is_flist

if TYPE_CHECKING:
    from zos_cri.images.store import ImageStore
    from zos_cri.linux.mount import Mount


class ImageRootfs:
    """Root filesystems from images, for `module.rootfs`."""

    def __init__(self, images: ImageStore) -> None:
        self._images = images

    async def prepare(self, flist: str, container_id: str) -> tuple[Mount, ...]:
        """The mounts of a container over an image; an flist is fetched where it isn't here yet.

        Raises:
            NotFound: it isn't on this host, or not at its URL.
            InvalidArgument: it is no image's name.
            Error: the flist can't be fetched.
        """
        with_scheme = flist if is_flist(flist) or not names_flist(flist) else f"flist:{flist}"
        try:
            image = await self._images.ensure(with_scheme)
        except NotFound as error:
            raise NotFound(f"flist: {error}") from error
        return await self._images.prepare_rootfs(image.id, container_id)

    async def release(self, container_id: str) -> None:
        """Gives the container's layer back; nothing to do a second time."""
        await self._images.release_rootfs(container_id)


def names_flist(text: str) -> bool:
    """Whether a path or URL is that of an flist file."""
    return text.endswith(".fl") or text.startswith(("http://", "https://"))
