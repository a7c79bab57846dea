"""Archives for tests, written field by field so that they can also be wrong."""

from __future__ import annotations

BLOCK = 512


def octal(value: int, width: int) -> bytes:
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    number = value.to_bytes(width, "big", signed=True)
    return (bytes([0x80 | number[0]]) if value >= 0 else b"\xff") + number[1:]


def header(
    name: bytes,
    *,
    kind: bytes = b"0",
    size: int = 0,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 0,
    link: bytes = b"",
    major: int = 0,
    minor: int = 0,
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    tail: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """One header block. `tail` overwrites what stands from offset 345 on."""
    block = bytearray(BLOCK)
    block[0 : len(name[:100])] = name[:100]
    block[100:108] = octal(mode, 8)
    block[108:116] = octal(uid, 8)
    block[116:124] = octal(gid, 8)
    block[124:136] = octal(size, 12)
    block[136:148] = octal(mtime, 12)
    block[156:157] = kind
    block[157 : 157 + len(link[:100])] = link[:100]
    block[257:265] = magic
    block[329:337] = octal(major, 8)
    block[337:345] = octal(minor, 8)
    block[345 : 345 + len(prefix)] = prefix
    block[345 : 345 + len(tail)] = tail
    block[148:156] = b" " * 8
    block[148:156] = checksum if checksum is not None else b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def file(name: bytes, data: bytes = b"", **fields: object) -> bytes:
    return header(name, size=len(data), **fields) + padded(data)  # type: ignore[arg-type]


def directory(name: bytes, **fields: object) -> bytes:
    return header(name, kind=b"5", **{"mode": 0o755, **fields})  # type: ignore[arg-type]


def symlink(name: bytes, target: bytes, **fields: object) -> bytes:
    return header(name, kind=b"2", link=target, **fields)  # type: ignore[arg-type]


def hardlink(name: bytes, target: bytes, **fields: object) -> bytes:
    return header(name, kind=b"1", link=target, **fields)  # type: ignore[arg-type]


def record(key: str | bytes, value: bytes) -> bytes:
    """One PAX record, its length counting itself."""
    encoded = key.encode() if isinstance(key, str) else key
    rest = b" " + encoded + b"=" + value + b"\n"
    length = len(rest)
    while length != len(str(length)) + len(rest):
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


def pax(*records: tuple[str, bytes], kind: bytes = b"x") -> bytes:
    content = b"".join(record(key, value) for key, value in records)
    return header(b"pax", kind=kind, size=len(content)) + padded(content)


def longname(name: bytes, kind: bytes = b"L") -> bytes:
    return header(b"././@LongLink", kind=kind, size=len(name) + 1) + padded(name + b"\0")


def end() -> bytes:
    return bytes(2 * BLOCK)
