"""Pods over fake shims and a fake network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fakes.pods import PodBench

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[PodBench]:
    bench = PodBench(tmp_path)
    yield bench
    await bench.aclose()
