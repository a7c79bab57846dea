"""The directories of a layer that is being written: found and made within its root."""

from __future__ import annotations

import os
import stat
from typing import Final

from zos_cri.errors import InvalidArgument
from zos_cri.images.merged import OPAQUE_XATTR, is_whiteout
from zos_cri.linux.safefs import open_in_root

DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MAX_LINKS: Final = 40  # the kernel's own limit (ELOOP)
_KEPT: Final = 64  # parents kept open; archives are written directory by directory


class UnpackError(InvalidArgument):
    """The archive holds what no layer may; the message names the entry."""


class Directories:
    """Directories below one root, opened by openat2(RESOLVE_IN_ROOT), a few of them kept open.

    Attributes:
        root: the root's descriptor.
        implied: directories that were made without an entry of their own, parents first.
    """

    def __init__(self, root: str) -> None:
        self.root = os.open(root, DIRECTORY)
        self.implied: dict[bytes, None] = {}
        self._kept: dict[bytes, tuple[int, bool]] = {}
        self._stale: list[int] = []

    def close(self) -> None:
        """Lets go of all descriptors; idempotent."""
        self.forget()
        self._close_stale()
        if self.root >= 0:
            os.close(self.root)
            self.root = -1

    def parent(self, parts: list[bytes]) -> tuple[int, bool]:
        """A directory's descriptor, and whether it passes its group on (setgid)."""
        self._close_stale()
        path = b"/".join(parts)
        known = self._kept.get(path)
        if known is not None:
            return known
        try:
            fd = self.open(path)
        except (FileNotFoundError, NotADirectoryError):
            fd = self._make_parents(parts)
        while len(self._kept) >= _KEPT:
            oldest = next(iter(self._kept))
            os.close(self._kept.pop(oldest)[0])
        setgid = bool(os.fstat(fd).st_mode & stat.S_ISGID)
        self._kept[path] = (fd, setgid)
        return fd, setgid

    def open(self, path: bytes, *, follow: bool = True) -> int:
        """A descriptor, the caller's to close.

        Args:
            follow: whether the last name may be a link; those before it may in any case.
        """
        flags = DIRECTORY if follow else DIRECTORY | os.O_NOFOLLOW
        return open_in_root(self.root, os.fsdecode(path), flags)

    def _make_parents(self, parts: list[bytes]) -> int:
        """Walks down step by step, resolving links within the root, and makes what isn't there."""
        names = list(reversed(parts))
        real: list[bytes] = []
        links = 0
        fd = os.dup(self.root)
        while names:
            name = names.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                del real[-1:]
                fd = self._reopen(fd, real)
                continue
            target = self._enter_or_read(fd, name)
            if target is None:
                real.append(name)
                self._note_implied(fd, name, real)
                fd = self._step(fd, name)
                continue
            links += 1
            if links > _MAX_LINKS:
                os.close(fd)
                raise UnpackError(f"{os.fsdecode(b'/'.join(parts))}: too many symbolic links")
            if target.startswith(b"/"):
                real.clear()
                fd = self._reopen(fd, real)
            names.extend(reversed(target.split(b"/")))
        return fd

    def _enter_or_read(self, fd: int, name: bytes) -> bytes | None:
        """A symbolic link's target, or None for what can be entered or made."""
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return os.readlink(name, dir_fd=fd) if stat.S_ISLNK(status.st_mode) else None

    def _note_implied(self, fd: int, name: bytes, real: list[bytes]) -> None:
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            os.mkdir(name, 0o755, dir_fd=fd)
            self.implied[b"/".join(real)] = None
            return
        if is_whiteout(status):  # removed below, and made anew here
            os.unlink(name, dir_fd=fd)
            os.mkdir(name, 0o755, dir_fd=fd)
            own = self._step(os.dup(fd), name)
            os.setxattr(own, OPAQUE_XATTR, b"y")
            os.close(own)

    def _step(self, fd: int, name: bytes) -> int:
        try:
            return os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        finally:
            os.close(fd)

    def _reopen(self, fd: int, real: list[bytes]) -> int:
        os.close(fd)
        return self.open(b"/".join(real))

    def forget(self) -> None:
        """What the kept ones' paths lead to has changed; they are found anew.

        Whoever got one of them just now may still use it until the next call of `parent`.
        """
        self._stale += [fd for fd, _ in self._kept.values()]
        self._kept.clear()

    def forget_one(self, path: bytes) -> None:
        """As `forget`, for one path."""
        known = self._kept.pop(path, None)
        if known is not None:
            self._stale.append(known[0])

    def _close_stale(self) -> None:
        while self._stale:
            os.close(self._stale.pop())
