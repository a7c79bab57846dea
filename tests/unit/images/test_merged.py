from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from zos_cri.errors import ResourceExhausted
from zos_cri.images.merged import OPAQUE_XATTR, MergedView

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    made = [tmp_path / str(number) for number in range(3)]
    for path in made:
        path.mkdir()
    return made


def view(layers: list[Path]) -> MergedView:
    return MergedView([os.fsencode(path) for path in layers])


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def whiteout(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR, 0)


def test_the_uppermost_wins(layers: list[Path]) -> None:
    write(layers[0] / "etc/passwd", "low")
    write(layers[1] / "etc/passwd", "high")
    write(layers[0] / "etc/group", "group")
    assert view(layers).read(b"/etc/passwd", 10) == b"high"
    assert view(layers).read(b"etc//./group", 10) == b"group"
    assert view(layers).read(b"/etc", 10) is None
    assert view(layers).read(b"/etc/passwd/x", 10) is None
    assert view(layers).read(b"/nothing", 10) is None


def test_whiteouts_and_opaque_directories_hide(layers: list[Path]) -> None:
    write(layers[0] / "a/x", "x")
    write(layers[0] / "b/x", "x")
    write(layers[0] / "c/x", "x")
    whiteout(layers[1] / "a/x")
    whiteout(layers[1] / "b")
    write(layers[2] / "b/y", "y")
    write(layers[1] / "c/y", "y")
    os.setxattr(layers[1] / "c", OPAQUE_XATTR, b"y")
    for gone in (b"a/x", b"b/x", b"c/x"):
        assert view(layers).read(gone, 10) is None
    assert view(layers).read(b"b/y", 10) == b"y"
    assert view(layers).read(b"c/y", 10) == b"y"


def test_links_stay_within(layers: list[Path], tmp_path: Path) -> None:
    write(tmp_path / "etc/passwd", "outside")
    write(layers[0] / "usr/etc/passwd", "inside")
    (layers[1] / "etc").symlink_to("/usr/etc")
    assert view(layers).read(b"/etc/passwd", 10) == b"inside"
    (layers[2] / "up").symlink_to("../../../../usr/etc/passwd")
    assert view(layers).read(b"/up", 10) == b"inside"
    (layers[2] / "out").symlink_to(str(tmp_path / "etc" / "passwd"))
    assert view(layers).read(b"/out", 10) is None
    (layers[2] / "loop").symlink_to("loop")
    assert view(layers).read(b"/loop/x", 10) is None
    assert view(layers).find(b"/loop") is None
    assert view(layers).find(b"/loop", follow=False) is not None
    assert view(layers).exact(b"etc/passwd") is None
    assert view(layers).exact(b"usr/etc/passwd") is not None


def test_only_regular_files_of_a_bounded_size(layers: list[Path]) -> None:
    os.mkfifo(layers[0] / "fifo")
    write(layers[0] / "large", "x" * 11)
    assert view(layers).read(b"fifo", 10) is None
    with pytest.raises(ResourceExhausted):
        view(layers).read(b"large", 10)


def test_an_opaque_root_hides_all_below(layers: list[Path]) -> None:
    write(layers[0] / "low", "x")
    write(layers[2] / "high", "y")
    os.setxattr(layers[1], OPAQUE_XATTR, b"y")
    assert view(layers).read(b"low", 10) is None
    assert view(layers).read(b"high", 10) == b"y"
