from __future__ import annotations

import io
import os
import tarfile

import pytest

from zos_cri.checkpoint import archive, layout
from zos_cri.errors import DataLoss, InvalidArgument, ResourceExhausted

FILES = {
    "config.dump": b"{}",
    "spec.dump": b"{}",
    "checkpoint/inventory.img": b"inventory",
    "checkpoint/pages-1.img": b"x" * 10_000,
    "rootfs-diff.tar": b"tar",
}


@pytest.fixture(autouse=True)
def umask():
    """It is a worker's to change, not a test's."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def make(directory, files=FILES):
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return directory


def tar_of(path, files, mode="w", change=lambda info: info):
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(change(info), io.BytesIO(content))
    return path


def contents(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_there_and_back(tmp_path):
    source = make(tmp_path / "source", {**FILES, "dump.log": b"for people"})
    archive.pack(source, tmp_path / "a.tar")
    assert (tmp_path / "a.tar").stat().st_mode & 0o777 == 0o600
    archive.unpack(tmp_path / "a.tar", tmp_path / "target")
    assert contents(tmp_path / "target") == FILES


def test_from_a_directory(tmp_path):
    archive.unpack(make(tmp_path / "source", {**FILES, "other": b""}), tmp_path / "target")
    assert contents(tmp_path / "target") == FILES


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_others_archives_with_dots_and_compressed(tmp_path, mode):
    path = tar_of(tmp_path / "a.tar", {f"./{name}": c for name, c in FILES.items()}, mode)
    archive.unpack(path, tmp_path / "target")
    assert contents(tmp_path / "target") == FILES


@pytest.mark.parametrize(
    "name", ["../evil", "checkpoint/../../evil", "/etc/evil", "checkpoint/a/b", "checkpoint/.."]
)
def test_nothing_else_is_taken(tmp_path, name):
    path = tar_of(tmp_path / "a.tar", {**FILES, name: b"evil"})
    archive.unpack(path, tmp_path / "d" / "target")
    assert contents(tmp_path / "d") == {f"target/{name}": c for name, c in FILES.items()}
    assert not (tmp_path / "evil").exists()


def test_links_are_not_followed(tmp_path):
    (tmp_path / "secret").write_text("secret")
    source = make(tmp_path / "source")
    (source / "checkpoint" / "link.img").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic links"):
        archive.unpack(source, tmp_path / "target")

    def link(info):
        if info.name == "deleted.files":
            info.type, info.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
        return info

    path = tar_of(tmp_path / "a.tar", {**FILES, "deleted.files": b""}, change=link)
    archive.unpack(path, tmp_path / "target2")
    assert contents(tmp_path / "target2") == FILES


@pytest.mark.parametrize("missing", ["config.dump", "spec.dump", "checkpoint/inventory.img"])
def test_what_is_no_checkpoint(tmp_path, missing):
    files = {name: content for name, content in FILES.items() if name != missing}
    with pytest.raises(DataLoss, match=f"it has no {missing}"):
        archive.unpack(tar_of(tmp_path / "a.tar", files), tmp_path / "target")


def test_what_is_damaged(tmp_path):
    whole = tar_of(tmp_path / "a.tar", FILES).read_bytes()
    for n, content in enumerate((b"no archive at all" * 100, whole[:3000], b"")):
        (tmp_path / "b.tar").write_bytes(content)
        with pytest.raises(DataLoss):
            archive.unpack(tmp_path / "b.tar", tmp_path / f"target{n}")
    with pytest.raises(InvalidArgument, match="No such file"):
        archive.unpack(tmp_path / "none.tar", tmp_path / "target")


def test_a_name_twice(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("config.dump"), io.BytesIO())
    with pytest.raises(DataLoss, match="twice"):
        archive.unpack(tmp_path / "a.tar", tmp_path / "target")


def test_more_than_the_disk_has(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("checkpoint/pages-1.img")
        info.size = 1 << 60
        tar.fileobj.write(info.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(ResourceExhausted, match="no room"):
        archive.unpack(tmp_path / "a.tar", tmp_path / "target")


def test_a_target_that_cannot_be_written_leaves_nothing(tmp_path):
    source = make(tmp_path / "source")
    (tmp_path / "taken").mkdir()
    with pytest.raises(InvalidArgument, match="directory"):
        archive.pack(source, tmp_path / "taken")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source", "taken"]
    assert layout.IMAGES == "checkpoint"
