from __future__ import annotations

import pytest

from zos_cri.errors import InvalidArgument, NotFound
from zos_cri.linux.mount import Mount
from zos_cri.module.rootfs import DirectoryRootfs


class FakeProvider:
    """What is asked for everything that is no path."""

    def __init__(self):
        self.calls = []

    async def prepare(self, flist, container_id):
        self.calls.append(("prepare", flist, container_id))
        return (Mount(type="bind", source="/image"),)

    async def release(self, container_id):
        self.calls.append(("release", container_id))


@pytest.fixture
def provider():
    return FakeProvider()


@pytest.fixture
def rootfs(tmp_path, provider):
    return DirectoryRootfs(tmp_path / "upper", provider)


async def test_a_directory_is_the_lower_layer_of_an_overlay(rootfs, tmp_path):
    lower = tmp_path / "lower"
    lower.mkdir()
    [mount] = await rootfs.prepare(str(lower), "c1")
    assert mount.type == "overlay"
    assert mount.options == (
        f"lowerdir={lower}",
        f"upperdir={tmp_path}/upper/c1/fs",
        f"workdir={tmp_path}/upper/c1/work",
    )
    assert (tmp_path / "upper/c1/fs").stat().st_mode & 0o777 == 0o755
    assert list(lower.iterdir()) == []


async def test_release_removes_the_layer_and_may_come_again(rootfs, tmp_path, provider):
    (tmp_path / "lower").mkdir()
    await rootfs.prepare(str(tmp_path / "lower"), "c1")
    (tmp_path / "upper/c1/fs/written").write_text("x")
    for _ in range(2):
        await rootfs.release("c1")
    assert not (tmp_path / "upper/c1").exists()
    assert provider.calls == [("release", "c1")] * 2


async def test_what_overlayfs_would_split_is_escaped(rootfs, tmp_path):
    lower = tmp_path / "a:b,c\\d"
    lower.mkdir()
    [mount] = await rootfs.prepare(str(lower), "c1")
    assert mount.options[0] == f"lowerdir={tmp_path}/a\\:b\\,c\\\\d"


async def test_what_is_no_path_is_the_layer_aboves(rootfs, provider, tmp_path):
    [mount] = await rootfs.prepare("busybox", "c1")
    assert mount.source == "/image"
    assert provider.calls == [("prepare", "busybox", "c1")]
    assert not (tmp_path / "upper").exists()


async def test_a_directory_that_is_none(rootfs, tmp_path):
    with pytest.raises(NotFound, match="flist: /absent/x: No such file"):
        await rootfs.prepare("/absent/x", "c1")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidArgument, match="file is not a directory"):
        await rootfs.prepare(str(tmp_path / "file"), "c1")
    assert not (tmp_path / "upper").exists()
