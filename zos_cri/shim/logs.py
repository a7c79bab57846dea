"""A shim's own log: a FIFO in its bundle that we hold open and drain into ours.

It is opened for reading and writing: so opening never blocks, the shim's opening doesn't either,
and the end of one shim isn't the end of the file. While we are away the shim's writes fail and
its log is lost; its work goes on.
"""

from __future__ import annotations

import asyncio
import os
import re
from typing import TYPE_CHECKING, Final

from zos_cri.log import get_log

if TYPE_CHECKING:
    from pathlib import Path

_log = get_log(__name__)

# Longer lines are cut: a stack dump of a shim is many lines, none of them long.
MAX_LINE: Final = 8192
_CHUNK: Final = 65536  # what a pipe holds
# logrus' text format: time="…" level=info msg="…" further=fields
_FIELDS: Final = re.compile(r'(?<!\S)(time|level|msg)=("(?:[^"\\]|\\.)*"|\S*) ?')
_LEVELS: Final = {
    "panic": "error",
    "fatal": "error",
    "error": "error",
    "warning": "warning",
    "info": "debug",  # a shim's info is about plugins being loaded
    "debug": "debug",
    "trace": "debug",
}


class LogPump:
    """Drains one shim's FIFO. Needs a running loop; `close` it."""

    def __init__(self, path: Path, *, group: str) -> None:
        self._group = group
        self._lines = LineSplitter(MAX_LINE)
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._read)

    def close(self) -> None:
        """Reads what is there and lets go."""
        if self._fd < 0:
            return
        self._read()
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return
        for line in self._lines.feed(data):
            level, message, rest = parse_line(line)
            fields = {"group": self._group, "said": message}
            if rest:
                fields["fields"] = rest
            getattr(_log, level)("shim", **fields)


class LineSplitter:
    """Bytes to lines of bounded length; what is beyond the bound is dropped up to its end."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._line = bytearray()

    def feed(self, data: bytes) -> list[str]:
        lines = []
        *whole, rest = data.split(b"\n")
        for part in whole:
            self._append(part)
            if self._line:
                lines.append(self._line.decode(errors="replace"))
            self._line.clear()
        self._append(rest)
        return lines

    def _append(self, part: bytes) -> None:
        self._line += part[: self._limit - len(self._line)]


def parse_line(line: str) -> tuple[str, str, str]:
    """A line's level (of `zos_cri.log`), its message, and whatever else it says.

    What isn't logrus' format is a Go runtime's or library's last words: a warning.
    """
    found = {match[1]: _unquote(match[2]) for match in _FIELDS.finditer(line)}
    if "level" not in found or "msg" not in found:
        return "warning", line, ""
    level = _LEVELS.get(found["level"], "warning")
    return level, found["msg"], _FIELDS.sub("", line).strip()


def _unquote(value: str) -> str:
    if value.startswith('"') and value.endswith('"') and len(value) > 1:
        return re.sub(r"\\(.)", lambda match: {"n": "\n"}.get(match[1], match[1]), value[1:-1])
    return value
