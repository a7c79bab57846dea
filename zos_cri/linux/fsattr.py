"""Attributes of directories that filesystems place things by (chattr(1), ioctl_iflags(2))."""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

_FS_IOC_GETFLAGS: Final = 0x80086601
_FS_IOC_SETFLAGS: Final = 0x40086602
_FS_TOPDIR_FL: Final = 0x20000


def spread_subdirectories(path: str | os.PathLike[str]) -> bool:
    """Tells ext4 that the directories made in this one have nothing to do with each other (`+T`).

    ext4 then puts each into the emptiest group of blocks, by its name where several are as good,
    and not beside the others. So trees that come and go don't meet in one group, where writers
    wait for each other, and where ext4 without a journal passes over every inode that was removed
    in the last minutes, one by one, for each file that it makes.

    Returns:
        Whether the filesystem took it; other filesystems than ext2 to ext4 don't know it.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = struct.unpack("l", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8)))[0]
        if not flags & _FS_TOPDIR_FL:
            fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("l", flags | _FS_TOPDIR_FL))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
