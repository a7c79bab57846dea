from __future__ import annotations

import io
import os
import stat
from typing import TYPE_CHECKING

import pytest

from tests.fakes import tars
from zos_cri.images import lowerfix
from zos_cri.images.directories import UnpackError
from zos_cri.images.merged import MergedView
from zos_cri.images.unpack import unpack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def stack(tmp_path: Path, *archives: bytes) -> list[Path]:
    """Unpacks layers one over the other, each put right by those below."""
    roots: list[Path] = []
    for number, archive in enumerate(archives):
        root = tmp_path / str(number)
        root.mkdir()
        unpacked = unpack(io.BytesIO(archive + tars.end()), str(root))
        lowerfix.fix(str(root), MergedView([os.fsencode(p) for p in roots]), unpacked)
        roots.append(root)
    return roots


def test_a_directory_without_an_entry_is_as_below(tmp_path: Path) -> None:
    base = tars.directory(b"tmp", mode=0o1777, uid=3, gid=4, mtime=77)
    _, top = stack(tmp_path, base, tars.file(b"tmp/f", b"x") + tars.file(b"new/f", b"y"))
    tmp = (top / "tmp").stat()
    assert (stat.S_IMODE(tmp.st_mode), tmp.st_uid, tmp.st_gid, tmp.st_mtime) == (0o1777, 3, 4, 77)
    assert stat.S_IMODE((top / "new").stat().st_mode) == 0o755


def test_a_removed_directory_gives_nothing(tmp_path: Path) -> None:
    base = tars.directory(b"d", mode=0o700, uid=9)
    _, top = stack(tmp_path, base, tars.file(b".wh.d") + tars.file(b"d/f", b"x"))
    assert (top / "d").stat().st_uid == 0


def test_a_hard_link_to_a_lower_file_is_a_copy(tmp_path: Path) -> None:
    base = tars.pax(("SCHILY.xattr.user.x", b"1")) + tars.file(
        b"bin/tool", b"tool", mode=0o4755, uid=5, mtime=7
    )
    links = tars.hardlink(b"bin/one", b"bin/tool") + tars.hardlink(b"bin/two", b"bin/tool")
    _, top = stack(tmp_path, base, links)
    one = (top / "bin/one").stat()
    assert (top / "bin/one").read_bytes() == b"tool"
    assert (stat.S_IMODE(one.st_mode), one.st_uid, one.st_mtime) == (0o4755, 5, 7)
    assert os.getxattr(top / "bin/one", "user.x") == b"1"
    assert one.st_ino == (top / "bin/two").stat().st_ino


def test_a_hard_link_to_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnpackError, match="bin/one: a hard link to 'bin/tool'"):
        stack(tmp_path, tars.directory(b"bin"), tars.hardlink(b"bin/one", b"bin/tool"))


def test_a_hard_link_never_leads_outside(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    base = tars.symlink(b"out", b"../secret") + tars.symlink(b"up", b"..")
    for number, target in enumerate((b"out", b"up/secret", b"../secret")):
        folder = tmp_path / f"try-{number}"
        folder.mkdir()
        with pytest.raises(UnpackError):
            stack(folder, base, tars.hardlink(b"h", target))


def test_idle_whiteouts_go(tmp_path: Path) -> None:
    base = tars.file(b"d/there", b"x")
    top = tars.file(b"d/.wh.there") + tars.file(b"d/.wh.never") + tars.file(b"e/.wh.x")
    top += tars.directory(b"o") + tars.file(b"o/.wh..wh..opq") + tars.file(b"o/.wh.y")
    _, root = stack(tmp_path, base, top)
    assert os.listdir(root / "d") == ["there"]
    assert os.listdir(root / "e") == []
    assert os.listdir(root / "o") == []
