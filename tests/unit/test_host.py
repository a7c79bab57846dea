"""What a spec is told about this host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from zos_cri.host import host_facts
from zos_cri.linux.cgroup import Cgroups

if TYPE_CHECKING:
    from pathlib import Path


def controllers(directory: Path, names: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cgroup.controllers").write_text(f"{names}\n")


@pytest.mark.parametrize("mounted", [False, True])
async def test_hugetlb_in_hybrid_mode(tmp_path: Path, *, mounted: bool) -> None:
    """runc looks for controllers in version 1's trees: there or nowhere."""
    controllers(tmp_path / "unified", "hugetlb")
    for name in ("memory", *(["hugetlb"] if mounted else [])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.procs").touch()
    assert (await host_facts(Cgroups(str(tmp_path)))).hugetlb is mounted


@pytest.mark.parametrize("names", ["cpu memory", "cpu hugetlb"])
async def test_hugetlb_in_version_2(tmp_path: Path, names: str) -> None:
    controllers(tmp_path, names)
    assert (await host_facts(Cgroups(str(tmp_path)))).hugetlb is ("hugetlb" in names)
