"""Files below a root that isn't trusted: a container's, an image's, a bundle's.

Every path is resolved by the kernel as if the root were `/` (openat2's RESOLVE_IN_ROOT): symbolic
links and `..` lead nowhere else, however the tree is changed meanwhile, and magic links of /proc
are refused. Needs Linux 5.6.

Also `write_atomic`, for our own files.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from typing import Final

from zos_cri.errors import FailedPrecondition, ResourceExhausted
from zos_cri.linux import syscalls

_RESOLVE: Final = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
# openat2 gives EAGAIN when any rename or mount on the host raced a `..`; the man page says to try
# again, and each try is another chance.
_TRIES: Final = 64


def open_in_root(root_fd: int, path: str, flags: int, mode: int = 0) -> int:
    """A descriptor of `path` inside the root (O_CLOEXEC is added).

    Args:
        root_fd: descriptor of the root directory (O_PATH will do).
        path: absolute or relative, both from the root.
        flags: of open(2); a device or FIFO would be opened for real, see `read_file_in_root`.
        mode: of a file that O_CREAT makes, before the umask.

    Raises:
        OSError: as open(2), with the path; ELOOP too where a magic link lies on the way.
    """
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            # openat2 takes a mode with O_CREAT and O_TMPFILE only
            creating = flags & (os.O_CREAT | (os.O_TMPFILE & ~os.O_DIRECTORY))
            return syscalls.openat2(
                root_fd, path or ".", flags=flags, mode=mode if creating else 0, resolve=_RESOLVE
            )
    raise OSError(errno.EAGAIN, "the tree keeps being changed", path)


def open_root(root: str) -> int:
    """An O_PATH descriptor of a root directory, for the functions here. The caller closes it."""
    return os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def read_file_in_root(root: str | int, path: str, limit: int) -> bytes | None:
    """The content of a regular file inside the root; None where there is none (dangling link too).

    What isn't a regular file isn't opened: a FIFO would block, a device could do anything.

    Args:
        root: the root directory's path, or a descriptor of it.
        limit: the most bytes it may have.

    Raises:
        FailedPrecondition: it is no regular file, or can't be reached (a loop of links).
        ResourceExhausted: it is larger than `limit`.
    """
    root_fd = open_root(root) if isinstance(root, str) else root
    try:
        return _read(root_fd, path, limit)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise FailedPrecondition(f"read {path} in its root: {error.strerror}") from error
    finally:
        if isinstance(root, str):
            os.close(root_fd)


def _read(root_fd: int, path: str, limit: int) -> bytes:
    found = open_in_root(root_fd, path, os.O_PATH)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise FailedPrecondition(f"read {path} in its root: not a regular file")
        # The very file that was looked at, opened for reading.
        flags = os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC
        with open(os.open(f"/proc/self/fd/{found}", flags), "rb") as file:
            data = file.read(limit + 1)
    finally:
        os.close(found)
    if len(data) > limit:
        raise ResourceExhausted(f"read {path} in its root: larger than {limit} bytes")
    return data


def mkdirs_in_root(root: str | int, path: str, mode: int = 0o755) -> int:
    """Makes the directories of `path` inside the root that are missing.

    Args:
        root: the root directory's path, or a descriptor of it.
        mode: of those made, whatever the umask.

    Returns:
        An O_PATH descriptor of the last one, for the caller to close: whatever is done by it can't
        be led astray any more.

    Raises:
        OSError: as mkdir(2): ENOTDIR where something else is in the way, EEXIST where a symbolic
            link points to nothing.
    """
    root_fd = open_root(root) if isinstance(root, str) else root
    current = -1
    try:
        current = open_in_root(root_fd, "/", os.O_PATH | os.O_DIRECTORY)
        walked = ""
        for part in path.split("/"):
            if part in ("", "."):
                continue
            walked = f"{walked}/{part}"
            deeper = _enter_or_make(root_fd, current, walked, part, mode)
            os.close(current)
            current = deeper
        result, current = current, -1
        return result
    finally:
        if current >= 0:
            os.close(current)
        if isinstance(root, str):
            os.close(root_fd)


def _enter_or_make(root_fd: int, parent: int, walked: str, part: str, mode: int) -> int:
    flags = os.O_PATH | os.O_DIRECTORY
    with contextlib.suppress(FileNotFoundError):
        return open_in_root(root_fd, walked, flags)
    # `parent` was resolved inside the root, and mkdirat makes nothing through a link. What is there
    # by now was made by somebody else: theirs to choose the mode, if it is a directory.
    try:
        os.mkdir(part, 0o700, dir_fd=parent)
    except FileExistsError:
        return syscalls.openat2(
            parent, part, flags=flags | os.O_NOFOLLOW, resolve=syscalls.RESOLVE_NO_SYMLINKS
        )
    made = syscalls.openat2(
        parent, part, flags=flags | os.O_NOFOLLOW, resolve=syscalls.RESOLVE_NO_SYMLINKS
    )
    os.chmod(f"/proc/self/fd/{made}", mode)
    return made


def write_atomic(
    path: str | os.PathLike[str], data: bytes, mode: int = 0o644, *, sync: bool = False
) -> None:
    """Writes a file so that a reader, and a kill at any instant, sees the old one or the new one.

    Args:
        mode: of the file, whatever the umask.
        sync: also survive a power cut: the file, then its directory, are flushed to the disk.
    """
    target = os.fspath(path)
    directory = os.path.dirname(target) or "."
    fd, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(target)}.", dir=directory)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            os.fchmod(fd, mode)
            if sync:
                file.flush()
                os.fsync(fd)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if sync:
        parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
