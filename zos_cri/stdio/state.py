"""What the logger must know after it was killed: one file a container, on tmpfs."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri.errors import InvalidArgument
from zos_cri.log import get_log
from zos_cri.stdio.messages import LogSpec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_log = get_log(__name__)
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_SUFFIX: Final = ".json"


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """A container as it is noted down. `inode` is its log file's, 0 where there is none."""

    spec: LogSpec
    inode: int = 0


_decoder = msgspec.json.Decoder(Saved)


class StateDir:
    """The directory. A file is written aside and renamed, so that it is there whole or not."""

    def __init__(self, path: Path) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = path

    def save(self, saved: Saved) -> None:
        """Raises OSError, or InvalidArgument where the id can't name a file."""
        target = self._file(saved.spec.id, _SUFFIX)
        aside = target.with_suffix(".new")
        aside.write_bytes(msgspec.json.encode(saved))
        aside.replace(target)

    def check(self, container: str) -> None:
        """Raises InvalidArgument where the id can't name a file."""
        self._file(container, _SUFFIX)

    def remove(self, container: str) -> None:
        """The container's file and parts; those that aren't there are nothing."""
        for suffix in (_SUFFIX, ".stdout.part", ".stderr.part"):
            with contextlib.suppress(FileNotFoundError):
                self._file(container, suffix).unlink()

    def load(self) -> Iterator[Saved]:
        """All containers noted down; a file that can't be read is told of and removed."""
        for path in sorted(self._path.glob("*" + _SUFFIX)):
            try:
                yield _decoder.decode(path.read_bytes())
            except (OSError, msgspec.MsgspecError) as error:
                _log.error("state file is damaged", path=str(path), error=str(error))
                path.unlink(missing_ok=True)

    def part(self, container: str, stream: str) -> Part:
        return Part(self._file(container, f".{stream}.part"))

    def _file(self, container: str, suffix: str) -> Path:
        if not _ID.fullmatch(container):
            raise InvalidArgument(f"logger: container id {container!r} can't name a file")
        return self._path / (container + suffix)


class Part:
    """A line too long to wait in its FIFO: what was taken of it so far, in memory and on tmpfs.

    The file is there only while such a line is under way.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.data = b""

    def load(self) -> None:
        """Takes over what a killed logger had gathered."""
        with contextlib.suppress(FileNotFoundError):
            self.data = self._path.read_bytes()

    def add(self, data: bytes) -> None:
        """Raises OSError, with nothing added."""
        fd = os.open(
            self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            written = os.write(fd, data)
            if written != len(data):
                os.ftruncate(fd, len(self.data))
                raise OSError(errno.ENOSPC, "no room for a long line", str(self._path))
        finally:
            os.close(fd)
        self.data += data

    def clear(self) -> None:
        if self.data:
            self.data = b""
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
