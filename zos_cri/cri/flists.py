"""What the module's `flist` may name beside a directory: an image of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri.errors import NotFound

if TYPE_CHECKING:
    from zos_cri.images.store import ImageStore
    from zos_cri.linux.mount import Mount


class ImageRootfs:
    """Root filesystems from images, for `module.rootfs`."""

    def __init__(self, images: ImageStore) -> None:
        self._images = images

    async def prepare(self, flist: str, container_id: str) -> tuple[Mount, ...]:
        """The mounts of a container over an image.

        Raises:
            NotFound: it isn't on this host.
            InvalidArgument: it is no image's name.
        """
        image = await self._images.status(flist)
        if image is None:
            raise NotFound(f'flist: image "{flist}" is not on this host, and it is no directory')
        return await self._images.prepare_rootfs(image.id, container_id)

    async def release(self, container_id: str) -> None:
        """Gives the container's layer back; nothing to do a second time."""
        await self._images.release_rootfs(container_id)
