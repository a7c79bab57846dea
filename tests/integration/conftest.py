"""Fixtures of tests that run a real server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.server import RUNTIMES, Runtime, Server, serving

if TYPE_CHECKING:
    from collections.abc import Iterator


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
