"""A chain of layers seen as the one tree that overlayfs would show, without mounting it.

Used to read an image's few small files (`/etc/passwd`) before a container exists, and to find what
a layer's archive takes for granted from the layers below it. Layers are immutable and only root
enters the store, so plain paths do; still no symbolic link is ever followed by the kernel here:
every component is looked at first, and links are resolved within the merged root.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from typing import TYPE_CHECKING, Final

from zos_cri.errors import ResourceExhausted

if TYPE_CHECKING:
    from collections.abc import Sequence

OPAQUE_XATTR: Final = "trusted.overlay.opaque"
_MAX_LINKS: Final = 40  # the kernel's own limit (ELOOP)


class MergedView:
    """The merged tree of some layers."""

    def __init__(self, layers: Sequence[bytes]) -> None:
        """Args: layers: their directories, the base layer's first."""
        roots = []
        for layer in reversed(layers):
            roots.append(layer)
            if is_opaque(layer):  # it hides all below; overlayfs is given no lower ones then
                break
        self._roots = tuple(roots)

    def find(self, path: bytes, *, follow: bool = True) -> bytes | None:
        """Where on the host lies what is called `path` in the merged tree; None where nothing is.

        For a directory that several layers have it is the uppermost one's. With `follow`, a
        symbolic link at the end is followed too.
        """
        found = self.resolve(path, follow=follow)
        return found[0] if found else None

    def resolve(self, path: bytes, *, follow: bool = True) -> tuple[bytes, ...]:
        """As `find`, but all directories that are merged there, the uppermost first; or nothing."""
        stack = [self._roots]
        names = deque(path.split(b"/"))
        links = 0
        while names:
            name = names.popleft()
            if name in (b"", b"."):
                continue
            if name == b"..":
                if len(stack) > 1:  # as in the kernel, the root's parent is the root
                    stack.pop()
                continue
            found = _step(stack[-1], name)
            if not found:
                return ()
            mode = os.lstat(found[0]).st_mode
            if stat.S_ISDIR(mode):
                stack.append(found)
            elif stat.S_ISLNK(mode) and (names or follow):
                links += 1
                if links > _MAX_LINKS:
                    return ()
                target = os.readlink(found[0])
                if target.startswith(b"/"):
                    del stack[1:]
                names.extendleft(reversed(target.split(b"/")))
            else:
                return () if any(names) else found
        return stack[-1]

    def exact(self, path: bytes) -> bytes | None:
        """As `find`, but no symbolic link is followed anywhere: what overlayfs merges by name."""
        found = self._roots
        for name in path.split(b"/"):
            found = _step(found, name)
            if not found:
                return None
        return found[0]

    def read(self, path: bytes, limit: int) -> bytes | None:
        """A regular file's content; None where there is no such file.

        Raises:
            ResourceExhausted: it is larger than `limit` bytes.
        """
        found = self.find(path)
        if found is None:
            return None
        fd = os.open(found, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return None
            if status.st_size > limit:
                raise ResourceExhausted(
                    f"{os.fsdecode(path)} of the image has {status.st_size} bytes,"
                    f" more than the {limit} that are read"
                )
            return os.read(fd, limit)
        finally:
            os.close(fd)


def children(directories: tuple[bytes, ...]) -> dict[bytes, tuple[bytes, ...]]:
    """What a merged directory holds: by its name, where it lies (as `MergedView.resolve` says)."""
    names = {name for directory in directories for name in os.listdir(directory)}
    found = {name: _step(directories, name) for name in sorted(names)}
    return {name: places for name, places in found.items() if places}


def _step(directories: tuple[bytes, ...], name: bytes) -> tuple[bytes, ...]:
    """The entry `name` of a merged directory: one file, or the directories to merge; or nothing."""
    merged: list[bytes] = []
    for directory in directories:
        path = directory + b"/" + name
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if is_whiteout(status):
            break
        if not stat.S_ISDIR(status.st_mode):
            if not merged:
                merged.append(path)
            break
        merged.append(path)
        if is_opaque(path):
            break
    return tuple(merged)


def is_whiteout(status: os.stat_result) -> bool:
    """Overlayfs marks a removed entry by a character device 0:0."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(path: bytes) -> bool:
    """Overlayfs marks a directory that hides those below it by an extended attribute."""
    try:
        return os.getxattr(path, OPAQUE_XATTR, follow_symlinks=False) == b"y"
    except OSError:  # no such attribute, or a filesystem without any
        return False
