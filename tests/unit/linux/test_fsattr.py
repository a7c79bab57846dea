import subprocess
from pathlib import Path

import pytest

from zos_cri.linux.fsattr import spread_subdirectories

pytestmark = pytest.mark.root


def filesystem(path: Path) -> str:
    found = subprocess.run(
        ["stat", "-f", "-c", "%T", path], check=True, capture_output=True, text=True
    )
    return found.stdout.strip()


def test_a_directory_on_ext4_has_it_and_keeps_it(tmp_path: Path) -> None:
    if not filesystem(tmp_path).startswith("ext"):
        pytest.skip("needs ext2, ext3 or ext4")
    assert spread_subdirectories(tmp_path)
    assert spread_subdirectories(tmp_path)
    (tmp_path / "below").mkdir()
    said = subprocess.run(["lsattr", "-d", tmp_path], check=True, capture_output=True, text=True)
    assert "T" in said.stdout.split()[0]
    said = subprocess.run(
        ["lsattr", "-d", tmp_path / "below"], check=True, capture_output=True, text=True
    )
    assert "T" not in said.stdout.split()[0]


def test_a_filesystem_without_it_says_no() -> None:
    assert not spread_subdirectories("/proc")


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        spread_subdirectories(tmp_path / "nothing")
