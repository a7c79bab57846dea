"""Every target with its seeds, and with what hypothesis makes of them.

The same inputs each time, for a finding must not stop the work at something else. Others, and more:
ZOS_CRI_FUZZ_EXAMPLES=100000, or atheris (see harness.py).
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.harness import Target, targets

ASKED_FOR = int(os.environ.get("ZOS_CRI_FUZZ_EXAMPLES") or 0)
FOUND = targets()


@st.composite
def changed(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A seed with a few pieces replaced, cut out or put in; or any bytes."""
    data = draw(st.sampled_from(seeds)) if seeds else b""
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 30)))
        data = data[:start] + draw(st.binary(max_size=20)) + data[end:]
    return data if draw(st.booleans()) else data[: draw(st.integers(0, len(data)))]


@pytest.mark.parametrize("target", FOUND.values(), ids=FOUND)
def test_target(target: Target) -> None:
    for seed in target.seeds:
        target.run(seed)

    @given(st.one_of(changed(target.seeds), st.binary(max_size=600)))
    @settings(
        max_examples=ASKED_FOR or 100,
        derandomize=not ASKED_FOR,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    def run(data: bytes) -> None:
        target.run(data)

    run()
