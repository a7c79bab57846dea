"""Containers over fake shims."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fakes.containers import Bench

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.aclose()
