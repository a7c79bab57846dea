"""Directory trees of any depth and from anybody: how much they take, and their removal."""

from __future__ import annotations

import hashlib
import os
import stat
from typing import Final

from zos_cri.images.merged import OPAQUE_XATTR
from zos_cri.images.model import Usage

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def tree_usage(root: bytes) -> Usage:
    """Blocks (in bytes) and inodes of a tree; a file with several links in it counts once.

    What vanishes meanwhile counts or doesn't. Other filesystems mounted below aren't entered, nor
    is what lies deeper than a path can be long.

    Raises:
        FileNotFoundError: there is no such tree.
    """
    top = os.lstat(root)
    total, inodes = top.st_blocks * 512, 1
    linked: set[int] = set()
    pending = [root]
    while pending:
        try:
            entries = os.scandir(pending.pop())
        except OSError:
            continue
        with entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                if status.st_dev != top.st_dev:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    pending.append(entry.path)
                elif status.st_nlink > 1:
                    if status.st_ino in linked:
                        continue
                    linked.add(status.st_ino)
                total += status.st_blocks * 512
                inodes += 1
    return Usage(total, inodes)


def seal(root: bytes) -> tuple[str, Usage]:
    """A digest of a layer's tree by what `lstat` says of it, and what it takes.

    It finds what is missing, cut short, emptied or added (a crash of the host, a repaired
    filesystem, a person); it doesn't read files, so not a bit that has changed in one.

    Raises:
        FileNotFoundError: there is no such tree.
    """
    digest = hashlib.blake2b(digest_size=32)
    total = inodes = 0
    linked: set[int] = set()
    pending = [(root, b"")]
    while pending:
        path, name = pending.pop()
        opaque = OPAQUE_XATTR in os.listxattr(path, follow_symlinks=False)
        digest.update(b"%s\0%d" % (name, opaque))
        own = os.lstat(path)
        digest.update(_facts(own))
        total, inodes = total + own.st_blocks * 512, inodes + 1
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    pending.append((entry.path, name + b"/" + entry.name))
                    continue
                digest.update(entry.name + b"\0" + _facts(status))
                if stat.S_ISLNK(status.st_mode):
                    digest.update(os.readlink(entry.path))
                if status.st_nlink > 1 and status.st_ino in linked:
                    continue
                linked.add(status.st_ino)
                total, inodes = total + status.st_blocks * 512, inodes + 1
    return digest.hexdigest(), Usage(total, inodes)


def _facts(status: os.stat_result) -> bytes:
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    facts = (status.st_mode, status.st_uid, status.st_gid, size, status.st_mtime_ns, status.st_rdev)
    return b"%d %d %d %d %d %d\0" % facts


def remove(top: str) -> None:
    """Removes a tree, or whatever else is there; nothing to do where nothing is.

    Archives and containers can make trees deeper than a recursion goes and a path is long. So each
    directory that isn't empty is first moved up beside `top` (as `top`.1, …), which must be a
    place of our own. No symbolic link is followed, even if one takes a directory's place meanwhile.

    Raises:
        OSError: something can't be removed; it and what it lies in stay.
    """
    pending = [top]
    moved = 0
    while pending:
        path = pending.pop()
        try:
            fd = os.open(path, _DIRECTORY)
        except FileNotFoundError:
            continue
        except NotADirectoryError:
            os.unlink(path)
            continue
        try:
            with os.scandir(fd) as entries:
                names = [(e.name, e.is_dir(follow_symlinks=False)) for e in entries]
            for name, is_directory in names:
                if not is_directory:
                    os.unlink(name, dir_fd=fd)
                    continue
                try:
                    os.rmdir(name, dir_fd=fd)
                except OSError:  # not empty
                    moved += 1
                    os.rename(name, f"{top}.{moved}", src_dir_fd=fd)
                    pending.append(f"{top}.{moved}")
        finally:
            os.close(fd)
        os.rmdir(path)
