"""A checkpoint's directory to an archive and back. All of it blocks: it is done in a worker."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tarfile
from typing import TYPE_CHECKING, Final

from zos_cri.checkpoint import layout
from zos_cri.errors import DataLoss, InvalidArgument, ResourceExhausted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import IO

# What an archive may have that is taken out of it; all else is for people (logs, statistics).
_DOCUMENTS: Final = (layout.CONFIG, layout.SPEC, layout.DELETED)
_FILES: Final = (*_DOCUMENTS, layout.ROOTFS_DIFF)
_MAX_FILES: Final = 100_000  # CRIU writes about 6 for each process
_FREE: Final = 256 << 20  # bytes that stay free on the disk


def pack(directory: Path, target: Path) -> None:
    """Writes an archive with all that is in a directory; it is there whole or not at all.

    Raises:
        InvalidArgument: the target can't be written.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with (
            open(part, "xb", opener=_private) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for name in sorted(os.listdir(directory)):
                tar.add(directory / name, arcname=name)
        os.replace(part, target)
    except OSError as error:
        raise InvalidArgument(f"{target}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    """It holds the container's memory."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def unpack(source: Path, directory: Path) -> None:
    """Takes what a restore needs out of an archive, or out of a directory with the same in it.

    Raises:
        InvalidArgument: there is nothing, or something else, at `source`.
        DataLoss: it is damaged, or no checkpoint.
        ResourceExhausted: it is larger than the disk.
    """
    os.umask(0o077)
    (directory / layout.IMAGES).mkdir(parents=True)
    room = _room(directory)
    try:
        if source.is_dir():
            _copy_tree(source, directory, room)
        else:
            _copy_archive(source, directory, room)
    except (tarfile.TarError, EOFError) as error:
        raise DataLoss(f"{source}: {error}") from error
    except FileNotFoundError as error:
        raise InvalidArgument(f"{source}: {error.strerror}") from error
    for name in (layout.CONFIG, layout.SPEC, f"{layout.IMAGES}/{layout.INVENTORY}"):
        if not (directory / name).exists():
            raise DataLoss(f"{source}: no checkpoint of a container: it has no {name}")


def _copy_archive(source: Path, directory: Path, room: Callable[[int], None]) -> None:
    with tarfile.open(source, mode="r|*") as tar:
        for member in tar:
            name = _wanted(os.path.normpath(member.name))
            if name and member.isreg():
                room(member.size)
                content = tar.extractfile(member)
                assert content is not None  # of a regular file
                _copy(content, directory / name)


def _copy_tree(source: Path, directory: Path, room: Callable[[int], None]) -> None:
    for name in _names(source):
        wanted = _wanted(name)
        if not wanted:
            continue
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(source / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(fd, "rb") as content:
                status = os.fstat(fd)
                if stat.S_ISREG(status.st_mode):
                    room(status.st_size)
                    _copy(content, directory / wanted)


def _names(source: Path) -> Iterator[str]:
    yield from _FILES
    images = source / layout.IMAGES
    if images.is_dir() and not images.is_symlink():
        yield from (f"{layout.IMAGES}/{name}" for name in os.listdir(images))


def _wanted(name: str) -> str:
    """The same name where a restore needs it, else ""."""
    parent, _, base = name.rpartition("/")
    return name if name in _FILES or (parent == layout.IMAGES and base not in ("", "..")) else ""


def _copy(content: IO[bytes], target: Path) -> None:
    try:
        with target.open("xb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
    except FileExistsError as error:
        raise DataLoss(f"{target.name} is there twice") from error


def _room(directory: Path) -> Callable[[int], None]:
    files = 0

    def room(size: int) -> None:
        nonlocal files
        files += 1
        disk = os.statvfs(directory)
        if size + _FREE > disk.f_bavail * disk.f_frsize:
            raise ResourceExhausted(f"{directory}: no room for {size} bytes of a checkpoint")
        if files > _MAX_FILES:
            raise ResourceExhausted(f"a checkpoint of more than {_MAX_FILES} files")

    return room
