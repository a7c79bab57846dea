"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / ".cache" / "tools" / "bin"


@pytest.fixture(scope="session")
def own_network() -> None:
    """The test may make bridges and rules: we are in a network namespace of the run's own."""
    if os.environ.get("ZOS_CRI_OWN_NETWORK") != "1":
        pytest.fail("makes bridges: run it by hack/test, or by `hack/netns run pytest …`")
