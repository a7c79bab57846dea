"""Root filesystems of the module's containers: a directory below an overlay of their own.

What `flist` names beside a directory (an image, an flist file) is for the layer above: it hands in
its own provider, and this one asks it for everything that is no path.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Final

from zos_cri.errors import InvalidArgument, NotFound
from zos_cri.linux import blocking
from zos_cri.linux.mount import Mount

if TYPE_CHECKING:
    from pathlib import Path

    from zos_cri.module.module import RootfsProvider

PATH_TIMEOUT: Final = 10.0  # a look at a directory that the caller names, perhaps on a dead mount


class DirectoryRootfs:
    """Overlays over directories; the directory itself is never written to."""

    def __init__(self, directory: Path, images: RootfsProvider) -> None:
        """
        Args:
            directory: a container's upper layer is in `<directory>/<id>`.
            images: turns everything else that `flist` may say into mounts.
        """
        self._directory = directory
        self._images = images

    async def prepare(self, flist: str, container_id: str) -> tuple[Mount, ...]:
        """Makes the container's own upper layer over the directory `flist`.

        Raises:
            NotFound: it isn't there.
            InvalidArgument: it is no directory.
        """
        if not flist.startswith("/") or flist.endswith(".fl"):
            return await self._images.prepare(flist, container_id)
        await blocking.call_abandonable(_check, flist, timeout=PATH_TIMEOUT, what=flist)
        upper = await blocking.call(self._make, container_id)
        options = (f"lowerdir={_escape(flist)}", f"upperdir={upper}/fs", f"workdir={upper}/work")
        return (Mount(type="overlay", source="overlay", options=options),)

    def _make(self, container_id: str) -> Path:
        upper = self._directory / container_id
        (upper / "fs").mkdir(parents=True, exist_ok=True)
        (upper / "fs").chmod(0o755)
        (upper / "work").mkdir(exist_ok=True)
        return upper

    async def container_ids(self) -> tuple[str, ...]:
        """All containers that have a layer over a directory, with a record or without."""
        return await blocking.call(_names, self._directory)

    async def release(self, container_id: str) -> None:
        """Removes the container's layer, whoever made it; nothing to do a second time."""
        await blocking.call(_remove, self._directory / container_id)
        await self._images.release(container_id)


def _names(directory: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(os.listdir(directory)))
    except FileNotFoundError:
        return ()


def _check(path: str) -> None:
    try:
        with os.scandir(path):
            return
    except NotADirectoryError:
        raise InvalidArgument(f"flist: {path} is not a directory") from None
    except OSError as error:
        raise NotFound(f"flist: {path}: {error.strerror}") from error


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _escape(path: str) -> str:
    """Overlayfs splits lowerdir at colons, and options at commas."""
    return "".join(f"\\{c}" if c in "\\:," else c for c in path)
