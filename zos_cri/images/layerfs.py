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
import shutil
import stat
from typing import TYPE_CHECKING, Final

from zos_cri.errors import DataLoss, InvalidArgument, ResourceExhausted
from zos_cri.images.merged import OPAQUE_XATTR, is_whiteout
from zos_cri.linux import syscalls
from zos_cri.wire.tarheader import Entry, Kind

if TYPE_CHECKING:
    from collections.abc import Callable

_WHITEOUT: Final = b".wh."
_WHITEOUT_META: Final = b".wh..wh."
_OPAQUE: Final = b".wh..wh..opq"
_MAX_LINKS: Final = 40  # the kernel's own limit (ELOOP)
_NAME_MAX: Final = 255
_PATH_MAX: Final = 4096
_OPEN_DIRECTORIES: Final = 64  # parents kept open; archives are written directory by directory
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Overlayfs' own marks must come from us: a forged redirect or metacopy reaches into other layers.
_OVERLAY_XATTRS: Final = ("trusted.overlay.", "user.overlay.")
# ext4 keeps 34 bits of seconds; what lies outside is as good as the end of it.
_MIN_TIME: Final = -(1 << 31) * 1_000_000_000
_MAX_TIME: Final = ((1 << 34) - (1 << 31) - 1) * 1_000_000_000
# How much may be written between two looks at the free space.
_SPACE_STEP: Final = 64 << 20
_INODE_COST: Final = 4096  # what an entry without data counts, in bytes


class UnpackError(InvalidArgument):
    """The archive holds what no layer may; the message names the entry."""


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
        implied: directories that were made without an entry of their own, parents first.
        missing_links: hard links to what this layer doesn't have: (path, target).
    """

    def __init__(self, root: str, limits: Limits | None = None) -> None:
        """Args: root: an empty directory."""
        os.umask(0)
        self._root = os.open(root, _DIRECTORY)
        self._limits = limits or Limits()
        self._parents: dict[bytes, tuple[int, bool]] = {}
        self._file = -1
        self._entry: Entry | None = None
        self._times: dict[bytes, int] = {}
        self._used = 0
        self._next_look = 0
        self.implied: dict[bytes, None] = {}
        self.missing_links: list[tuple[bytes, bytes]] = []

    def close(self) -> None:
        """Lets go of all descriptors; idempotent."""
        self._forget_parents()
        for name in ("_file", "_root"):
            fd = getattr(self, name)
            if fd >= 0:
                setattr(self, name, -1)
                os.close(fd)

    def finish(self) -> None:
        """After the last entry: sets the directories' times."""
        self._end_file()
        for path, mtime in reversed(self._times.items()):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                fd = self._open_directory(path)
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
            fd, setgid = self._parent(parts[:-1])
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
        if kind is Kind.FILE:
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
        try:
            assert entry is not None  # the file is its
            for key, value in entry.xattrs.items():
                _set_xattr(fd, key, value)
            mtime = _bounded(entry.mtime)
            os.utime(fd, ns=(mtime, mtime))
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
        own = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        try:
            self._set_directory(entry, own)
            if opaque:  # the one below was removed, this one is new
                os.setxattr(own, OPAQUE_XATTR, b"y")
        finally:
            os.close(own)
        path = b"/".join(parts)
        self._times[path] = _bounded(entry.mtime)
        self.implied.pop(path, None)
        known = self._parents.pop(path, None)
        if known is not None:  # its setgid bit may be another now
            os.close(known[0])

    def _set_directory(self, entry: Entry, fd: int) -> None:
        os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode)
        for key, value in entry.xattrs.items():
            _set_xattr(fd, key, value)

    def _set_root(self, entry: Entry) -> None:
        if entry.kind is not Kind.DIRECTORY:
            raise UnpackError(f"{_show(entry)}: the root can't be a {entry.kind.value}")
        self._set_directory(entry, self._root)
        self._times[b""] = _bounded(entry.mtime)
        self._forget_parents()

    def _make_hardlink(self, entry: Entry, fd: int, parts: list[bytes]) -> None:
        target = _clean(entry.link)
        if not target or target[-1].startswith(_WHITEOUT):
            raise UnpackError(f"{_show(entry)}: a hard link to {entry.link!r}")
        if target == parts:
            raise UnpackError(f"{_show(entry)}: a hard link to itself")
        try:
            source = self._open_directory(b"/".join(target[:-1]))
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
            fd, _ = self._parent(parts[:-1])
            os.setxattr(fd, OPAQUE_XATTR, b"y")
            return
        if base.startswith(_WHITEOUT_META):
            return  # aufs' own notes
        name = base[len(_WHITEOUT) :]
        if name in (b"", b".", b".."):
            raise UnpackError(f"{os.fsdecode(b'/'.join(parts))}: a whiteout of nothing")
        fd, _ = self._parent(parts[:-1])
        try:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=fd)
        except FileExistsError:
            if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                own = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
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
            shutil.rmtree(os.fsdecode(name), dir_fd=fd)
        else:
            os.unlink(name, dir_fd=fd)
        if stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            self._forget_parents()

    # Parents

    def _parent(self, parts: list[bytes]) -> tuple[int, bool]:
        """A directory's descriptor, and whether it passes its group on (setgid)."""
        path = b"/".join(parts)
        known = self._parents.get(path)
        if known is not None:
            return known
        try:
            fd = self._open_directory(path)
        except (FileNotFoundError, NotADirectoryError):
            fd = self._make_parents(parts)
        while len(self._parents) >= _OPEN_DIRECTORIES:
            oldest = next(iter(self._parents))
            os.close(self._parents.pop(oldest)[0])
        setgid = bool(os.fstat(fd).st_mode & stat.S_ISGID)
        self._parents[path] = (fd, setgid)
        return fd, setgid

    def _open_directory(self, path: bytes) -> int:
        return syscalls.openat2(
            self._root,
            os.fsdecode(path) or ".",
            flags=_DIRECTORY,
            resolve=syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS,
        )

    def _make_parents(self, parts: list[bytes]) -> int:
        """Walks down step by step, resolving links within the root, and makes what isn't there."""
        names = list(reversed(parts))
        real: list[bytes] = []
        links = 0
        fd = os.dup(self._root)
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
            return os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        finally:
            os.close(fd)

    def _reopen(self, fd: int, real: list[bytes]) -> int:
        os.close(fd)
        return self._open_directory(b"/".join(real))

    def _forget_parents(self) -> None:
        for fd, _ in self._parents.values():
            os.close(fd)
        self._parents.clear()

    # Bounds and errors

    def _account(self, count: int) -> None:
        self._used += count
        if self._used > self._limits.max_bytes:
            raise ResourceExhausted(
                f"{_show(self._entry)}: the layer is larger than {self._limits.max_bytes} bytes"
            )
        if self._used >= self._next_look:
            self._next_look = self._used + _SPACE_STEP
            space = os.fstatvfs(self._root)
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
        if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
            raise


def _show(entry: Entry | None) -> str:
    return os.fsdecode(entry.path[:200]).encode("unicode_escape").decode() if entry else "layer"
