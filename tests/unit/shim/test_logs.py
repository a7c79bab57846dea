"""Shims' log lines."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.shim import until
from zos_cri.shim.logs import LineSplitter, LogPump, parse_line

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("line", "parsed"),
    [
        (
            'time="2026-11-23T19:14:27Z" level=info msg="starting signal loop" pid=11403 a=b',
            ("debug", "starting signal loop", "pid=11403 a=b"),
        ),
        ('time="x" level=warning msg=short', ("warning", "short", "")),
        (r'level=error msg="said \"no\"\nand left"', ("error", 'said "no"\nand left', "")),
        ("level=fatal msg=bye", ("error", "bye", "")),
        ("level=new msg=x", ("warning", "x", "")),
        ("panic: runtime error", ("warning", "panic: runtime error", "")),
        ('level=info without "msg', ("warning", 'level=info without "msg', "")),
    ],
)
def test_lines(line: str, parsed: tuple[str, str, str]) -> None:
    assert parse_line(line) == parsed


def test_long_lines_are_cut() -> None:
    lines = LineSplitter(4)
    assert lines.feed(b"abcdef") == []
    assert lines.feed(b"gh\nxy\n\n") == ["abcd", "xy"]


@given(st.lists(st.binary(max_size=30), max_size=10))
def test_how_bytes_are_cut_makes_no_difference(chunks: list[bytes]) -> None:
    pieces, whole = LineSplitter(10), LineSplitter(10)
    assert [line for chunk in chunks for line in pieces.feed(chunk)] == whole.feed(b"".join(chunks))


async def test_the_fifo_is_drained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    path = tmp_path / "log"
    os.mkfifo(path)
    pump = LogPump(path, group="g")
    for _ in range(2):  # one shim's end isn't the end of the file
        with path.open("w") as shim:
            shim.write("level=warning msg=first x=y\nlevel=info msg=second\n")
    await until(lambda: len(caplog.records) == 4)
    with path.open("w") as shim:
        shim.write("last words\n")
    pump.close()
    pump.close()
    fields = [getattr(record, "fields", None) for record in caplog.records]
    assert fields[0] == {"group": "g", "said": "first", "fields": "x=y"}
    assert fields[-1] == {"group": "g", "said": "last words"}
    assert [record.levelname for record in caplog.records[:2]] == ["WARNING", "DEBUG"]


def test_a_log_that_is_no_fifo(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LogPump(tmp_path / "absent", group="g")
