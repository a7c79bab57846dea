"""A container's log file: opened where it may lie and nowhere else, appended to by whole entries.

What stands in the file always ends with a newline, or is made to: a write that the disk took only
a part of is cut back at once, and one that a SIGKILL of the logger cut short when the next logger
takes the container over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from zos_cri.errors import InvalidArgument
from zos_cri.linux import syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator

_DIR_MODE: Final = 0o755
_FILE_MODE: Final = 0o640
_DIR_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
# Non-blocking, so that a FIFO planted under the log's name can't hold the open.
_FILE_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_BLOCK: Final = 64 * 1024
# File systems whose disks are the host's own, by their magic numbers (linux/magic.h): ext4, xfs,
# btrfs, tmpfs, ramfs, overlayfs, f2fs, bcachefs, zfs. All others may wait for somebody else.
LOCAL: Final = frozenset(
    (
        *(0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0x858458F6),
        *(0x794C7630, 0xF2F52010, 0xCA451A4E, 0x2FC12FC1),
    )
)


class LogFile:
    """One container's log file."""

    def __init__(self, path: str, root: str = "", *, local: frozenset[int] = LOCAL) -> None:
        """Opens nothing yet.

        Args:
            path: absolute, without `.`, `..` and doubled slashes.
            root: a directory that `path` lies below; its own directory where "". The way to `root`
                may have symbolic links, the way from there may not.
            local: magic numbers of file systems that can't hang.

        Raises:
            InvalidArgument: `path` or `root` isn't such a path.
        """
        self.path = path
        self._root, self._below = _split(path, root)
        self._local = local
        self._fd = -1
        self._excess = 0  # bytes at the file's end that a failed append left there
        self._taken_over: int | None = None  # as in `open`, until it succeeds
        self.inode = 0
        self.is_local = False  # as of the last open

    def open(self, taken_over: int | None = None) -> None:
        """Opens the file, and makes it and its directories where they aren't there.

        Args:
            taken_over: None for a new log, or the inode that a logger which was killed wrote to:
                then an entry it was cut short in is removed, wherever below its directory the
                file is now. (What it was part of is still in the FIFO.)

        Raises:
            InvalidArgument: a symbolic link, or something that is no file, is in the way.
            OSError: the file system refuses.
        """
        if taken_over is not None:
            self._taken_over = taken_over
        with self._directory() as directory:
            fd = self._open_in(directory)
            try:
                inode = os.fstat(fd).st_ino
                is_local = syscalls.filesystem_type(fd) in self._local
                if self._taken_over is None:
                    _end_line(fd)
                elif self._taken_over == inode:
                    _cut_line(fd)
                else:
                    _cut_line_of(directory, self._taken_over)
                    _end_line(fd)
            except BaseException:
                os.close(fd)
                raise
        self.close()
        self._fd, self.inode, self._excess, self._taken_over = fd, inode, 0, None
        self.is_local = is_local

    @property
    def is_open(self) -> bool:
        return self._fd >= 0

    def append(self, entries: bytes) -> None:
        """Writes all of it or, as far as a reader sees afterwards, nothing.

        Raises:
            OSError: the file system refuses; the same may be tried again.
        """
        if self._excess:
            self._cut()
        written = 0
        try:
            written = os.write(self._fd, entries)
            while written < len(entries):  # the disk is nearly full, or a signal came
                more = os.write(self._fd, memoryview(entries)[written:])
                if not more:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
                written += more
        except OSError:
            self._excess = written
            with contextlib.suppress(OSError):  # tried again before the next append
                self._cut()
            raise

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _cut(self) -> None:
        os.ftruncate(self._fd, max(0, os.fstat(self._fd).st_size - self._excess))
        self._excess = 0

    @contextlib.contextmanager
    def _directory(self) -> Iterator[int]:
        """A descriptor of the file's directory."""
        os.makedirs(self._root, _DIR_MODE, exist_ok=True)
        fd = os.open(self._root, _DIR_FLAGS)
        try:
            for name in self._below[:-1]:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, _DIR_MODE, dir_fd=fd)
                inner = self._enter(name, fd)
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)

    def _enter(self, name: str, dir_fd: int) -> int:
        try:
            return os.open(name, _DIR_FLAGS | os.O_NOFOLLOW, dir_fd=dir_fd)
        except NotADirectoryError as error:
            raise InvalidArgument(
                f"log path {self.path}: {name!r} is a symbolic link or no directory"
            ) from error

    def _open_in(self, directory: int) -> int:
        name = self._below[-1]
        try:
            fd = os.open(name, _FILE_FLAGS | os.O_CREAT, _FILE_MODE, dir_fd=directory)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV):
                raise InvalidArgument(f"log path {self.path}: not a regular file") from error
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise InvalidArgument(f"log path {self.path}: not a regular file")
        return fd


def _split(path: str, root: str) -> tuple[str, list[str]]:
    root = root.rstrip("/") or os.path.dirname(path)
    for name, value in (("log path", path), ("log directory", root)):
        if not value.startswith("/") or os.path.normpath(value) != value or "\0" in value:
            raise InvalidArgument(f"{name} {value!r} is not absolute or not in its shortest form")
    if not path.startswith(root.rstrip("/") + "/"):
        raise InvalidArgument(f"log path {path!r} lies outside of {root!r}")
    return root, path[len(root.rstrip("/")) + 1 :].split("/")


def _last_newline(fd: int, size: int) -> int:
    """The offset behind the last newline; 0 where there is none."""
    end = size
    while end > 0:
        begin = max(0, end - _BLOCK)
        found = os.pread(fd, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def _cut_line(fd: int) -> None:
    """Removes an unterminated line at the file's end."""
    size = os.fstat(fd).st_size
    end = _last_newline(fd, size)
    if end < size:
        os.ftruncate(fd, end)


def _cut_line_of(directory: int, inode: int) -> None:
    """As `_cut_line`, for a file that was renamed in its directory: rotated while we were dead."""
    with contextlib.suppress(OSError):
        listing = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        try:
            with os.scandir(listing) as entries:
                names = [entry.name for entry in entries if entry.inode() == inode]
            for name in names:
                fd = os.open(name, _FILE_FLAGS, dir_fd=directory)
                try:
                    if stat.S_ISREG(os.fstat(fd).st_mode):
                        _cut_line(fd)
                finally:
                    os.close(fd)
        finally:
            os.close(listing)


def _end_line(fd: int) -> None:
    """Ends an unterminated line that isn't ours to remove."""
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        os.write(fd, b"\n")
