"""What the tests of this package share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.network.over_fakes import Net

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def net(tmp_path: Path) -> Net:
    return Net(tmp_path)
