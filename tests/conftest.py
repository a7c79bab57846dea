"""What all tests share."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / ".cache" / "tools" / "bin"


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """The root logger is left as it was: a command that sets up its logs would silence the rest."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def own_network() -> None:
    """The test may make bridges and rules: we are in a network namespace of the run's own."""
    if os.environ.get("ZOS_CRI_OWN_NETWORK") != "1":
        pytest.fail("makes bridges: run it by hack/test, or by `hack/netns run pytest …`")
