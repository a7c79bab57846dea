"""Puts right in an unpacked layer what its archive took for granted from the layers below.

- A directory without an entry of its own, made only because something lies in it, must not change
  the one below: it gets that one's owner, mode, times and attributes.
- A hard link to a file of a lower layer becomes a copy of it, as overlayfs would make one.
- A whiteout of what no lower layer has goes: in a directory that merges with none below, overlayfs
  would list it as a file that isn't there.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from zos_cri.images.directories import UnpackError
from zos_cri.images.merged import OPAQUE_XATTR, is_whiteout
from zos_cri.linux.safefs import open_in_root

if TYPE_CHECKING:
    from zos_cri.images.merged import MergedView
    from zos_cri.images.unpack import Unpacked

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_COPY: Final = 1 << 20


def fix(root: str, lower: MergedView, unpacked: Unpacked) -> None:
    """Completes the layer in `root` from those below it, which must be complete themselves.

    Raises:
        UnpackError: a hard link's target is in no layer.
    """
    root_fd = os.open(root, _DIRECTORY)
    try:
        for path in unpacked.whiteouts:
            _fix_whiteout(root_fd, lower, path)
        for path in unpacked.implied:
            _fix_directory(root_fd, lower, path)
        copies: dict[bytes, bytes] = {}
        for path, target in unpacked.missing_links:
            _fix_link(root_fd, lower, path, copies.get(target, target), copies)
            copies.setdefault(target, path)
    finally:
        os.close(root_fd)


def _open(root_fd: int, path: bytes) -> int:
    return open_in_root(root_fd, os.fsdecode(path), _DIRECTORY)


def _fix_whiteout(root_fd: int, lower: MergedView, path: bytes) -> None:
    parent, _, name = path.rpartition(b"/")
    try:
        fd = _open(root_fd, parent)
    except (FileNotFoundError, NotADirectoryError):
        return  # a later entry replaced it
    try:
        opaque = OPAQUE_XATTR in os.listxattr(fd)
        if not opaque and lower.exact(path) is not None:
            return
        before = os.fstat(fd)
        if is_whiteout(os.stat(name, dir_fd=fd, follow_symlinks=False)):
            os.unlink(name, dir_fd=fd)
            os.utime(fd, ns=(before.st_mtime_ns, before.st_mtime_ns))
    except FileNotFoundError:
        return
    finally:
        os.close(fd)


def _fix_directory(root_fd: int, lower: MergedView, path: bytes) -> None:
    found = lower.exact(path)
    if found is None:
        return
    status = os.lstat(found)
    if not stat.S_ISDIR(status.st_mode):
        return
    try:
        fd = _open(root_fd, path)
    except (FileNotFoundError, NotADirectoryError):
        return  # a later entry replaced it
    try:
        _copy_metadata(found, status, fd)
    finally:
        os.close(fd)


def _copy_metadata(source: bytes, status: os.stat_result, fd: int) -> None:
    os.fchown(fd, status.st_uid, status.st_gid)
    os.fchmod(fd, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source, follow_symlinks=False):
        if not name.startswith("trusted.overlay."):
            os.setxattr(fd, name, os.getxattr(source, name, follow_symlinks=False))
    os.utime(fd, ns=(status.st_mtime_ns, status.st_mtime_ns))


def _fix_link(
    root_fd: int, lower: MergedView, path: bytes, target: bytes, copies: dict[bytes, bytes]
) -> None:
    parent, _, name = path.rpartition(b"/")
    fd = _open(root_fd, parent)
    try:
        before = os.fstat(fd)
        if _exists(fd, name):
            return  # a later entry took the name
        if not _link_within(root_fd, fd, name, target):
            found = lower.find(target, follow=False)
            if found is None or not stat.S_ISREG(os.lstat(found).st_mode):
                raise UnpackError(
                    f"{os.fsdecode(path)}: a hard link to {os.fsdecode(target)!r},"
                    " which is in no layer"
                )
            _copy(found, fd, name)
        os.utime(fd, ns=(before.st_mtime_ns, before.st_mtime_ns))
    finally:
        os.close(fd)


def _exists(fd: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _link_within(root_fd: int, fd: int, name: bytes, target: bytes) -> bool:
    """Links to what the layer has by now (a copy made for an earlier link, or a later entry)."""
    parent, _, last = target.rpartition(b"/")
    try:
        source = _open(root_fd, parent)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        if not stat.S_ISREG(os.stat(last, dir_fd=source, follow_symlinks=False).st_mode):
            return False
        os.link(last, name, src_dir_fd=source, dst_dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    finally:
        os.close(source)
    return True


def _copy(found: bytes, fd: int, name: bytes) -> None:
    source = os.open(found, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(source)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        copy = os.open(name, flags, 0o600, dir_fd=fd)
        try:
            while os.sendfile(copy, source, None, _COPY):
                pass
            _copy_metadata(found, status, copy)
        finally:
            os.close(copy)
    finally:
        os.close(source)
