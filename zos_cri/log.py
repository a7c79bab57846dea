"""Our own log: structured, one line an event, with the RPC, pod and container in it.

A module says `_log = get_log(__name__)` and `_log.info("shim started", group=group, pid=pid)`: the
message is a constant that can be searched for, what varies stands in fields. Fields bound with
`bind(pod=…)` are added to every line written in that context (a contextvar: tasks inherit it).
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_bound: ContextVar[Mapping[str, object]] = ContextVar("log_fields", default=MappingProxyType({}))
LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")


class Log:
    """A named logger whose calls take an event and its fields."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: object) -> None:
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        self._write(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: object) -> None:
        """An error that nobody expected, with its traceback; call it in an `except` block."""
        self._write(logging.ERROR, event, fields, exc_info=True)

    def _write(
        self, level: int, event: str, fields: Mapping[str, object], *, exc_info: bool = False
    ) -> None:
        if self._logger.isEnabledFor(level):
            merged = {**_bound.get(), **fields}
            self._logger.log(level, event, exc_info=exc_info, extra={"fields": merged})


def get_log(name: str) -> Log:
    """The log of a module, by its `__name__`."""
    return Log(name)


@contextmanager
def bind(**fields: object) -> Iterator[None]:
    """Adds fields to every line written inside, in this task and those it starts."""
    token = _bound.set({**_bound.get(), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


def join(fields: Mapping[str, object]) -> None:
    """Adds fields to every line that this task writes from now on, and those that it starts."""
    _bound.set({**_bound.get(), **fields})


def setup(*, level: str = "info", fmt: str = "text", stream: TextIO | None = None) -> None:
    """Sends all logs of the process to `stream` (standard error by default).

    Args:
        level: one of `LEVELS`.
        fmt: one of `FORMATS`: `text` for people, `json` for machines.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonFormatter() if fmt == "json" else _TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # A line's fields say where it is from: no look at the stack, nor at threads and processes.
    logging._srcfile = None  # as its HOWTO says
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root.setLevel(level.upper())


def _timestamp(created: float) -> str:
    moment = datetime.datetime.fromtimestamp(created, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    fields: Mapping[str, object] = getattr(record, "fields", {})
    return fields


class _TextFormatter(logging.Formatter):
    """`2026-01-02T03:04:05.678Z INFO zos_cri.shim.launch shim started pid=12 group=a1b2`."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [_timestamp(record.created), record.levelname, record.name, record.getMessage()]
        parts += [f"{key}={_text(value)}" for key, value in _fields(record).items()]
        if record.exc_info:
            parts.append("traceback=" + json.dumps(self.formatException(record.exc_info)))
        return " ".join(part.replace("\n", "\\n") for part in parts)


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: ts, level, logger, msg, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "ts": _timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _text(value: object) -> str:
    text = str(value)
    plain = text and text.isprintable() and not any(c in text for c in ' "=')
    return text if plain else json.dumps(text)
