"""Decompression of layers as a stream: bytes are pulled, never more than asked for comes out.

What a stream is, its first bytes say; registries' media types are often wrong. isal and zstd
are imported when the first stream of their kind comes: this runs in worker processes.
"""

from __future__ import annotations

import importlib
import zlib
from typing import TYPE_CHECKING, Any, Final, Protocol

from zos_cri.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable

# The zstd tool's own limit without --long: 128 MiB. A stream may ask for 2 GiB of window.
_ZSTD_WINDOW_LOG: Final = 27
_INPUT: Final = 1 << 18
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE: Final = b"\x2a\x4d\x18"  # after a first byte of 0x50 to 0x5f
_OTHERS: Final = {b"BZh": "bzip2", b"\xfd7zXZ": "xz"}


class CompressionError(InvalidArgument):
    """The stream is damaged, or in a format that layers don't come in."""


class Source(Protocol):
    """Where compressed bytes come from."""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end."""


class Stream(Protocol):
    """Decompressed bytes."""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end.

        Raises:
            CompressionError: the stream is damaged or ends too early.
        """


def decompressed(source: Source) -> Stream:
    """The plain content of `source`: gzip (of any number of members), zstd, or plain already."""
    head = b""
    while len(head) < 6:
        more = source.read(_INPUT)
        if not more:
            break
        head += more
    pushed = _Pushed(head, source)
    if head.startswith(_GZIP):
        return _Gzip(pushed)
    if head.startswith(_ZSTD) or (head[1:4] == _ZSTD_SKIPPABLE and head[0] & 0xF0 == 0x50):
        return _Zstd(pushed)
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            raise CompressionError(f"compressed with {name}, which no layer may be")
    return pushed


class _Pushed:
    """A source with some bytes put back in front."""

    def __init__(self, head: bytes, source: Source) -> None:
        self._head = head
        self._source = source

    def read(self, size: int) -> bytes:
        if self._head:
            piece, self._head = self._head[:size], self._head[size:]
            return piece
        return self._source.read(size)


class _Gzip:
    """Members one after another, as pigz and estargz write them; padding after the last."""

    def __init__(self, source: Source) -> None:
        self._new, self._error = _inflater()
        self._source = source
        self._member: Any = self._new()
        self._input = b""
        self._ended = False

    def read(self, size: int) -> bytes:
        while not self._ended:
            if self._member.eof and not self._next_member():
                break
            if not self._input:
                self._input = self._source.read(_INPUT)
                if not self._input:
                    raise CompressionError("the gzip stream ends too early")
            try:
                output: bytes = self._member.decompress(self._input, size)
            except self._error as error:
                raise CompressionError(f"the gzip stream is damaged: {error}") from error
            self._input = self._member.unconsumed_tail
            if output:
                return output
        return b""

    def _next_member(self) -> bool:
        rest: bytes = self._member.unused_data or self._input
        rest = rest.lstrip(b"\0")
        while len(rest) < len(_GZIP):
            more = self._source.read(_INPUT)
            if not more:
                break
            rest = (rest + more).lstrip(b"\0")
        self._ended = not rest
        if rest and not rest.startswith(_GZIP):
            raise CompressionError("rubbish follows the gzip stream")
        self._member, self._input = self._new(), rest
        return not self._ended


def _inflater() -> tuple[Callable[[], Any], Any]:
    """isal is twice as fast as zlib; zlib does where it isn't built for the machine."""
    try:
        from isal import isal_zlib  # noqa: PLC0415
    except ImportError:
        return lambda: zlib.decompressobj(wbits=31), zlib.error
    return lambda: isal_zlib.decompressobj(wbits=31), isal_zlib.IsalError


class _Zstd:
    """Frames one after another; what skippable frames hold is skipped."""

    def __init__(self, source: Source) -> None:
        zstd = _zstd_module()
        self._error = zstd.ZstdError
        limit = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
        self._new: Callable[[], Any] = lambda: zstd.ZstdDecompressor(options=limit)
        self._source = source
        self._frame = self._new()
        self._begun = False

    def read(self, size: int) -> bytes:
        while True:
            piece = b""
            if self._frame.eof:
                piece = self._frame.unused_data
                self._frame, self._begun = self._new(), False
            if not piece and self._frame.needs_input:
                piece = self._source.read(_INPUT)
                if not piece:
                    if self._begun:
                        raise CompressionError("the zstd stream ends too early")
                    return b""
            self._begun = True
            try:
                output: bytes = self._frame.decompress(piece, size)
            except self._error as error:
                raise CompressionError(f"the zstd stream is damaged: {error}") from error
            if output:
                return output


def _zstd_module() -> Any:
    """The standard library's from Python 3.14 on, else the same module as a backport."""
    try:
        return importlib.import_module("compression.zstd")
    except ImportError:
        return importlib.import_module("backports.zstd")
