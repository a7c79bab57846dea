"""An image's VOLUMEs: for each container a directory that begins with what the image has there.

They are copied from the layers as overlayfs would show them, without a mount: layers are immutable
and only root enters the store. A copy is made beside its place and renamed into it, so that what is
in place is whole.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from typing import TYPE_CHECKING, Final

from zos_cri.errors import FailedPrecondition, Internal, ResourceExhausted
from zos_cri.images import trees
from zos_cri.images.merged import MergedView, children

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# Overlayfs' own notes, and a label that is the container's to get.
_NOT_COPIED: Final = ("trusted.overlay.", "security.selinux")
_CHUNK: Final = 1 << 30  # bytes asked of the kernel at once


def prepare(base: Path, view: MergedView, targets: Sequence[str]) -> dict[str, str]:
    """Makes the directories of volumes that aren't there yet.

    Args:
        base: where they are to be, in a container's directory that exists.
        view: the image.
        targets: absolute paths in the container.

    Returns:
        The directories by target.

    Raises:
        FailedPrecondition: the image has something else than a directory at a path.
        ResourceExhausted: the disk is full.
        Internal: a copy failed.
    """
    result: dict[str, str] = {}
    for target in targets:
        # By a digest: a path is longer than a name may be, and has slashes.
        place = base / hashlib.sha256(os.fsencode(target)).hexdigest()[:32]
        try:
            base.mkdir(mode=0o700, exist_ok=True)
            if not place.is_dir():
                _make(place, view, target)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            kind = ResourceExhausted if full else Internal
            raise kind(f"image volume {target}: {error}") from error
        result[target] = str(place)
    return result


def _make(place: Path, view: MergedView, target: str) -> None:
    staged = place.with_name(f"{place.name}.new")
    trees.remove(str(staged))
    found = view.resolve(os.fsencode(target))
    staged.mkdir(mode=0o700)
    if not found:
        staged.chmod(0o755)
    elif not stat.S_ISDIR(os.lstat(found[0]).st_mode):
        raise FailedPrecondition(f"image volume {target}: in the image it is no directory")
    else:
        copy_tree(found, os.fsencode(staged))
    staged.rename(place)


def copy_tree(directories: tuple[bytes, ...], destination: bytes) -> None:
    """Copies what merged directories hold, and their owner, mode, times and attributes.

    Args:
        directories: as `MergedView.resolve` gives them.
        destination: an empty directory.

    Raises:
        OSError: something can't be copied; what was copied is left there.
    """
    linked: dict[tuple[int, int], bytes] = {}
    pending = [(directories, destination)]
    made: list[tuple[bytes, bytes]] = []
    while pending:
        sources, here = pending.pop()
        made.append((sources[0], here))
        for name, places in children(sources).items():
            path = here + b"/" + name
            status = os.lstat(places[0])
            if stat.S_ISDIR(status.st_mode):
                os.mkdir(path, 0o700)
                pending.append((places, path))
                continue
            first = linked.setdefault((status.st_dev, status.st_ino), path)
            if first is not path:
                os.link(first, path, follow_symlinks=False)
                continue
            _copy_file(places[0], path, status)
            _copy_facts(places[0], path, status)
    for source, path in reversed(made):  # now that nothing is added any more: their times
        _copy_facts(source, path, os.lstat(source))


def _copy_file(source: bytes, path: bytes, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(source), path)
    elif stat.S_ISREG(status.st_mode):
        _copy_data(source, path, status.st_size)
    else:
        os.mknod(path, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev)


def _copy_data(source: bytes, path: bytes, size: int) -> None:
    """Copies what isn't a hole, by sharing the blocks where the file system can."""
    with (
        open(source, "rb", buffering=0) as old,
        open(path, "xb", buffering=0) as new,
    ):
        os.fchmod(new.fileno(), 0o600)
        position = 0
        while position < size:
            try:
                position = os.lseek(old.fileno(), position, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # there are only holes from here on
                    raise
                break
            end = os.lseek(old.fileno(), position, os.SEEK_HOLE)
            while position < end:
                count = min(end - position, _CHUNK)
                copied = os.copy_file_range(old.fileno(), new.fileno(), count, position, position)
                if not copied:
                    raise OSError(errno.EIO, "cut short while it was copied", source)
                position += copied
        os.ftruncate(new.fileno(), size)


def _copy_facts(source: bytes, path: bytes, status: os.stat_result) -> None:
    """In this order: a change of the owner takes away file capabilities and setuid bits."""
    os.chown(path, status.st_uid, status.st_gid, follow_symlinks=False)
    for name in os.listxattr(source, follow_symlinks=False):
        if not name.startswith(_NOT_COPIED):
            value = os.getxattr(source, name, follow_symlinks=False)
            os.setxattr(path, name, value, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(path, stat.S_IMODE(status.st_mode))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
