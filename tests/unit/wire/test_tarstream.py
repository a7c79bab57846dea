from __future__ import annotations

import contextlib
import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import tars
from zos_cri.wire.tarheader import MAX_META, Entry, Kind, Segment, TarError
from zos_cri.wire.tarstream import Data, TarReader

Read = list[tuple[Entry, dict[int, bytes]]]


def read(archive: bytes, piece: int = 1 << 20) -> Read:
    """Entries and their data by offset, pieces joined."""
    reader = TarReader()
    entries: Read = []
    for start in range(0, len(archive), piece):
        for event in reader.feed(archive[start : start + piece]):
            if isinstance(event, Data):
                entry, data = entries[-1]
                assert entry.kind is Kind.FILE
                before = next((at for at, d in data.items() if at + len(d) == event.offset), None)
                if before is None:
                    data[event.offset] = bytes(event.data)
                else:
                    data[before] += bytes(event.data)
            else:
                entries.append((event, {}))
    reader.close()
    return entries


def one(archive: bytes) -> Entry:
    ((entry, _),) = read(archive + tars.end())
    return entry


def test_all_kinds() -> None:
    archive = b"".join(
        [
            tars.directory(b"d/", mode=0o1777),
            tars.file(b"d/f", b"hello", mode=0o4755, uid=1000, gid=50, mtime=1700000000),
            tars.symlink(b"s", b"../x"),
            tars.hardlink(b"h", b"d/f"),
            tars.header(b"c", kind=b"3", major=1, minor=3),
            tars.header(b"b", kind=b"4", major=8, minor=1),
            tars.header(b"p", kind=b"6"),
            tars.file(b"contiguous", b"x", kind=b"7"),
            tars.end(),
        ]
    )
    entries = read(archive)
    assert [entry.kind for entry, _ in entries] == [
        Kind.DIRECTORY,
        Kind.FILE,
        Kind.SYMLINK,
        Kind.HARDLINK,
        Kind.CHAR,
        Kind.BLOCK,
        Kind.FIFO,
        Kind.FILE,
    ]
    entry, data = entries[1]
    assert (entry.path, entry.mode, entry.uid, entry.gid) == (b"d/f", 0o4755, 1000, 50)
    assert entry.mtime == 1700000000 * 10**9
    assert data == {0: b"hello"}
    assert entries[2][0].link == b"../x"
    assert (entries[4][0].major, entries[4][0].minor) == (1, 3)


@pytest.mark.parametrize("piece", [1, 7, 511, 512, 513, 5000])
def test_pieces_of_any_size(piece: int) -> None:
    archive = (
        tars.pax(("path", b"p" * 200))
        + tars.file(b"short", b"x" * 1500)
        + tars.longname(b"l" * 300)
        + tars.file(b"short2", b"y" * 512)
        + tars.end()
    )
    entries = read(archive, piece)
    assert [(e.path, d) for e, d in entries] == [
        (b"p" * 200, {0: b"x" * 1500}),
        (b"l" * 300, {0: b"y" * 512}),
    ]


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_tarfile_writes(fmt: int) -> None:
    name = "d" * 90 + "/" + "f" * 60 if fmt == tarfile.USTAR_FORMAT else "d/" * 150 + "f"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=fmt) as tar:
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.uid = 5, 1234567890, 70000
        tar.addfile(info, io.BytesIO(b"12345"))
    ((entry, data),) = read(buffer.getvalue())
    assert entry.path.decode() == name
    assert (entry.uid, entry.mtime, data) == (70000, 1234567890 * 10**9, {0: b"12345"})


def test_pax_overrides() -> None:
    entry = one(
        tars.pax(
            ("path", "ä/ö".encode()),
            ("uid", b"4000000000"),
            ("gid", b"3000000"),
            ("mtime", b"-1.5"),
            ("SCHILY.xattr.user.a=b", b""),
            ("SCHILY.xattr.security.capability", b"\0\1\n\2"),
            ("comment", b"anything"),
        )
        + tars.file(b"x")
    )
    assert entry.path == "ä/ö".encode()
    assert (entry.uid, entry.gid, entry.mtime) == (4000000000, 3000000, -1_500_000_000)
    assert entry.xattrs["security.capability"] == b"\0\1\n\2"


def test_pax_size_counts() -> None:
    big = tars.pax(("size", b"600")) + tars.header(b"f") + tars.padded(b"z" * 600)
    ((_, data),) = read(big + tars.end())
    assert data == {0: b"z" * 600}


def test_pax_mtime_is_exact() -> None:
    entry = one(tars.pax(("mtime", b"1234567890.123456789999")) + tars.file(b"x"))
    assert entry.mtime == 1234567890_123456789


def test_an_empty_pax_value_takes_back() -> None:
    assert one(tars.pax(("path", b"a"), ("path", b"")) + tars.file(b"x")).path == b"x"


def test_a_global_header_is_read_over() -> None:
    assert one(tars.pax(("path", b"a"), kind=b"g") + tars.file(b"x")).path == b"x"


def test_a_gnu_name_goes_before_a_pax_path() -> None:
    entry = one(tars.pax(("path", b"pax")) + tars.longname(b"gnu") + tars.file(b"x"))
    assert entry.path == b"gnu"
    assert one(tars.longname(b"target", b"K") + tars.symlink(b"x", b"short")).link == b"target"


def test_prefix_and_star_and_v7() -> None:
    assert one(tars.file(b"f", prefix=b"a/b")).path == b"a/b/f"
    star = tars.header(b"f", tail=b"a".ljust(131, b"\0") + bytes(32) + b"tar\0")
    assert one(star).path == b"a/f"
    assert one(tars.header(b"f", magic=bytes(8), prefix=b"no")).path == b"f"
    assert one(tars.header(b"d/", kind=b"\0", magic=bytes(8))).kind is Kind.DIRECTORY
    assert one(tars.header(b"f", magic=b"ustar  \0", prefix=b"gnu")).path == b"f"


def test_header_only_types_have_no_data() -> None:
    archive = tars.header(b"d", kind=b"5", size=9999) + tars.file(b"f", b"x") + tars.end()
    assert [entry.path for entry, _ in read(archive)] == [b"d", b"f"]


def test_base_256_numbers() -> None:
    entry = one(tars.header(b"f", uid=3_000_000, mtime=-1))
    assert (entry.uid, entry.mtime) == (3_000_000, -(10**9))


def gnu_sparse(segments: list[tuple[int, int]], real: int) -> bytes:
    fields = b"".join(tars.octal(a, 12) + tars.octal(n, 12) for a, n in segments[:4])
    extended = segments[4:]
    tail = bytes(41) + fields.ljust(96, b"\0") + bytes([bool(extended)]) + tars.octal(real, 12)
    size = sum(length for _, length in segments)
    blocks = tars.header(b"sparse", kind=b"S", size=size, magic=b"ustar  \0", tail=tail)
    while extended:
        part, extended = extended[:21], extended[21:]
        fields = b"".join(tars.octal(a, 12) + tars.octal(n, 12) for a, n in part)
        blocks += fields.ljust(504, b"\0") + bytes([bool(extended)]) + bytes(7)
    return (
        blocks + tars.padded(bytes(range(1, 256)) * (size // 255 + 1))[:size] + bytes(-size % 512)
    )


def test_old_gnu_sparse() -> None:
    ((entry, data),) = read(gnu_sparse([(0, 3), (1000, 5)], 2000) + tars.end())
    assert entry.size == 2000
    assert entry.sparse == (Segment(0, 3), Segment(1000, 5))
    assert data == {0: b"\1\2\3", 1000: b"\4\5\6\7\10"}


def test_old_gnu_sparse_with_further_blocks() -> None:
    segments = [(n * 1000, 10) for n in range(60)]
    ((entry, data),) = read(gnu_sparse(segments, 10**6) + tars.end(), piece=100)
    assert entry.sparse is not None
    assert len(entry.sparse) == 60
    assert sorted(data) == [a for a, _ in segments]


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_pax_sparse(version: str) -> None:
    data = b"abcdefgh"
    if version == "0.0":
        records = [("GNU.sparse.size", b"5000"), ("GNU.sparse.numblocks", b"2")]
        for offset, length in ((100, 3), (4000, 5)):
            records += [("GNU.sparse.offset", b"%d" % offset)]
            records += [("GNU.sparse.numbytes", b"%d" % length)]
        records += [("GNU.sparse.name", b"real")]
    elif version == "0.1":
        records = [
            ("GNU.sparse.size", b"5000"),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.map", b"100,3,4000,5"),
            ("GNU.sparse.name", b"real"),
        ]
    else:
        records = [
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"5000"),
            ("GNU.sparse.name", b"real"),
        ]
        data = tars.padded(b"2\n100\n3\n4000\n5\n") + data
    ((entry, found),) = read(tars.pax(*records) + tars.file(b"x", data) + tars.end())
    assert (entry.path, entry.size) == (b"real", 5000)
    assert found == {100: b"abc", 4000: b"defgh"}


PAX_1_0 = (("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"9"))

BROKEN = {
    "noise": b"\x01" * 512,
    "checksum": tars.header(b"x", checksum=b"0000000\0"),
    "checksum is no number": tars.header(b"x", checksum=b"zzzzzz\0 "),
    "no name": tars.header(b""),
    "underscores in a number": tars.header(b"x").replace(b"0000644", b"0000_44"),
    "negative size": tars.header(b"x", size=-1),
    "size beyond 63 bits": tars.header(b"x", size=1 << 80),
    "uid -1": tars.pax(("uid", b"4294967295")) + tars.header(b"x"),
    "negative uid": tars.header(b"x", uid=-5),
    "unknown type": tars.header(b"x", kind=b"M"),
    "device number": tars.header(b"x", kind=b"3", major=1 << 13),
    "huge PAX header": tars.header(b"x", kind=b"x", size=MAX_META + 1),
    "huge long name": tars.header(b"x", kind=b"L", size=1 << 40),
    "negative PAX size": tars.header(b"x", kind=b"x", size=-1),
    "PAX record without a length": tars.header(b"x", kind=b"x", size=4) + tars.padded(b"a=b\n"),
    "PAX record too long": tars.header(b"x", kind=b"x", size=7) + tars.padded(b"99 a=b\n"),
    "PAX record too short": tars.header(b"x", kind=b"x", size=6) + tars.padded(b"3 a=b\n"),
    "PAX record of length 0": tars.header(b"x", kind=b"x", size=6) + tars.padded(b"0 a=b\n"),
    "PAX record without a key": tars.header(b"x", kind=b"x", size=5) + tars.padded(b"5 =b\n"),
    "PAX record without =": tars.header(b"x", kind=b"x", size=5) + tars.padded(b"5 ab\n"),
    "PAX number": tars.pax(("size", b"0x10")) + tars.header(b"x"),
    "PAX negative size": tars.pax(("size", b"-1")) + tars.header(b"x"),
    "PAX time": tars.pax(("mtime", b"1e99")) + tars.header(b"x"),
    "PAX time that isn't": tars.pax(("mtime", b"NaN")) + tars.header(b"x"),
    "NUL in a PAX path": tars.pax(("path", b"a\0b")) + tars.header(b"x"),
    "one zero block, then more": bytes(512) + tars.file(b"x"),
    "sparse beyond its end": gnu_sparse([(0, 10)], 5),
    "sparse map out of order": tars.pax(
        ("GNU.sparse.size", b"50"), ("GNU.sparse.numblocks", b"2"), ("GNU.sparse.map", b"9,1,0,1")
    )
    + tars.file(b"x", b"ab"),
    "sparse map that doesn't fit": tars.pax(
        ("GNU.sparse.size", b"50"), ("GNU.sparse.numblocks", b"1"), ("GNU.sparse.map", b"0,9")
    )
    + tars.file(b"x", b"ab"),
    "odd sparse map": tars.pax(
        ("GNU.sparse.size", b"50"), ("GNU.sparse.numblocks", b"1"), ("GNU.sparse.map", b"0,1,2")
    )
    + tars.file(b"x", b"a"),
    "sparse numbers out of order": tars.pax(("GNU.sparse.numbytes", b"1")) + tars.header(b"x"),
    "sparse 1.0 without a map": tars.pax(*PAX_1_0) + tars.file(b"x", b""),
    "sparse 1.0 map that is no number": tars.pax(*PAX_1_0) + tars.file(b"x", b"zz\n" * 200),
    "sparse 1.0 map without an end": tars.pax(*PAX_1_0) + tars.file(b"x", b"1" * 600),
    "sparse 1.0 of too many pieces": tars.pax(*PAX_1_0) + tars.file(b"x", b"99999999\n" * 100),
    "overlapping pieces": gnu_sparse([(0, 10), (5, 10)], 100),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name: str) -> None:
    with pytest.raises(TarError):
        read(BROKEN[name] + tars.end())


WHOLE = (
    tars.directory(b"d")
    + tars.pax(("path", b"long" * 40))
    + tars.file(b"f", b"data" * 200)
    + tars.longname(b"n" * 120)
    + tars.file(b"g", b"x")
)


@pytest.mark.parametrize("cut", range(1, len(WHOLE), 97))
def test_cut_off(cut: int) -> None:
    """An archive may lack its end mark, so what ends between two entries is whole."""
    borders = {512, 512 + 1024 + 512 + 1024}
    if cut in borders:
        read(WHOLE[:cut])
    else:
        with pytest.raises(TarError, match="too early"):
            read(WHOLE[:cut])


def test_ends() -> None:
    assert read(b"") == []
    assert read(bytes(512)) == []
    assert read(bytes(1024) + b"what follows the end isn't looked at") == []
    assert len(read(WHOLE)) == 3


@given(st.binary(max_size=3000))
@settings(max_examples=200)
def test_any_bytes_end_in_an_answer(data: bytes) -> None:
    with contextlib.suppress(TarError):
        read(data, piece=300)


@given(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=20))
@settings(max_examples=300)
def test_a_damaged_archive_ends_in_an_answer(where: int, junk: bytes) -> None:
    damaged = WHOLE[:where] + junk + WHOLE[where + len(junk) :]
    try:
        entries = read(damaged)
    except TarError:
        return
    for entry, data in entries:
        assert sum(map(len, data.values())) <= entry.size <= len(WHOLE)


@given(st.data())
@settings(max_examples=100)
def test_how_the_bytes_are_cut_changes_nothing(data: st.DataObject) -> None:
    archive = WHOLE + gnu_sparse([(0, 3), (600, 700)], 2000) + tars.end()
    assert read(archive, data.draw(st.integers(1, 2000))) == read(archive)
