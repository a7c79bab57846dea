from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING

import pytest

from zos_cri.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from zos_cri.images import builtin
from zos_cri.images.store import ImageStore
from zos_cri.linux.idmap import IdMappings
from zos_cri.linux.namespaces import IdMap

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.root

CONTAINER = "c0" * 32


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ImageStore]:
    opened = ImageStore(tmp_path / "images")
    await opened.start()
    yield opened
    await opened.aclose()


def _is(what: str, path: str) -> bool:
    checks = {"link": os.path.islink, "dir": os.path.isdir, "there": os.path.lexists}
    return checks[what](path)


async def settled(store: ImageStore) -> None:
    while store._tasks:
        await asyncio.gather(*store._tasks)


async def test_the_builtin_image_is_known_by_all_its_names(store: ImageStore) -> None:
    assert await store.list() == ()
    image = await store.status("localhost/zos-cri/busybox")
    assert image is not None
    assert image.repo_tags == (builtin.NAME,)
    assert image.pinned
    assert image.size > 1_000_000
    assert image.config.cmd == ("sh",)
    for ref in [image.id, image.id[7:], image.id[7:20], *image.repo_tags, *image.repo_digests]:
        assert await store.status(ref) == image
    assert await store.list() == (image,)
    assert await store.list(builtin.NAME) == (image,)
    assert await store.list("busybox") == ()


async def test_an_unknown_image_is_none_and_nonsense_an_error(store: ImageStore) -> None:
    assert await store.status("busybox") is None
    assert await store.status("sha256:" + "00" * 32) is None
    assert await store.status("00" * 32) is None
    with pytest.raises(InvalidArgument, match="repository"):
        await store.status("Not A Reference")


async def test_the_store_is_read_back(tmp_path: Path) -> None:
    first = ImageStore(tmp_path / "images")
    await first.start()
    image = await first.ensure_builtin()
    config = await first.raw_config(image.id)
    mounts = await first.prepare_rootfs(image.id, CONTAINER)
    await first.aclose()

    second = ImageStore(tmp_path / "images")
    await second.start()
    assert await second.list() == (image,)
    assert await second.raw_config(image.id) == config
    assert await second.container_ids() == (CONTAINER,)
    assert await second.prepare_rootfs(image.id, CONTAINER) == mounts
    await second.aclose()


async def test_only_one_process_has_the_store(store: ImageStore) -> None:
    other = ImageStore(store.layout.root)
    with pytest.raises(FailedPrecondition, match="another process"):
        await other.start()
    await other.aclose()


async def test_root_filesystem_of_a_container(store: ImageStore) -> None:
    image = await store.ensure_builtin()
    (mount,) = await store.prepare_rootfs(image.id, CONTAINER)
    assert mount.type == "overlay"
    options = dict(option.partition("=")[::2] for option in mount.options)
    assert set(options) >= {"lowerdir", "upperdir", "workdir", "index"}
    assert _is("link", f"{options['lowerdir']}/bin/sh")
    assert _is("dir", options["upperdir"])
    assert _is("dir", options["workdir"])
    assert (await store.container_usage(CONTAINER)).inodes == 1
    await store.release_rootfs(CONTAINER)
    await store.release_rootfs(CONTAINER)
    await settled(store)
    assert not _is("there", options["upperdir"])
    with pytest.raises(NotFound):
        await store.container_usage(CONTAINER)


async def test_layers_stay_while_a_container_stands_on_them(store: ImageStore) -> None:
    image = await store.ensure_builtin()
    (mount,) = await store.prepare_rootfs(image.id, CONTAINER)
    lower = mount.options[0].partition("=")[2]
    await store.remove(builtin.NAME)
    await settled(store)
    assert await store.list() == ()
    assert _is("dir", lower)
    await store.release_rootfs(CONTAINER)
    await settled(store)
    assert not _is("there", lower)
    assert list((store.layout.blobs / "sha256").iterdir()) == []
    assert list(store.layout.trash.iterdir()) == []


async def test_removal_is_idempotent(store: ImageStore) -> None:
    image = await store.ensure_builtin()
    await asyncio.gather(*(store.remove(image.id) for _ in range(5)))
    assert store.find(image.id) is None
    await store.remove(image.id)
    await store.remove("never/there")


async def test_a_container_id_is_a_plain_name(store: ImageStore) -> None:
    image = await store.ensure_builtin()
    for wrong in ["", ".", "..", "a/b", "../../etc"]:
        with pytest.raises(InvalidArgument):
            await store.prepare_rootfs(image.id, wrong)
        with pytest.raises(InvalidArgument):
            await store.release_rootfs(wrong)
    with pytest.raises(NotFound):
        await store.prepare_rootfs("sha256:" + "0" * 64, CONTAINER)


async def test_files_of_an_image(store: ImageStore) -> None:
    image = await store.ensure_builtin()
    read = await store.read_files(image.id, ["/etc/passwd", "/etc/nothing", "/etc"], 1 << 20)
    assert read["/etc/passwd"] is not None
    assert read["/etc/passwd"].startswith(b"root:x:0:0:")
    assert read["/etc/nothing"] is None
    assert read["/etc"] is None
    with pytest.raises(ResourceExhausted, match="more than the 10"):
        await store.read_files(image.id, ["/etc/passwd"], 10)


async def test_what_no_record_names_is_gone_after_a_start(tmp_path: Path) -> None:
    first = ImageStore(tmp_path / "images")
    await first.start()
    image = await first.ensure_builtin()
    layout = first.layout
    await first.aclose()
    (layout.layers / "77" / "etc").mkdir(parents=True)
    layout.blob("sha256:" + "0" * 64).write_bytes(b"x")
    (layout.trash / "old").mkdir()

    second = ImageStore(tmp_path / "images")
    await second.start()
    await second.gc()
    assert {entry.name for entry in layout.layers.iterdir()} == {"0", "1"}
    assert len(list((layout.blobs / "sha256").iterdir())) == 1
    assert list(layout.trash.iterdir()) == []
    assert await second.list() == (image,)
    await second.aclose()


async def test_a_missing_busybox_says_what_to_do(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images", busybox=tmp_path / "none")
    await store.start()
    with pytest.raises(FailedPrecondition, match="install busybox-static"):
        await store.ensure_builtin()
    await store.aclose()


async def test_a_root_filesystem_of_a_user_namespace(store: ImageStore) -> None:
    """The layers are mapped by the mount; the upper directory has the host's ids itself."""
    image = await store.ensure_builtin()
    ids = IdMappings(uids=(IdMap(0, 300000, 65536),), gids=(IdMap(0, 400000, 65536),))
    (mount,) = await store.prepare_rootfs(image.id, CONTAINER, id_mappings=ids)
    assert {"uidmap=0:300000:65536", "gidmap=0:400000:65536", "index=off"} <= {*mount.options}
    options = dict(o.split("=", 1) for o in mount.options if "=" in o)
    upper = os.stat(options["upperdir"])
    assert (upper.st_uid, upper.st_gid) == (300000, 400000)
    assert upper.st_mode == os.stat(options["lowerdir"].split(":")[0]).st_mode
    (other,) = await store.prepare_rootfs(image.id, "d0" * 32)
    assert not [o for o in other.options if o.startswith(("uidmap", "gidmap"))]


async def test_what_was_not_on_disk_when_the_host_went_down_is_not_believed(
    tmp_path: Path,
) -> None:
    first = ImageStore(tmp_path / "images")
    await first.start()
    image = await first.ensure_builtin()
    await first.aclose()

    def edit(sql: str) -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "images" / "images.db")) as db, db:
            db.execute(sql)

    edit("UPDATE layer SET seal = ''")
    second = ImageStore(tmp_path / "images")
    await second.start()  # the server was restarted, the host wasn't
    assert second.find(image.id) is not None
    await second.aclose()
    edit("UPDATE layer SET seal = ''")
    edit("UPDATE meta SET value = 'another boot'")
    third = ImageStore(tmp_path / "images")
    await third.start()
    assert await third.list() == ()
    assert (await third.ensure_builtin()).id == image.id
    await third.aclose()


async def test_a_sealed_layer_is_believed_after_another_boot(tmp_path: Path) -> None:
    first = ImageStore(tmp_path / "images")
    await first.start()
    image = await first.ensure_builtin()
    await settled(first)
    assert all(layer.seal for layer in first.catalog.layers.values())
    await first.aclose()
    with contextlib.closing(sqlite3.connect(tmp_path / "images" / "images.db")) as db, db:
        db.execute("UPDATE meta SET value = 'another boot'")
    second = ImageStore(tmp_path / "images")
    await second.start()
    await settled(second)
    assert second.find(image.id) is not None
    assert await second.prepare_rootfs(image.id, CONTAINER)
    await second.aclose()
