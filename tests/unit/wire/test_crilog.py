"""The CRI log format, against a reference that goes byte by byte."""

import datetime
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zos_cri.wire import crilog

STAMP = b"2026-11-23T19:02:01.000000042Z"
F = STAMP + b" stdout F "
P = STAMP + b" stdout P "


def encode(data: bytes, max_line: int = 10, *, eof: bool = False) -> tuple[bytes, int]:
    return crilog.encode(data, stamp=STAMP, stream=b"stdout", max_line=max_line, eof=eof)


def reference(data: bytes, max_line: int, *, eof: bool) -> tuple[bytes, int]:
    out, line, taken = b"", b"", 0
    for i in range(len(data)):
        byte = data[i : i + 1]
        if byte == b"\n":
            out, line, taken = out + F + line + b"\n", b"", i + 1
            continue
        if len(line) == max_line:
            out, line, taken = out + P + line + b"\n", b"", i
        line += byte
    if eof and line:
        out, taken = out + P + line + b"\n", len(data)
    return out, taken


@pytest.mark.parametrize(
    ("data", "expected", "taken"),
    [
        (b"", b"", 0),
        (b"\n", F + b"\n", 1),
        (b"a\nb\n", F + b"a\n" + F + b"b\n", 4),
        (b"a\nb", F + b"a\n", 2),
        (b"\n\n\n", (F + b"\n") * 3, 3),
        (b"0123456789\n", F + b"0123456789\n", 11),
        (b"0123456789", b"", 0),
        (b"0123456789A", P + b"0123456789\n", 10),
        (b"0123456789A\n", P + b"0123456789\n" + F + b"A\n", 12),
        (b"0123456789" * 2 + b"\n", P + b"0123456789\n" + F + b"0123456789\n", 21),
        (b"x\n0123456789AB\ny\n", F + b"x\n" + P + b"0123456789\n" + F + b"AB\n" + F + b"y\n", 17),
        (b"a\r\n\xff\x00\n", F + b"a\r\n" + F + b"\xff\x00\n", 6),
    ],
)
def test_entries(data: bytes, expected: bytes, taken: int) -> None:
    assert encode(data) == (expected, taken)


def test_the_end_writes_an_unterminated_line_as_partial() -> None:
    assert encode(b"a\nbc", eof=True) == (F + b"a\n" + P + b"bc\n", 4)
    assert encode(b"a\n", eof=True) == (F + b"a\n", 2)
    assert encode(b"", eof=True) == (b"", 0)
    assert encode(b"0123456789A", eof=True) == (P + b"0123456789\n" + P + b"A\n", 11)


alphabet = st.lists(st.sampled_from([b"\n", b"a", b"b" * 7, b"\r", b"\xff"]), max_size=60)


@given(alphabet.map(b"".join), st.integers(1, 20), st.booleans())
def test_as_the_reference(data: bytes, max_line: int, eof: bool) -> None:
    assert encode(data, max_line, eof=eof) == reference(data, max_line, eof=eof)


@given(alphabet.map(b"".join), st.integers(1, 20), st.lists(st.integers(0, 12), max_size=30))
def test_how_the_data_are_cut_into_calls_makes_no_difference(
    data: bytes, max_line: int, cuts: list[int]
) -> None:
    out, held, rest = b"", b"", data
    for cut in [*cuts, len(data)]:
        held, rest = held + rest[:cut], rest[cut:]
        entries, taken = encode(held, max_line, eof=not rest)
        assert len(held) - taken <= max_line
        out, held = out + entries, held[taken:]
    out += encode(held, max_line, eof=True)[0]
    assert out == reference(data, max_line, eof=True)[0]


@given(alphabet.map(b"".join), st.integers(1, 20))
def test_the_bytes_come_back(data: bytes, max_line: int) -> None:
    out, taken = encode(data, max_line, eof=True)
    back = b""
    for line in out.split(b"\n")[:-1]:
        assert line.startswith((F, P))
        back += line[len(F) :] + (b"\n" if line.startswith(F) else b"")
    assert (back, taken) == (data, len(data))


@given(st.integers(0, 4_000_000_000 * 10**9))
def test_stamp(ns: int) -> None:
    stamp = crilog.Clock().stamp(ns).decode()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", stamp)
    whole = datetime.datetime.fromisoformat(stamp[:19] + "+00:00")
    assert int(whole.timestamp()) == ns // 10**9
    assert int(stamp[20:29]) == ns % 10**9


def test_the_clock_caches_by_the_second_and_may_go_back() -> None:
    clock = crilog.Clock()
    later = clock.stamp(1_700_000_001_000_000_007)
    assert later == b"2023-11-14T22:13:21.000000007Z"
    assert clock.stamp(1_700_000_001_999_999_999) == b"2023-11-14T22:13:21.999999999Z"
    assert clock.stamp(1_700_000_000_000_000_000) == b"2023-11-14T22:13:20.000000000Z"
