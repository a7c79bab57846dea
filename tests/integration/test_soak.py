"""A short soak; `hack/soak` makes a long one of the same."""

from __future__ import annotations

import os

import pytest

from tests.integration.soak import soak

SECONDS = float(os.environ.get("ZOS_CRI_SOAK_SECONDS", "30"))

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.timeout(SECONDS + 500)]


def test_soak(own_network: None) -> None:
    seed = int(os.environ.get("ZOS_CRI_SEED", "0")) or int.from_bytes(os.urandom(2))
    print(f"ZOS_CRI_SEED={seed}")
    figures = soak(seconds=SECONDS, clients=6, kill_every=6, seed=seed)
    print("\n".join(figures.report()))
