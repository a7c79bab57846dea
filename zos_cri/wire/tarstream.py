"""A tar reader without I/O: bytes go in as they arrive, entries and their data come out.

It reads what image layers consist of: ustar, PAX, GNU long names, the four GNU ways to write sparse
files, v7 and star headers, base-256 numbers. Where readers of this world differ it does as Go's
archive/tar does, since the tools that make and scan images are built on that: header-only types
have no data whatever their size field says, a global PAX header is read over, a GNU long name goes
before a PAX path. Nothing is trusted: every length has a bound, every number is checked, and an
archive that ends within an entry is an error.

Paths are bytes and are given as they stand in the archive; to make them safe is the writer's work.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from zos_cri.wire.tarheader import (
    BLOCK,
    KINDS,
    MAX_META,
    MAX_SEGMENTS,
    MAX_SIZE,
    XATTR,
    Entry,
    Kind,
    Segment,
    TarError,
    check_entry,
    check_sum,
    decimal,
    map_fields,
    name_of,
    number,
    parse_header,
    parse_pax,
    parse_time,
    split_map,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_ZEROS: Final = bytes(BLOCK)


class Data(NamedTuple):
    """A piece of the last entry's file. The view is valid until the next call of `feed`.

    Attributes:
        offset: of the piece in the file.
        start: of the piece in what `feed` was given.
    """

    offset: int
    data: memoryview
    start: int


class _State(Enum):
    HEADER = "header"
    EXTENDED = "extended header"  # GNU's old sparse format: more of the map in further blocks
    META = "meta"  # the content of a PAX header or a long name
    SPARSE_MAP = "sparse map"  # PAX sparse format 1.0: the map precedes the data
    DATA = "data"
    PADDING = "padding"
    END = "end"


# An enumeration's members take longer to be looked up than most of what is done with an entry.
_HEADER, _EXTENDED, _META, _SPARSE_MAP, _DATA, _PADDING, _END = _State
_FILE: Final = Kind.FILE


class TarReader:
    """One archive. Exhaust what `feed` returns before calling it again; call `close` at the end."""

    def __init__(self) -> None:
        self._state = _HEADER
        self._held = bytearray()  # an incomplete block or meta content
        self._need = BLOCK
        self._left = 0  # of the present entry's data in the archive
        self._padding = 0
        self._zero_seen = False
        self._meta_kind = b""
        self._long_path: bytes | None = None
        self._long_link: bytes | None = None
        self._pax: dict[str, bytes] = {}
        self._pax_sparse: list[int] = []
        self._entry: Entry | None = None
        self._segments: list[Segment] = []
        self._pending_map: list[Segment] = []  # of a GNU sparse file, as far as it was read
        self._map_text = b""  # of a PAX 1.0 sparse file
        self._written = 0  # of the present file: bytes of data given out
        self._segment = 0
        self._in_segment = 0

    def feed(self, data: bytes) -> Iterator[Entry | Data]:
        """Takes the next bytes of the archive; gives the entries and data that they complete.

        Raises:
            TarError: the archive is damaged. The message names the entry.
        """
        view = memoryview(data)
        at, end = 0, len(data)
        while at < end:
            if self._state is _DATA:
                stop = min(end, at + self._left)
                self._left -= stop - at
                if self._segments:
                    yield from self._sparse_data(view[at:stop], at)
                else:
                    yield Data(self._written, view[at:stop], at)
                    self._written += stop - at
                if not self._left:
                    self._after_data()
                at = stop
            elif self._state is _PADDING:
                skipped = min(self._padding, end - at)
                at += skipped
                self._padding -= skipped
                if not self._padding:
                    self._state = _HEADER
            elif self._state is _END:
                return
            else:
                stop = min(end, at + self._need - len(self._held))
                entry = self._collect(data[at:stop])
                at = stop
                if entry is not None:
                    yield entry

    def _collect(self, piece: bytes) -> Entry | None:
        """Gathers a whole block, or a whole meta content, and reads it."""
        if len(piece) == self._need and not self._held:
            block = piece  # the usual case: nothing to gather
        else:
            self._held += piece
            if len(self._held) < self._need:
                return None
            block = bytes(self._held)
            self._held.clear()
        self._need = BLOCK
        return self._block(self._state, block)

    def close(self) -> None:
        """The bytes have come to their end.

        An archive may do without the two empty blocks at its end; it may not end elsewhere.

        Raises:
            TarError: it ends too early.
        """
        if self._state is _END:
            return
        waiting = self._long_path is not None or self._long_link is not None or self._pax
        if self._state is not _HEADER or self._held or waiting:
            name = f" in {self._entry.path!r}" if self._entry is not None else ""
            raise TarError(f"the archive ends too early, in a {self._state.value}{name}")

    # Blocks

    def _block(self, state: _State, block: bytes) -> Entry | None:
        if state is _HEADER:
            return self._header(block)
        if state is _META:
            self._meta(block)
            return None
        if state is _EXTENDED:
            return self._extended(block)
        return self._sparse_map(block)

    def _header(self, block: bytes) -> Entry | None:
        if block == _ZEROS:
            if self._zero_seen:
                self._state = _END
            self._zero_seen = True
            return None
        if self._zero_seen:
            raise TarError("data follow an empty block")
        check_sum(block)
        flag = block[156:157]
        if flag in (b"x", b"g", b"L", b"K"):
            self._begin_meta(flag, number(block[124:136], "size"))
            return None
        if flag == b"V":  # GNU's volume label
            self._reset()
            return None
        kind = KINDS.get(flag)
        if kind is None:
            raise TarError(f"{name_of(block)!r}: entries of type {flag!r} are not known")
        return self._start(block, kind, flag)

    def _begin_meta(self, flag: bytes, size: int) -> None:
        if not 0 <= size <= MAX_META:
            raise TarError(f"a header of type {flag!r} has {size} bytes, more than {MAX_META}")
        self._meta_kind = flag
        self._left = size
        self._padding = -size % BLOCK
        self._need = size + self._padding
        if size:
            self._state = _META
        else:
            self._need = BLOCK

    def _meta(self, content: bytes) -> None:
        content = content[: self._left]
        self._state = _HEADER
        self._left = self._padding = 0
        if self._meta_kind == b"L":
            self._long_path = content.partition(b"\0")[0]
        elif self._meta_kind == b"K":
            self._long_link = content.partition(b"\0")[0]
        elif self._meta_kind == b"x":
            self._pax, self._pax_sparse = parse_pax(content)
        else:
            parse_pax(content)  # global: checked, not used

    def _start(self, block: bytes, kind: Kind, flag: bytes) -> Entry | None:
        entry = parse_header(block, kind)
        stored = self._merge(entry)
        if flag == b"\0" and entry.path.endswith(b"/"):
            entry.kind = Kind.DIRECTORY  # how v7 wrote them
        check_entry(entry)
        self._entry = entry
        self._segments = []
        self._written = self._segment = self._in_segment = 0
        if entry.kind is not _FILE:
            entry.size = stored = 0
        self._left, self._padding = stored, -stored % BLOCK
        pax, numbers = self._pax, self._pax_sparse
        self._reset()
        if entry.kind is _FILE:
            if flag == b"S":
                return self._old_sparse(block, entry)
            if self._pax_sparse_begins(entry, pax, numbers):
                return None
        self._begin_data()
        return entry

    def _reset(self) -> None:
        self._long_path = self._long_link = None
        self._pax, self._pax_sparse = {}, []

    def _merge(self, entry: Entry) -> int:
        """Puts in what the headers before said; answers how many bytes the archive holds."""
        stored = entry.size
        for key, value in self._pax.items():
            if key == "path":
                entry.path = value
            elif key == "linkpath":
                entry.link = value
            elif key == "size":
                stored = entry.size = decimal(value, key)
            elif key == "uid":
                entry.uid = decimal(value, key)
            elif key == "gid":
                entry.gid = decimal(value, key)
            elif key == "mtime":
                entry.mtime = parse_time(value)
            elif key.startswith(XATTR):
                entry.xattrs[key[len(XATTR) :]] = value
        if self._long_path is not None:
            entry.path = self._long_path
        if self._long_link is not None:
            entry.link = self._long_link
        return stored

    def _begin_data(self) -> None:
        if self._left:
            self._state = _DATA
        else:
            self._after_data()

    def _after_data(self) -> None:
        self._state = _PADDING if self._padding else _HEADER

    # Sparse files

    def _sparse_data(self, piece: memoryview, at: int) -> Iterator[Data]:
        while piece:
            segment = self._segments[self._segment]
            part = piece[: segment.length - self._in_segment]
            yield Data(segment.offset + self._in_segment, part, at)
            piece, at = piece[len(part) :], at + len(part)
            self._in_segment += len(part)
            self._skip_full_segments()

    def _skip_full_segments(self) -> None:
        while (
            self._segment < len(self._segments)
            and self._in_segment == self._segments[self._segment].length
        ):
            self._segment += 1
            self._in_segment = 0

    def _use_segments(self, entry: Entry, segments: list[Segment]) -> None:
        """Checks a map: in order, within the file, and of just the bytes that the archive holds."""
        position = 0
        for segment in segments:
            if segment.offset < position or segment.length < 0:
                raise TarError(f"{entry.path!r}: its sparse map is out of order")
            position = segment.offset + segment.length
        if not position <= entry.size <= MAX_SIZE:
            raise TarError(f"{entry.path!r}: its sparse map goes beyond its end")
        if sum(segment.length for segment in segments) != self._left:
            raise TarError(f"{entry.path!r}: its sparse map doesn't match its data")
        entry.sparse = tuple(segments)
        self._segments = segments
        self._skip_full_segments()
        self._begin_data()

    def _old_sparse(self, block: bytes, entry: Entry) -> Entry | None:
        """The map begins in the header and goes on in blocks of its own."""
        entry.size = number(block[483:495], "real size")
        self._pending_map = map_fields(block[386:482])
        if block[482]:
            self._state = _EXTENDED
            return None
        self._use_segments(entry, self._pending_map)
        return entry

    def _extended(self, block: bytes) -> Entry | None:
        entry = self._present()
        self._pending_map += map_fields(block[:504])
        if len(self._pending_map) > MAX_SEGMENTS:
            raise TarError(f"{entry.path!r}: more than {MAX_SEGMENTS} pieces")
        if block[504]:
            return None
        self._use_segments(entry, self._pending_map)
        return entry

    def _pax_sparse_begins(self, entry: Entry, pax: dict[str, bytes], numbers: list[int]) -> bool:
        """Reads PAX' three sparse formats; whether a map precedes the data (format 1.0)."""
        if not pax:
            return False
        real = pax.get("GNU.sparse.realsize", pax.get("GNU.sparse.size"))
        version = (pax.get("GNU.sparse.major"), pax.get("GNU.sparse.minor"))
        if version == (b"1", b"0"):
            self._rename(entry, pax, real)
            self._map_text = b""
            self._state = _SPARSE_MAP
            if self._left < BLOCK:
                raise TarError(f"{entry.path!r}: its sparse map is missing")
            return True
        if "GNU.sparse.map" in pax:  # 0.1
            numbers = split_map(pax["GNU.sparse.map"], entry)
        elif "GNU.sparse.numblocks" not in pax:
            return False
        self._rename(entry, pax, real)
        if len(numbers) % 2 or len(numbers) > 2 * MAX_SEGMENTS:
            raise TarError(f"{entry.path!r}: its sparse map has {len(numbers)} numbers")
        entry_map = [Segment(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
        self._use_segments(entry, entry_map)
        return False

    def _rename(self, entry: Entry, pax: dict[str, bytes], real: bytes | None) -> None:
        entry.path = pax.get("GNU.sparse.name", entry.path)
        if real is not None:
            entry.size = decimal(real, "GNU.sparse.realsize")
        check_entry(entry)

    def _sparse_map(self, block: bytes) -> Entry | None:
        """Format 1.0: a count, then that many offsets and lengths, a line each, then padding."""
        entry = self._present()
        self._left -= BLOCK
        self._map_text += block
        lines = self._map_text.split(b"\n")
        count = decimal(lines[0], "sparse map") if len(lines) > 1 else None
        if count is not None and count > MAX_SEGMENTS:
            raise TarError(f"{entry.path!r}: more than {MAX_SEGMENTS} pieces")
        if count is None or len(lines) - 2 < 2 * count:
            if self._left < BLOCK:
                raise TarError(f"{entry.path!r}: its sparse map doesn't end")
            return None
        numbers = [decimal(line, "sparse map") for line in lines[1 : 2 * count + 1]]
        self._use_segments(
            entry, [Segment(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
        )
        return entry

    def _present(self) -> Entry:
        assert self._entry is not None  # the states for it begin with an entry
        return self._entry
