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
    if os.stat("/proc/self/ns/net").st_ino == os.stat("/proc/1/ns/net").st_ino:
        pytest.fail("makes bridges: run it by hack/test, or by `hack/netns run pytest …`")
