from __future__ import annotations

import asyncio
import io
import json
import logging
import re

import pytest

from zos_cri import log

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.fixture
def stream():
    return io.StringIO()


def test_text_is_one_line_with_its_fields(stream):
    log.setup(stream=stream)
    log.get_log("zos_cri.x").info("shim started", group="a1", pid=12, what="two words", none="")
    assert re.fullmatch(
        TIME + r' INFO zos_cri\.x shim started group=a1 pid=12 what="two words" none=""\n',
        stream.getvalue(),
    )


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "\x1b[31mred", "\u2028x", 'q"', "k=v", "a\tb"])
def test_no_value_can_break_a_line_or_forge_a_field(stream, value):
    log.setup(stream=stream)
    log.get_log("x").info("event", name=value)
    line = stream.getvalue()
    assert line.isascii()
    assert line.rstrip("\n").isprintable()
    assert json.loads(line.partition("name=")[2]) == value


def test_json_is_one_object_a_line(stream):
    log.setup(fmt="json", stream=stream)
    log.get_log("x").warning("event", path=object, n=1, text="a\nb")
    entry = json.loads(stream.getvalue())
    assert re.fullmatch(TIME, entry.pop("ts"))
    assert entry == {
        "level": "warning",
        "logger": "x",
        "msg": "event",
        "path": "<class 'object'>",
        "n": 1,
        "text": "a\nb",
    }
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize("fmt", log.FORMATS)
def test_an_exception_is_one_line_with_its_traceback(stream, fmt):
    log.setup(fmt=fmt, stream=stream)
    try:
        raise ValueError("oops")
    except ValueError:
        log.get_log("x").exception("failed")
    assert stream.getvalue().count("\n") == 1
    assert "ValueError: oops" in stream.getvalue()
    assert "test_log.py" in stream.getvalue()


def test_levels(stream):
    logger = log.get_log("x")
    for level in log.LEVELS:
        stream.truncate(0)
        log.setup(level=level, stream=stream)
        for each in log.LEVELS:
            getattr(logger, each)(each)
        shown = [line.split()[1].lower() for line in stream.getvalue().strip("\0").splitlines()]
        assert shown == list(log.LEVELS[log.LEVELS.index(level) :])


async def test_bound_fields_are_in_every_line_of_their_context(stream):
    log.setup(stream=stream)
    logger = log.get_log("x")

    async def inner():
        with log.bind(container="c"):
            await asyncio.sleep(0)
            logger.info("inner")

    with log.bind(pod="p"):
        task = asyncio.create_task(inner())
        await asyncio.sleep(0)
        logger.info("outer", pod="other")
        await task
    logger.info("after")
    lines = [line.partition(" x ")[2] for line in stream.getvalue().splitlines()]
    assert lines == ["outer pod=other", "inner pod=p container=c", "after"]


def test_lines_of_libraries_are_formatted_alike(stream):
    log.setup(stream=stream)
    logging.getLogger("grpc").warning("a %s\nline", "second")
    assert stream.getvalue().endswith(" WARNING grpc a second\\nline\n")
