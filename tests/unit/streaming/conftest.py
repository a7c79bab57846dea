"""A streaming server over a scripted backend; nothing may be left of either."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

import pytest

from tests.fakes.streaming import FakeBackend
from zos_cri.streaming.server import StreamingServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
async def server(backend: FakeBackend) -> AsyncIterator[StreamingServer]:
    before = asyncio.all_tasks()
    server = StreamingServer(backend, creation_timeout=5.0, linger=2.0)
    await server.start()
    yield server
    await server.aclose()
    assert server.connections == 0
    assert backend.open == 0
    assert asyncio.all_tasks() - before - {asyncio.current_task()} == set()
    gc.collect()  # a socket that nobody closed warns now, in this test
