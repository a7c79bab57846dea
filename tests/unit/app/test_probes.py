from __future__ import annotations

import asyncio
import contextlib
import threading
import urllib.error
import urllib.request
from contextlib import AsyncExitStack

import pytest

from zos_cri.app import probes
from zos_cri.errors import InvalidArgument
from zos_cri.log import get_log
from zos_cri.metrics import Metrics

_log = get_log(__name__)


@pytest.fixture
async def port(monkeypatch):
    """Serves on a free port; gives the port and what readiness waits for."""
    recovered, told = asyncio.Event(), []
    monkeypatch.setattr(probes._log, "info", lambda _, **fields: told.append(fields["address"]))
    async with AsyncExitStack() as undo:
        probes.serve("127.0.0.1:0", Metrics(), recovered, undo)
        yield told[0], recovered


def get(address, path):
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def test_ready_is_after_the_recovery(port):
    address, recovered = port
    assert await asyncio.to_thread(get, address, "/healthz") == (200, "ok\n")
    assert await asyncio.to_thread(get, address, "/readyz") == (503, "recovering\n")
    recovered.set()
    assert await asyncio.to_thread(get, address, "/readyz") == (200, "ok\n")


@pytest.mark.parametrize("path", ["/metrics", "/", "/anything"])
async def test_all_else_are_metrics(port, path):
    status, text = await asyncio.to_thread(get, port[0], path)
    assert status == 200
    assert "zos_cri_build_info" in text


async def test_a_loop_that_hangs_is_told_of(port):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(get(port[0], "/healthz")))
    thread.start()
    thread.join(30)  # the event loop does nothing else meanwhile
    assert answers == [(503, "the event loop has not answered for 0.9 s\n")]


@pytest.mark.parametrize(
    "where", ["", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", "x.invalid:1"]
)
async def test_an_address_that_cannot_be(where):
    async with AsyncExitStack() as undo:
        with (
            pytest.raises(InvalidArgument, match=r"server\.metrics: "),
            contextlib.suppress(UnicodeError),
        ):
            probes.serve(where, Metrics(), asyncio.Event(), undo)
