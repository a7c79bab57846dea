"""Writes a layer's entries into its directory, and nowhere else.

Archives come from strangers. Three rules keep what they do inside the layer's root:
1. A directory is opened by openat2(RESOLVE_IN_ROOT): links in the path, absolute ones and `..`
   among them, lead around within the root.
2. The last component is only ever created or replaced, relative to that directory's descriptor, by
   calls that don't follow links.
3. The root itself can only be a directory.

OCI's whiteouts become overlayfs' (a character device 0:0, the opaque attribute). Layers are
unpacked independently of each other, so what an archive takes for granted from the layers below
(parents that it has no entry for, targets of hard links) is noted and put right by `lowerfix`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from zos_cri.errors import DataLoss, ResourceExhausted
from zos_cri.images import trees
from zos_cri.images.directories import DIRECTORY, Directories, UnpackError
from zos_cri.images.merged import OPAQUE_XATTR, is_whiteout
from zos_cri.wire.tarheader import Entry, Kind

if TYPE_CHECKING:
    from collections.abc import Callable

_FILE: Final = Kind.FILE  # a member takes longer to be looked up than a name
_WHITEOUT: Final = b".wh."
_WHITEOUT_META: Final = b".wh..wh."
_OPAQUE: Final = b".wh..wh..opq"
_NAME_MAX: Final = 255
_PATH_MAX: Final = 4096
# What a later entry has put where a directory was: nothing, a file, a link (of its own name, too).
_REPLACED: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Overlayfs' own marks must come from us: a forged redirect or metacopy reaches into other layers.
_OVERLAY_XATTRS: Final = ("trusted.overlay.", "user.overlay.")
# ext4 keeps 34 bits of seconds; what lies outside is as good as the end of it.
_MIN_TIME: Final = -(1 << 31) * 1_000_000_000
_MAX_TIME: Final = ((1 << 34) - (1 << 31) - 1) * 1_000_000_000
# How much may be written between two looks at the free space.
_SPACE_STEP: Final = 64 << 20
_INODE_COST: Final = 4096  # what an entry without data counts, in bytes


class Limits:
    """What one layer may take.

    Attributes:
        max_bytes: of file data and entries (`_INODE_COST` each).
        min_free: bytes of the filesystem that stay free.
    """

    def __init__(self, *, max_bytes: int = 1 << 40, min_free: int = 256 << 20) -> None:
        self.max_bytes = max_bytes
        self.min_free = min_free


class LayerWriter:
    """One layer's directory while it is being written.

    It sets the process' umask to 0 for good, so it belongs into a worker process.

    Attributes:
        missing_links: hard links to what this layer doesn't have: (path, target).
        whiteouts: of names below it.
    """

    def __init__(self, root: str, limits: Limits | None = None) -> None:
        """
        Args:
            root: an empty directory. What entries replace goes to `trash(root)` meanwhile.
        """
        os.umask(0)
        self._directories = Directories(root)
        self._trash = self.trash(root)
        self._aside = 0
        self._limits = limits or Limits()
        self._file = -1
        self._entry: Entry | None = None
        self._times: dict[bytes, int] = {}
        self._used = 0
        self._next_look = 0
        self.missing_links: list[tuple[bytes, bytes]] = []
        self.whiteouts: list[bytes] = []

    @staticmethod
    def trash(root: str) -> str:
        """A directory that a writer of `root` leaves behind where it is killed, beside it."""
        return f"{root}.trash"

    @property
    def implied(self) -> tuple[bytes, ...]:
        """Directories that were made without an entry of their own, parents first."""
        return tuple(self._directories.implied)

    def close(self) -> None:
        """Lets go of all descriptors, and of what entries have replaced; idempotent."""
        self._directories.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._aside:
            trees.remove(self._trash)
            self._aside = 0

    def finish(self) -> None:
        """After the last entry: sets the directories' times."""
        self._end_file()
        for path, mtime in reversed(self._times.items()):
            try:
                fd = self._directories.open(path, follow=False)
            except OSError as error:
                if error.errno in _REPLACED:
                    continue
                raise
            try:
                os.utime(fd, ns=(mtime, mtime))
            finally:
                os.close(fd)

    def add(self, entry: Entry) -> None:
        """Makes what an entry says. A file's data follow by `write`.

        Raises:
            UnpackError: no layer may hold this.
            ResourceExhausted: the layer is larger than it may be.
        """
        self._end_file()
        self._entry = entry
        self._account(_INODE_COST)
        try:
            parts = _clean(entry.path)
            if not parts:
                self._set_root(entry)
                return
            if parts[-1].startswith(_WHITEOUT):
                self._whiteout(parts)
                return
            fd, setgid = self._directories.parent(parts[:-1])
            self._make(entry, fd, parts, setgid=setgid)
        except OSError as error:
            raise self._explain(error, entry) from error

    def write(self, offset: int, data: memoryview) -> None:
        """Writes a piece of the last entry's file."""
        assert self._entry is not None  # data come after their entry
        if self._file < 0:
            return  # a file that is named like a whiteout: only its name counts
        self._account(len(data))
        try:
            if self._entry.sparse is not None:
                while data:
                    written = os.pwrite(self._file, data, offset)
                    data, offset = data[written:], offset + written
                return
            written = os.write(self._file, data)
            while written < len(data):
                data = data[written:]
                written = os.write(self._file, data)
        except OSError as error:
            raise self._explain(error, self._entry) from error

    # Entries

    def _make(self, entry: Entry, fd: int, parts: list[bytes], *, setgid: bool) -> None:
        name, kind = parts[-1], entry.kind
        if kind is _FILE:
            self._make_file(entry, fd, name, setgid=setgid)
        elif kind is Kind.DIRECTORY:
            self._make_directory(entry, fd, parts)
        elif kind is Kind.HARDLINK:
            self._make_hardlink(entry, fd, parts)
        elif kind is Kind.SYMLINK:
            if not entry.link or len(entry.link) >= _PATH_MAX:
                raise UnpackError(f"{_show(entry)}: a symbolic link to {len(entry.link)} bytes")
            self._replacing(fd, name, lambda: os.symlink(entry.link, name, dir_fd=fd))
            os.chown(name, entry.uid, entry.gid, dir_fd=fd, follow_symlinks=False)
            self._set_xattrs(entry, fd, name)
            self._set_time(entry, fd, name)
        else:
            self._make_special(entry, fd, name)

    def _make_file(self, entry: Entry, fd: int, name: bytes, *, setgid: bool) -> None:
        mode = entry.mode
        try:
            self._file = os.open(name, _CREATE, mode, dir_fd=fd)
        except FileExistsError:
            self._remove(fd, name)
            self._file = os.open(name, _CREATE, mode, dir_fd=fd)
        if entry.sparse is not None:
            os.ftruncate(self._file, entry.size)
        if entry.uid or entry.gid or setgid:
            os.fchown(self._file, entry.uid, entry.gid)
            if mode & 0o7000:  # chown takes them away
                os.fchmod(self._file, mode)

    def _end_file(self) -> None:
        """After a file's data, as they would take away capabilities and the time."""
        if self._file < 0:
            return
        fd, entry = self._file, self._entry
        self._file = -1
        assert entry is not None  # the file is its
        try:
            for key, value in entry.xattrs.items():
                _set_xattr(fd, key, value)
            mtime = _bounded(entry.mtime)
            os.utime(fd, ns=(mtime, mtime))
        except OSError as error:
            raise self._explain(error, entry) from error
        finally:
            os.close(fd)

    def _make_directory(self, entry: Entry, fd: int, parts: list[bytes]) -> None:
        name = parts[-1]
        opaque = False
        try:
            os.mkdir(name, entry.mode, dir_fd=fd)
        except FileExistsError:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                opaque = is_whiteout(status)
                self._remove(fd, name)
                os.mkdir(name, entry.mode, dir_fd=fd)
        own = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        try:
            self._set_directory(entry, own)
            if opaque:  # the one below was removed, this one is new
                os.setxattr(own, OPAQUE_XATTR, b"y")
        finally:
            os.close(own)
        path = b"/".join(parts)
        self._times[path] = _bounded(entry.mtime)
        self._directories.implied.pop(path, None)
        self._directories.forget_one(path)  # its setgid bit may be another now

    def _set_directory(self, entry: Entry, fd: int) -> None:
        os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode)
        for key, value in entry.xattrs.items():
            _set_xattr(fd, key, value)

    def _set_root(self, entry: Entry) -> None:
        if entry.kind is not Kind.DIRECTORY:
            raise UnpackError(f"{_show(entry)}: the root can't be a {entry.kind.value}")
        self._set_directory(entry, self._directories.root)
        self._times[b""] = _bounded(entry.mtime)
        self._directories.forget()

    def _make_hardlink(self, entry: Entry, fd: int, parts: list[bytes]) -> None:
        target = _clean(entry.link)
        if not target or target[-1].startswith(_WHITEOUT):
            raise UnpackError(f"{_show(entry)}: a hard link to {entry.link!r}")
        if target == parts:
            raise UnpackError(f"{_show(entry)}: a hard link to itself")
        try:
            source = self._directories.open(b"/".join(target[:-1]))
        except FileNotFoundError:
            self.missing_links.append((b"/".join(parts), b"/".join(target)))
            return
        try:
            self._link(entry, source, target, fd, parts)
        finally:
            os.close(source)

    def _link(
        self, entry: Entry, source: int, target: list[bytes], fd: int, parts: list[bytes]
    ) -> None:
        name = parts[-1]
        try:
            status = os.stat(target[-1], dir_fd=source, follow_symlinks=False)
        except FileNotFoundError:
            self.missing_links.append((b"/".join(parts), b"/".join(target)))
            return
        if stat.S_ISDIR(status.st_mode):
            raise UnpackError(f"{_show(entry)}: a hard link to the directory {entry.link!r}")
        if is_whiteout(status):
            raise UnpackError(f"{_show(entry)}: a hard link to {entry.link!r}, which is removed")
        with contextlib.suppress(FileNotFoundError):
            there = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if (there.st_dev, there.st_ino) == (status.st_dev, status.st_ino):
                return  # by another path the very same name, or linked before
        self._replacing(
            fd,
            name,
            lambda: os.link(
                target[-1], name, src_dir_fd=source, dst_dir_fd=fd, follow_symlinks=False
            ),
        )

    def _make_special(self, entry: Entry, fd: int, name: bytes) -> None:
        types = {Kind.CHAR: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK, Kind.FIFO: stat.S_IFIFO}
        kind = types[entry.kind]
        device = 0 if entry.kind is Kind.FIFO else os.makedev(entry.major, entry.minor)
        self._replacing(fd, name, lambda: os.mknod(name, kind | entry.mode, device, dir_fd=fd))
        os.chown(name, entry.uid, entry.gid, dir_fd=fd, follow_symlinks=False)
        if entry.mode & 0o7000:
            os.chmod(name, entry.mode, dir_fd=fd)  # a device or FIFO of ours: nothing to follow
        self._set_xattrs(entry, fd, name)
        self._set_time(entry, fd, name)

    def _set_xattrs(self, entry: Entry, fd: int, name: bytes) -> None:
        for key, value in entry.xattrs.items():
            path = b"/proc/self/fd/%d/%s" % (fd, name)
            _set_xattr(path, key, value)

    def _set_time(self, entry: Entry, fd: int, name: bytes) -> None:
        mtime = _bounded(entry.mtime)
        os.utime(name, ns=(mtime, mtime), dir_fd=fd, follow_symlinks=False)

    def _whiteout(self, parts: list[bytes]) -> None:
        """`.wh.name` removes `name` of the layers below, `.wh..wh..opq` all of the directory.

        What this very layer has is untouched, whether it comes before or after.
        """
        base = parts[-1]
        if base == _OPAQUE:
            fd, _ = self._directories.parent(parts[:-1])
            os.setxattr(fd, OPAQUE_XATTR, b"y")
            return
        if base.startswith(_WHITEOUT_META):
            return  # aufs' own notes
        name = base[len(_WHITEOUT) :]
        if name in (b"", b".", b".."):
            raise UnpackError(f"{os.fsdecode(b'/'.join(parts))}: a whiteout of nothing")
        fd, _ = self._directories.parent(parts[:-1])
        try:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=fd)
            self.whiteouts.append(b"/".join([*parts[:-1], name]))
        except FileExistsError:
            if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                own = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                try:
                    os.setxattr(own, OPAQUE_XATTR, b"y")
                finally:
                    os.close(own)

    def _replacing(self, fd: int, name: bytes, make: Callable[[], None]) -> None:
        try:
            make()
        except FileExistsError:
            self._remove(fd, name)
            make()

    def _remove(self, fd: int, name: bytes) -> None:
        """Removes what stands in an entry's way, which an earlier entry of this layer made."""
        mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            self._set_aside(fd, name)
        else:
            os.unlink(name, dir_fd=fd)
        if stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            self._directories.forget()

    def _set_aside(self, fd: int, name: bytes) -> None:
        """Moves a tree out of the layer; it may be too deep to be removed by the way."""
        if not self._aside:
            os.mkdir(self._trash, 0o700)
        self._aside += 1
        os.rename(name, os.fsencode(f"{self._trash}/{self._aside}"), src_dir_fd=fd)

    # Bounds and errors

    def _account(self, count: int) -> None:
        self._used += count
        if self._used > self._limits.max_bytes:
            raise ResourceExhausted(
                f"{_show(self._entry)}: the layer is larger than {self._limits.max_bytes} bytes"
            )
        if self._used >= self._next_look:
            self._next_look = self._used + _SPACE_STEP
            space = os.fstatvfs(self._directories.root)
            if space.f_bavail * space.f_frsize < self._limits.min_free + _SPACE_STEP:
                raise ResourceExhausted(
                    f"{_show(self._entry)}: less than"
                    f" {(self._limits.min_free + _SPACE_STEP) >> 20} MiB are left on the disk"
                )

    def _explain(self, error: OSError, entry: Entry) -> Exception:
        reason = f"{_show(entry)}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return ResourceExhausted(reason)
        if error.errno == errno.EIO:
            return DataLoss(reason)
        return UnpackError(reason)


def _clean(path: bytes) -> list[bytes]:
    """A path's components; `..` goes up by name, and not above the root."""
    if len(path) > _PATH_MAX:
        raise UnpackError(f"{os.fsdecode(path[:80])}…: a path of {len(path)} bytes")
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part in (b"", b"."):
            continue
        if part == b"..":
            del parts[-1:]
        elif len(part) > _NAME_MAX:
            raise UnpackError(f"{os.fsdecode(path[:80])}…: a name of {len(part)} bytes")
        else:
            parts.append(part)
    return parts


def _bounded(mtime: int) -> int:
    return min(max(mtime, _MIN_TIME), _MAX_TIME)


def _set_xattr(where: int | bytes, key: str, value: bytes) -> None:
    if key.startswith(_OVERLAY_XATTRS):
        return
    try:
        if isinstance(where, int):
            os.setxattr(where, key, value)
        else:
            os.setxattr(where, key, value, follow_symlinks=False)
    except OSError as error:
        # The filesystem takes no such attribute, or the kernel has no such security module.
        if error.errno in (errno.EOPNOTSUPP, errno.EPERM):
            return
        if error.errno in (errno.ENOSPC, errno.E2BIG, errno.ERANGE):
            # ext4 says "no space" of what doesn't fit into an inode's block for them
            raise OSError(
                errno.E2BIG, f"extended attribute {key[:64]} of {len(value)} bytes doesn't fit"
            ) from error
        raise


def _show(entry: Entry | None) -> str:
    return os.fsdecode(entry.path[:200]).encode("unicode_escape").decode() if entry else "layer"
