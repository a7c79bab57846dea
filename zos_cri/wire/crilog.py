"""The CRI log format: a container's output in, the bytes of its log file out.

    <RFC 3339 time with nanoseconds> <stdout|stderr> <F|P> <bytes>\\n

`F` ends a line; `P` marks a piece of a line that goes on in the stream's next entry, or one that
the stream's end left unterminated. The format is the kubelet's (kubernetes
`pkg/kubelet/kuberuntime/logs`); what is done with lines over the limit and with the last one is as
containerd does it, but for carriage returns: bytes are kept as they are.

Nothing is remembered from one call to the next: what a call does not take is shown to the next one
again, with what came after it. That is what lets a logger leave those bytes in the pipe.
"""

from __future__ import annotations

import datetime
from typing import Final

NEWLINE: Final = b"\n"
DEFAULT_MAX_LINE: Final = 16 * 1024  # containerd's max_container_log_line_size
MIN_LINE: Final = 64  # a shorter limit would make a log of prefixes; 0 and less is no limit


class Clock:
    """Writes times as RFC 3339 with nine digits, in UTC; the part up to the second is cached."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def stamp(self, ns: int) -> bytes:
        """`2026-11-23T19:02:01.000000042Z` for nanoseconds since the epoch."""
        second, rest = divmod(ns, 1_000_000_000)
        if second != self._second:
            moment = datetime.datetime.fromtimestamp(second, datetime.UTC)
            self._text = moment.strftime("%Y-%m-%dT%H:%M:%S")
            self._second = second
        return f"{self._text}.{rest:09d}Z".encode()


def encode(
    data: bytes, *, stamp: bytes, stream: bytes, max_line: int, eof: bool = False
) -> tuple[bytes, int]:
    """Turns output into whole log entries.

    Args:
        data: the stream's bytes from where the last call stopped.
        stamp: the time, as written by `Clock`, that all entries get.
        stream: `stdout` or `stderr`.
        max_line: bytes of one entry, without its newline, that a longer line is cut into; at
            least 1.
        eof: nothing comes after `data`, so an unterminated line is written too, as `P`.

    Returns:
        The entries, and how many bytes of `data` they hold. The rest (an unterminated line of at
        most `max_line` bytes) belongs at the front of the next call's `data`.
    """
    full = b"%b %b F " % (stamp, stream)
    partial = b"%b %b P " % (stamp, stream)
    entries: list[bytes] = []
    start = 0  # not encoded from here on
    at = 0  # up to here no line is too long
    end = len(data)
    while True:
        # The last newline that a line beginning at `at` may reach ends some line that fits, and
        # so do all those before it: one search passes over all of them.
        while end - at > max_line:
            newline = data.rfind(NEWLINE, at, at + max_line + 1)
            if newline < 0:
                break
            at = newline + 1
        if end - at <= max_line:
            at = data.rfind(NEWLINE, at) + 1 or at
            break
        _whole_lines(entries, data, start, at, full)
        start = at + max_line
        entries += (partial, data[at:start], NEWLINE)
        at = start
    _whole_lines(entries, data, start, at, full)
    if eof and at < end:
        entries += (partial, data[at:], NEWLINE)
        at = end
    return b"".join(entries), at


def _whole_lines(entries: list[bytes], data: bytes, start: int, end: int, prefix: bytes) -> None:
    """The lines `data[start:end]`, the last of which ends at `end`."""
    if start < end:
        body = data[start : end - 1].replace(NEWLINE, NEWLINE + prefix)
        entries += (prefix, body, NEWLINE)
