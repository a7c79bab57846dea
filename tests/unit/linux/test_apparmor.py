"""AppArmor's profiles, with a kernel's list and a parser that are files of the test's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from zos_cri.linux import apparmor

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def parser(directory: Path, script: str) -> str:
    """An apparmor_parser; the path to find it by."""
    program = directory / "apparmor_parser"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return f"{directory}:/usr/bin:/bin"


def test_loaded(tmp_path: Path) -> None:
    listing = tmp_path / "profiles"
    listing.write_text("/usr/bin/man (enforce)\nwith (a) space (complain)\nzos (kill)\n")
    assert apparmor.loaded(listing) == {"/usr/bin/man", "with (a) space", "zos"}
    assert apparmor.loaded(tmp_path / "none") == frozenset()


async def test_loads_the_default(tmp_path: Path) -> None:
    given = tmp_path / "given"
    path = parser(tmp_path, f'echo "$*" >{given}; cat >>{given}')
    name = await apparmor.load_default(tmp_path / "profiles", path)
    assert name == "zos-cri-default"
    assert given.read_text() == f"--add --skip-cache\n{apparmor.DEFAULT_PROFILE}"


async def test_leaves_a_loaded_one_alone(tmp_path: Path) -> None:
    (tmp_path / "profiles").write_text("zos-cri-default (enforce)\n")
    path = parser(tmp_path, f"touch {tmp_path}/called")
    assert await apparmor.load_default(tmp_path / "profiles", path) == "zos-cri-default"
    assert not (tmp_path / "called").exists()


async def test_someone_else_loads_it(tmp_path: Path) -> None:
    listing = tmp_path / "profiles"
    path = parser(tmp_path, f'echo "zos-cri-default (enforce)" >{listing}; exit 1')
    assert await apparmor.load_default(listing, path) == "zos-cri-default"


async def test_none_can_be_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert await apparmor.load_default(tmp_path / "profiles", str(tmp_path)) == ""
    path = parser(tmp_path, "echo 'syntax error in line 3' >&2; exit 1")
    assert await apparmor.load_default(tmp_path / "profiles", path) == ""
    first, second = (record.getMessage() for record in caplog.records)
    assert "no apparmor_parser" in first
    assert "can't be loaded" in second


def test_the_profile_is_a_profile() -> None:
    """Its braces match, and each rule ends with a comma: the parser isn't on every host."""
    lines = [line.strip() for line in apparmor.DEFAULT_PROFILE.splitlines() if line.strip()]
    assert re.fullmatch(r"profile zos-cri-default flags=\(\S+\) {", lines[0])
    assert lines[-1] == "}"
    assert all(re.fullmatch(r"[a-z].*,", line) for line in lines[1:-1])
