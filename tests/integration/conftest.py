"""Fixtures of tests that run a real server, or real shims without one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration import shim_harness
from tests.integration.server import RUNTIMES, Runtime, Server, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture(params=RUNTIMES, ids=lambda runtime: runtime.name)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    """Each shim and runtime that must work."""
    chosen: Runtime = request.param
    return chosen


@pytest.fixture
def server(runtime: Runtime) -> Iterator[Server]:
    """A server without CNI: pods are on the host's network."""
    with serving(runtime) as started:
        yield started


@pytest.fixture
def bridged(runtime: Runtime, own_network: None) -> Iterator[Server]:
    """A server whose pods are on a bridge."""
    with serving(runtime, cni=True) as started:
        yield started


@pytest.fixture(params=shim_harness.RUNTIMES)
async def harness(request: pytest.FixtureRequest) -> AsyncIterator[shim_harness.Harness]:
    """Shims without a server: Debian's and the current one."""
    harness = shim_harness.Harness(request.param)
    await harness.start()
    yield harness
    await harness.close()
