"""What a container has written, from its overlay's upper directory to a layer's archive.

Overlayfs' marks become OCI's: a character device 0:0 is `.wh.<name>`, an opaque directory has a
`.wh..wh..opq`.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from typing import TYPE_CHECKING, Final

from zos_cri.images.merged import OPAQUE_XATTR, is_whiteout

if TYPE_CHECKING:
    from pathlib import Path

_PREFIX: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_OVERLAY: Final = ("trusted.overlay.", "user.overlay.")
# PAX records are text: a value that isn't is carried as archivers do, byte for byte.
_PAX_XATTR: Final = "SCHILY.xattr."


def write_diff(upper: Path, target: Path) -> list[str]:
    """Writes the archive, and says what the container has removed (absolute paths). Blocks.

    Raises:
        OSError: something can't be read or written.
    """
    writer = _Writer(upper)
    with (
        target.open("xb") as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        writer.directory(tar, "")
    return writer.removed


class _Writer:
    def __init__(self, upper: Path) -> None:
        self._upper = upper
        self._links: dict[tuple[int, int], str] = {}
        self.removed: list[str] = []

    def directory(self, tar: tarfile.TarFile, path: str) -> None:
        full = self._upper / path
        self._add(tar, path or ".", os.lstat(full))
        if _opaque(full):
            self._mark(tar, os.path.join(path, _OPAQUE))
        with os.scandir(full) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            name = os.path.join(path, entry.name)
            status = entry.stat(follow_symlinks=False)
            if is_whiteout(status):
                self._mark(tar, os.path.join(path, _PREFIX + entry.name))
                # Readers without whiteouts have the mark as a file: it is to go as well.
                self.removed += [f"/{name}", f"/{os.path.join(path, _PREFIX + entry.name)}"]
            elif stat.S_ISDIR(status.st_mode):
                self.directory(tar, name)
            elif not stat.S_ISSOCK(status.st_mode):  # no archive has them
                self._add(tar, name, status)

    def _add(self, tar: tarfile.TarFile, name: str, status: os.stat_result) -> None:
        full = self._upper / name
        info = tarfile.TarInfo(name)
        info.mode = stat.S_IMODE(status.st_mode)
        info.uid, info.gid = status.st_uid, status.st_gid
        info.mtime = int(status.st_mtime)
        info.type = _TYPES[stat.S_IFMT(status.st_mode)]
        info.pax_headers = {"mtime": f"{status.st_mtime_ns / 1e9:.9f}", **_xattrs(full)}
        if info.type == tarfile.SYMTYPE:
            info.linkname = os.readlink(full)
        elif info.type in (tarfile.CHRTYPE, tarfile.BLKTYPE):
            info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        elif info.type == tarfile.REGTYPE:
            known = self._links.setdefault((status.st_dev, status.st_ino), name)
            if known != name:
                info.type, info.linkname = tarfile.LNKTYPE, known
                tar.addfile(info)
                return
            info.size = status.st_size
            with full.open("rb") as file:
                tar.addfile(info, file)
            return
        tar.addfile(info)

    def _mark(self, tar: tarfile.TarFile, name: str) -> None:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())


_TYPES: Final = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


def _xattrs(path: Path) -> dict[str, str]:
    return {
        _PAX_XATTR + name: os.getxattr(path, name, follow_symlinks=False).decode(
            "utf-8", "surrogateescape"
        )
        for name in os.listxattr(path, follow_symlinks=False)
        if not name.startswith(_OVERLAY)
    }


def _opaque(path: Path) -> bool:
    try:
        return os.getxattr(path, OPAQUE_XATTR) == b"y"
    except OSError:
        return False
