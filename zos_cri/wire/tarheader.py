"""One tar header: its fields, PAX records and sparse maps, as checked values.

Nothing is trusted: every number is checked and every length has a bound. `tarstream` puts headers
and data together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Final, NamedTuple
from zlib import adler32

BLOCK: Final = 512
# Go's maxSpecialFileSize: a PAX header or a long name is no place for more than a few kilobytes.
MAX_META: Final = 1 << 20
# A segment costs 150 bytes of memory here; no file of an image is in more pieces.
MAX_SEGMENTS: Final = 1 << 16
# What off_t holds. A file this long is the file system's to refuse.
MAX_SIZE: Final = (1 << 63) - 1
XATTR: Final = "SCHILY.xattr."
_MAX_ID: Final = (1 << 32) - 2  # (uid_t) -1 means "leave it" to chown(2)
# Mode, uid, gid, size and mtime as nearly every archive has them; all else is read one by one.
_USUAL_NUMBERS = re.compile(
    rb"([0-7]{7})[ \0]([0-7]{7})[ \0]([0-7]{7})[ \0]([0-7]{11})[ \0]([0-7]{11})[ \0]"
)
_DECIMAL = re.compile(r"[0-9]{1,20}")
_TIME = re.compile(r"-?[0-9]{1,20}(?:\.[0-9]*)?")


class TarError(ValueError):
    """The archive is damaged, or holds what no layer may."""


class Kind(Enum):
    """What an entry makes."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symbolic link"
    HARDLINK = "hard link"
    CHAR = "character device"
    BLOCK = "block device"
    FIFO = "FIFO"


KINDS: Final = {
    b"\0": Kind.FILE,
    b"0": Kind.FILE,
    b"7": Kind.FILE,  # contiguous; nobody ever treated it differently
    b"S": Kind.FILE,  # GNU's old sparse format
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHAR,
    b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
}


_DEVICES: Final = (Kind.CHAR, Kind.BLOCK)


class Segment(NamedTuple):
    """Where a piece of a sparse file's data belongs in the file."""

    offset: int
    length: int


@dataclass(slots=True)
class Entry:
    """One header. A file's data follow as `Data`, until the next `Entry` or the end.

    Attributes:
        size: the file's length when it is complete, holes included.
        sparse: what parts of it the archive holds, in order; None where it holds all of it.
        mtime: nanoseconds since 1970, may be negative.
    """

    path: bytes
    kind: Kind
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    link: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: dict[str, bytes] = field(default_factory=dict)
    sparse: tuple[Segment, ...] | None = None


def check_sum(block: bytes) -> None:
    """The sum of a header's bytes, its own field taken as spaces.

    Adler-32's lower half is 1 plus the sum of the bytes modulo 65521, which 256 bytes can't reach.
    """
    text = block[148:156]
    expected = number(text, "checksum")
    total = (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF)
    if total - (adler32(text) & 0xFFFF) - 1 + 8 * 0x20 == expected:
        return
    signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + block[156:])
    if signed + 8 * 0x20 != expected:  # what some old tars wrote
        raise TarError("a header's checksum is wrong: no tar archive, or a damaged one")


def name_of(block: bytes) -> bytes:
    return block[:100].partition(b"\0")[0]


def parse_header(block: bytes, kind: Kind) -> Entry:
    path = name_of(block)
    magic = block[257:265]
    if magic.startswith(b"ustar\0"):
        end = 476 if block[508:512] == b"tar\0" else 500  # star keeps its own fields behind
        prefix = block[345:end].partition(b"\0")[0]
        if prefix:
            path = prefix + b"/" + path
    link = b"" if block[157] == 0 else block[157:257].partition(b"\0")[0]
    mode, uid, gid, size, mtime = _numbers(block)
    entry = Entry(path, kind, mode & 0o7777, uid, gid, size, mtime * 1_000_000_000, link)
    if kind in _DEVICES and magic.startswith(b"ustar"):
        entry.major = number(block[329:337], "major")
        entry.minor = number(block[337:345], "minor")
    return entry


def _numbers(block: bytes) -> tuple[int, int, int, int, int]:
    """Mode, uid, gid, size, mtime."""
    usual = _USUAL_NUMBERS.match(block, 100)
    if usual is not None:
        mode, uid, gid, size, mtime = usual.groups()
        return int(mode, 8), int(uid, 8), int(gid, 8), int(size, 8), int(mtime, 8)
    return (
        number(block[100:108], "mode"),
        number(block[108:116], "uid"),
        number(block[116:124], "gid"),
        number(block[124:136], "size"),
        number(block[136:148], "mtime"),
    )


def check_entry(entry: Entry) -> None:
    if not entry.path:
        raise TarError("an entry has no name")
    if b"\0" in entry.path or b"\0" in entry.link:
        raise TarError(f"{entry.path!r}: a NUL in its name")
    if not 0 <= entry.size <= MAX_SIZE:
        raise TarError(f"{entry.path!r}: its size is {entry.size}")
    if not (0 <= entry.uid <= _MAX_ID and 0 <= entry.gid <= _MAX_ID):
        raise TarError(f"{entry.path!r}: its owner {entry.uid}:{entry.gid} can't be")
    if not (0 <= entry.major < 1 << 12 and 0 <= entry.minor < 1 << 20):
        raise TarError(f"{entry.path!r}: no device {entry.major}:{entry.minor} can be")


def number(text: bytes, what: str) -> int:
    """An octal number with any padding, or a base-256 one (GNU, star)."""
    digits = text.rstrip(b" \0")
    if digits and not digits.strip(b"01234567"):  # the usual one
        return int(digits, 8)
    if text[0] & 0x80:
        value = int.from_bytes(text, "big", signed=True)
        if text[0] != 0xFF:
            value = int.from_bytes(bytes([text[0] & 0x7F]) + text[1:], "big")
        if not -MAX_SIZE <= value <= MAX_SIZE:
            raise TarError(f"a header's {what} is too large")
        return value
    digits = text.strip(b" \0").partition(b"\0")[0]
    if not digits:
        return 0
    try:
        if not digits.isdigit():
            raise ValueError
        return int(digits, 8)
    except ValueError:
        raise TarError(f"a header's {what} is no number: {text!r}") from None


def decimal(value: bytes, what: str) -> int:
    text = value.decode("ascii", "replace")
    if not _DECIMAL.fullmatch(text) or int(text) > MAX_SIZE:
        raise TarError(f"{what} is no number: {value[:40]!r}")
    return int(text)


def parse_time(value: bytes) -> int:
    """Seconds with any number of decimal places, as nanoseconds rounded down."""
    text = value.decode("ascii", "replace")
    try:
        if not _TIME.fullmatch(text):
            raise InvalidOperation
        return int((Decimal(text) * 1_000_000_000).to_integral_value("ROUND_FLOOR"))
    except InvalidOperation:
        raise TarError(f"mtime is no time: {value[:40]!r}") from None


def map_fields(fields: bytes) -> list[Segment]:
    segments = []
    for start in range(0, len(fields), 24):
        if not fields[start]:  # unused
            break
        offset = number(fields[start : start + 12], "sparse map")
        segments.append(Segment(offset, number(fields[start + 12 : start + 24], "sparse map")))
    return segments


def split_map(text: bytes, entry: Entry) -> list[int]:
    numbers = text.split(b",")
    if len(numbers) > 2 * MAX_SEGMENTS:
        raise TarError(f"{entry.path!r}: more than {MAX_SEGMENTS} pieces")
    return [decimal(number, "GNU.sparse.map") for number in numbers] if text else []


def parse_pax(content: bytes) -> tuple[dict[str, bytes], list[int]]:
    """Records `<length> <key>=<value>\\n`; also the numbers of sparse format 0.0, in order.

    An empty value takes back what the ustar header or an earlier record says of the key.
    """
    records: dict[str, bytes] = {}
    numbers: list[int] = []
    position = 0
    while position < len(content):
        space = content.find(b" ", position, position + 21)
        if space < 0:
            raise TarError("a PAX record has no length")
        end = position + decimal(content[position:space], "a PAX record's length")
        key, equals, value = content[space + 1 : end - 1].partition(b"=")
        if end > len(content) or end <= space or content[end - 1 : end] != b"\n":
            raise TarError("a PAX record's length is wrong")
        if not equals or not key:
            raise TarError(f"a PAX record has no key: {key[:40]!r}")
        name = key.decode("utf-8", "surrogateescape")
        if name in ("GNU.sparse.offset", "GNU.sparse.numbytes"):
            if (name == "GNU.sparse.offset") != (len(numbers) % 2 == 0):
                raise TarError("a PAX sparse map is out of order")
            numbers.append(decimal(value, name))
        elif name in ("path", "linkpath") and b"\0" in value:
            raise TarError(f"a NUL in the PAX record {name}")
        elif value or name.startswith(XATTR):
            records[name] = value
        else:
            records.pop(name, None)
        position = end
    return records, numbers
