"""How much of a disk a directory tree takes."""

from __future__ import annotations

import os
import stat

from zos_cri.images.model import Usage


def tree_usage(root: bytes) -> Usage:
    """Blocks (in bytes) and inodes of a tree; a file with several links in it counts once.

    What vanishes meanwhile counts or doesn't. Other filesystems mounted below aren't entered.

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
