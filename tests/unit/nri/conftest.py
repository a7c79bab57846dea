from __future__ import annotations

import pytest

from tests.fakes.nri_plugin import Bench


@pytest.fixture
async def bench():
    bench = Bench()
    yield bench
    await bench.aclose()
