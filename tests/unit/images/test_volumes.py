from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from zos_cri.errors import FailedPrecondition, Internal, ResourceExhausted
from zos_cri.images import volumes
from zos_cri.images.merged import OPAQUE_XATTR, MergedView

pytestmark = pytest.mark.root


@pytest.fixture
def layers(tmp_path: Path) -> tuple[Path, Path]:
    """An image of two layers with something in /data."""
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    for path in (lower / "data/sub", lower / "data/hidden", upper / "data/sub", upper / "data/opq"):
        path.mkdir(parents=True)
    (lower / "data/opq").mkdir()
    for name in ("gone", "changed", "sub/below", "hidden/x", "opq/below"):
        (lower / "data" / name).write_text(f"lower {name}")
    for name in ("changed", "sub/above", "opq/above"):
        (upper / "data" / name).write_text(f"upper {name}")
    os.mknod(upper / "data/gone", stat.S_IFCHR, 0)
    os.mknod(upper / "data/hidden", stat.S_IFCHR, 0)
    os.setxattr(upper / "data/opq", OPAQUE_XATTR, b"y")
    (upper / "file").write_text("x")
    (upper / "link").symlink_to("/../data/sub")
    return lower, upper


def view(*layers: Path) -> MergedView:
    return MergedView([os.fsencode(layer) for layer in layers])


def prepared(tmp_path: Path, layers: tuple[Path, ...], *targets: str) -> dict[str, Path]:
    made = volumes.prepare(tmp_path / "volumes", view(*layers), targets)
    return {target: Path(place) for target, place in made.items()}


def contents(top: Path) -> dict[str, str]:
    files = [path for path in top.rglob("*") if path.is_file()]
    return {str(path.relative_to(top)): path.read_text() for path in files}


def test_what_the_merged_layers_show(tmp_path: Path, layers: tuple[Path, Path]) -> None:
    made = prepared(tmp_path, layers, "/data", "/link", "/absent/x")
    assert contents(made["/data"]) == {
        "changed": "upper changed",
        "sub/below": "lower sub/below",
        "sub/above": "upper sub/above",
        "opq/above": "upper opq/above",
    }
    assert not (made["/data"] / "hidden").exists()
    assert OPAQUE_XATTR not in os.listxattr(made["/data"] / "opq")
    assert set(contents(made["/link"])) == {"below", "above"}
    assert list(made["/absent/x"].iterdir()) == []
    assert stat.S_IMODE(made["/absent/x"].stat().st_mode) == 0o755
    assert len(list((tmp_path / "volumes").iterdir())) == 3


def test_owners_modes_times_attributes_and_kinds(tmp_path: Path) -> None:
    top = tmp_path / "layer/v"
    top.mkdir(parents=True)
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    (top / "ping").write_text("p")
    os.setxattr(top / "ping", "user.note", b"n")
    os.chown(top / "ping", 5, 6)
    os.setxattr(top / "ping", "security.capability", capability)
    (top / "su").write_text("s")
    os.chown(top / "su", 1000, 50)
    (top / "su").chmod(0o6755)
    (top / "other").hardlink_to(top / "su")
    (top / "link").symlink_to("/etc/passwd")
    os.chown(top / "link", 7, 8, follow_symlinks=False)
    os.mkfifo(top / "fifo", 0o620)
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with (top / "sparse").open("wb") as file:
        file.truncate(1 << 30)
        file.seek(5 << 20)
        file.write(b"data")
    (top / "secret").mkdir(mode=0o2750)
    (top / "secret/x").write_text("")
    os.chown(top / "secret", 3_000_000, 9)
    (top / "secret").chmod(0o2750)
    top.chmod(0o1777)
    os.chown(top, 70, 71)
    for path in (*top.rglob("*"), top):
        os.utime(path, ns=(5, 1_234_567_891), follow_symlinks=False)
    copy = prepared(tmp_path, (tmp_path / "layer",), "/v")["/v"]
    for path in (top, *top.rglob("*")):
        old, new = os.lstat(path), os.lstat(copy / path.relative_to(top))
        for fact in ("st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_rdev"):
            assert getattr(old, fact) == getattr(new, fact), (path, fact)
        if not stat.S_ISDIR(old.st_mode):
            assert (old.st_size, old.st_nlink) == (new.st_size, new.st_nlink), path
    assert os.getxattr(copy / "ping", "user.note") == b"n"
    assert os.getxattr(copy / "ping", "security.capability") == capability
    assert os.readlink(copy / "link") == "/etc/passwd"
    assert os.path.samefile(copy / "su", copy / "other")
    sparse = (copy / "sparse").stat()
    assert sparse.st_blocks * 512 < 1 << 20
    with (copy / "sparse").open("rb") as file:
        file.seek(5 << 20)
        assert file.read(5) == b"data\0"


def test_what_is_there_stays(tmp_path: Path, layers: tuple[Path, Path]) -> None:
    made = prepared(tmp_path, layers, "/data")["/data"]
    (made / "new").write_text("of the container")
    half = made.with_name(f"{made.name}.new")
    half.mkdir()
    assert prepared(tmp_path, layers, "/data")["/data"] == made
    assert (made / "new").exists()
    made.rename(tmp_path / "away")
    (half / "half").write_text("left by a copy that was cut off")
    assert not (prepared(tmp_path, layers, "/data")["/data"] / "half").exists()


def test_a_volume_that_is_a_file(tmp_path: Path, layers: tuple[Path, Path]) -> None:
    with pytest.raises(FailedPrecondition, match="image volume /file: in the image it is no dir"):
        prepared(tmp_path, layers, "/file")


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, ResourceExhausted), (errno.EIO, Internal)]
)
def test_a_copy_that_fails_is_not_in_place(
    tmp_path: Path,
    layers: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[Exception],
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "copy_file_range", fail)
        with pytest.raises(kind, match="image volume /data: "):
            prepared(tmp_path, layers, "/data")
    assert len(contents(prepared(tmp_path, layers, "/data")["/data"])) == 4
