"""The shims' temporary directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from zos_cri.linux.mount import Mount, mount, mounts_below
from zos_cri.shim.launch import temporary

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.root
def test_what_a_dead_shim_left_mounted_goes_and_its_source_stays(tmp_path: Path) -> None:
    path = temporary(tmp_path)
    assert path.stat().st_mode & 0o7777 == 0o700
    (tmp_path / "layers" / "1").mkdir(parents=True)
    (path / "ovl-idmapped1").mkdir()
    (path / "ovl-idmapped2").mkdir()
    source = str(tmp_path / "layers")
    mount(Mount(type="bind", source=source, options=("bind",)), str(path / "ovl-idmapped1"))
    (path / "kept").write_text("a file isn't ours to judge")
    assert temporary(tmp_path) == path
    assert os.listdir(path) == ["kept"]
    assert os.listdir(source) == ["1"]
    assert mounts_below(str(tmp_path)) == []
