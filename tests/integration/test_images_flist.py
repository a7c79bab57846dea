"""Images from flists that an independent writer made."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import http.server
import os
import random
import socket
import stat
import threading
from typing import TYPE_CHECKING

import cramjam
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.fakes.flists import BLOCK, Flist, blake, seal
from zos_cri.errors import DataLoss, Error, InvalidArgument, NotFound, Unavailable
from zos_cri.images.store import ImageStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

BIG = random.Random(1).randbytes(3 * BLOCK + 77)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ImageStore]:
    opened = ImageStore(tmp_path / "images")
    await opened.start()
    yield opened
    await opened.aclose()


def filled(path: Path, routes: list[tuple[int, int, str]]) -> Flist:
    flist = Flist(path, routes)
    flist.directory("/etc", mode=0o750, uid=3, gid=4, mtime=77)
    flist.file("/etc/passwd", b"root:x:0:0::/:/bin/sh\n", mtime=88)
    flist.file("/big", BIG, mode=0o4755, uid=1000)
    flist.file("/empty", b"")
    flist.symlink("/link", "etc/passwd")
    flist.add("/null", mode=stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3))
    flist.add("/pipe", mode=stat.S_IFIFO | 0o600)
    flist.close()
    return flist


def root_of(store: ImageStore, ref: str) -> Path:
    image = store.find(ref)
    assert image is not None
    return store.layout.layer(store.catalog.layers[image.chain_ids[0]].n)


def check(root: Path) -> None:
    assert (root / "big").read_bytes() == BIG
    big = (root / "big").stat()
    assert (stat.S_IMODE(big.st_mode), big.st_uid) == (0o4755, 1000)
    etc = (root / "etc").stat()
    assert (stat.S_IMODE(etc.st_mode), etc.st_uid, etc.st_gid, etc.st_mtime) == (0o750, 3, 4, 77)
    assert (root / "etc/passwd").stat().st_mtime == 88
    assert (root / "empty").read_bytes() == b""
    assert os.readlink(root / "link") == "etc/passwd"
    assert (root / "null").stat().st_rdev == os.makedev(1, 3)
    assert stat.S_ISFIFO((root / "pipe").stat().st_mode)


@pytest.mark.parametrize("flat", [False, True])
async def test_from_a_directory(store: ImageStore, tmp_path: Path, flat: bool) -> None:
    path = tmp_path / "root.fl"
    filled(path, [(0, 255, f"dir://{tmp_path}/blocks")]).write_blocks(
        tmp_path / "blocks", flat=flat
    )
    ref = f"flist:{path}"
    image_id = await store.pull(ref)
    check(root_of(store, ref))
    image = store.find(str(path))
    assert image is not None
    assert image.id == image_id
    assert image.repo_tags == (ref,)
    assert (await store.ensure(str(path))).id == image_id
    (mount,) = await store.prepare_rootfs(image_id, "c1")
    assert mount.type == "overlay"
    # The blocks are cached: their store may go, and another flist may name them.
    for block in (tmp_path / "blocks").rglob("*"):
        if block.is_file():
            block.unlink()
    await store.release_rootfs("c1")
    await store.remove(ref)
    assert await store.pull(ref) == image_id
    check(root_of(store, ref))


async def test_cached_blocks_are_counted_and_collected(store: ImageStore, tmp_path: Path) -> None:
    path = tmp_path / "root.fl"
    filled(path, [(0, 255, f"dir://{tmp_path}/blocks")]).write_blocks(tmp_path / "blocks")
    ref = f"flist:{path}"
    await store.pull(ref)
    await settled(store)
    cached = [entry for entry in store.layout.blocks.rglob("*") if entry.is_file()]
    taken = sum(entry.stat().st_blocks * 512 for entry in cached)
    assert taken > len(BIG)
    with_blocks = await store.fs_info()
    would = await store.gc(dry_run=True)
    assert (would.blocks, would.bytes) == (len(cached), taken)
    assert all(entry.exists() for entry in cached)
    assert await store.gc() == would
    assert not any(entry.exists() for entry in cached)
    without = await store.fs_info()
    assert with_blocks.used_bytes - without.used_bytes == taken
    assert with_blocks.used_inodes - without.used_inodes == len(cached)
    check(root_of(store, ref))


async def settled(store: ImageStore) -> None:
    while store._tasks:
        await asyncio.gather(*store._tasks)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def test_from_a_hub(store: ImageStore, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    hub.mkdir()
    with serving(hub) as url:
        flist = filled(hub / "root.fl", [(0, 255, f"{url}/store/")])
        flist.write_blocks(hub / "store")
        md5 = hashlib.md5((hub / "root.fl").read_bytes()).hexdigest()
        (hub / "root.fl.md5").write_text(f"{md5}\n")
        ref = f"{url}/root.fl"
        await store.pull(ref)
        check(root_of(store, ref))
        (hub / "root.fl.md5").write_text("0" * 32)
        with pytest.raises(DataLoss, match="its md5 is"):
            await store.pull(ref)
        with pytest.raises(NotFound, match="HTTP 404"):
            await store.pull(f"{url}/nothing.fl")


class Zdb:
    """A 0-db that knows SELECT and GET."""

    def __init__(self, blocks: dict[bytes, bytes], namespace: bytes) -> None:
        self._blocks = blocks
        self._namespace = namespace
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"zdb://127.0.0.1:{self._socket.getsockname()[1]}/{namespace.decode()}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        selected = b""
        with connection, connection.makefile("rwb") as file, contextlib.suppress(OSError):
            while line := file.readline():
                words = []
                for _ in range(int(line[1:])):
                    length = int(file.readline()[1:])
                    words.append(file.read(length + 2)[:-2])
                if words[0] == b"SELECT" and words[1] == self._namespace:
                    selected = words[1]
                    file.write(b"+OK\r\n")
                elif words[0] == b"GET" and selected:
                    value = self._blocks.get(words[1])
                    file.write(b"$-1\r\n" if value is None else b"$%d\r\n" % len(value))
                    file.write(b"" if value is None else value + b"\r\n")
                else:
                    file.write(b"-ERR not so\r\n")
                file.flush()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


async def test_from_a_zdb_and_by_several_routes(store: ImageStore, tmp_path: Path) -> None:
    scratch = filled(tmp_path / "scratch.fl", [])
    zdb = Zdb({k: v for k, v in scratch.blocks.items() if k[0] < 128}, b"space")
    try:
        routes = [
            (0, 255, "dir:///nowhere/at/all"),
            (0, 127, zdb.url),
            (128, 255, f"dir://{tmp_path}/blocks"),
        ]
        path = tmp_path / "root.fl"
        filled(path, routes).write_blocks(tmp_path / "blocks")
        for name in (tmp_path / "blocks").iterdir():
            if int(name.name, 16) < 128:
                for block in name.iterdir():
                    block.unlink()
        await store.pull(str(path))
        check(root_of(store, str(path)))
    finally:
        zdb.close()


async def test_a_missing_block_names_the_file_and_the_block(
    store: ImageStore, tmp_path: Path
) -> None:
    flist = filled(tmp_path / "root.fl", [(0, 255, f"dir://{tmp_path}/blocks")])
    flist.write_blocks(tmp_path / "blocks")
    missing = next(b for b in flist.blocks if flist.blocks[b] and b == seal(BIG[:BLOCK])[0])
    (tmp_path / "blocks" / missing.hex()[:2] / missing.hex()).unlink()
    with pytest.raises(NotFound, match=f"big: block {missing.hex()}: dir://.*it isn't there"):
        await store.pull(str(tmp_path / "root.fl"))
    assert await store.list() == ()
    assert os.listdir(store.layout.ingest) == []


async def test_a_wrong_block(store: ImageStore, tmp_path: Path) -> None:
    flist = filled(tmp_path / "root.fl", [(0, 255, f"dir://{tmp_path}/blocks")])
    flist.write_blocks(tmp_path / "blocks")
    wrong = seal(BIG[:BLOCK])[0].hex()
    (tmp_path / "blocks" / wrong[:2] / wrong).write_bytes(b"something else")
    with pytest.raises(Unavailable, match=f"big: block {wrong}: .*another hash"):
        await store.pull(str(tmp_path / "root.fl"))


async def test_a_wrong_key(store: ImageStore, tmp_path: Path) -> None:
    path = tmp_path / "root.fl"
    flist = Flist(path, [(0, 255, f"dir://{tmp_path}/blocks")])
    flist.file("/f", b"content")
    flist.db.execute("UPDATE block SET key = ?", (bytes(32),))
    flist.close()
    flist.write_blocks(tmp_path / "blocks")
    with pytest.raises(DataLoss, match=r"f: block .* can't be decrypted"):
        await store.pull(str(path))


async def test_a_content_that_its_key_does_not_name(store: ImageStore, tmp_path: Path) -> None:
    """Encrypted rightly, by a key that isn't the content's hash: a swapped block."""
    path = tmp_path / "root.fl"
    flist = Flist(path, [(0, 255, f"dir://{tmp_path}/blocks")])
    flist.file("/f", b"content")
    key = blake(b"another")
    stored = AESGCM(key).encrypt(key[:12], bytes(cramjam.snappy.compress_raw(b"swapped")), None)
    flist.blocks = {blake(stored): stored}
    flist.db.execute("UPDATE block SET id = ?, key = ?", (blake(stored), key))
    flist.close()
    flist.write_blocks(tmp_path / "blocks")
    with pytest.raises(DataLoss, match=r"f: block .* another hash than its key says"):
        await store.pull(str(path))


async def test_no_route(store: ImageStore, tmp_path: Path) -> None:
    filled(tmp_path / "root.fl", [])
    with pytest.raises(NotFound, match="no route leads to it"):
        await store.pull(str(tmp_path / "root.fl"))
    filled(tmp_path / "s3.fl", [(0, 255, "s3://user:secret@host/bucket")])
    with pytest.raises(Error, match="stores of the kind 's3'") as caught:
        await store.pull(str(tmp_path / "s3.fl"))
    assert "secret" not in str(caught.value)


BAD = {
    "name with a slash": ("a/../../../b", stat.S_IFREG | 0o644),
    "dots": ("..", stat.S_IFDIR | 0o755),
    "no name": ("", stat.S_IFDIR | 0o755),
    "whiteout": (".wh.etc", stat.S_IFREG | 0o644),
    "socket": ("s", stat.S_IFSOCK | 0o644),
    "no type": ("n", 0o644),
}


@pytest.mark.parametrize("name", BAD)
async def test_hostile_inodes(store: ImageStore, tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.fl"
    flist = Flist(path, [])
    own, mode = BAD[name]
    flist.db.execute("INSERT INTO inode VALUES (99, 1, ?, 0, 0, 0, ?, 0, 0, 0)", (own, mode))
    flist.close()
    with pytest.raises(InvalidArgument, match="flist"):
        await store.pull(str(path))


async def test_sizes_that_do_not_fit(store: ImageStore, tmp_path: Path) -> None:
    for name, size in (("long", 3), ("short", 100)):
        path = tmp_path / f"{name}.fl"
        flist = Flist(path, [(0, 255, f"dir://{tmp_path}/blocks")])
        flist.file("/f", b"content", size=size)
        flist.close()
        flist.write_blocks(tmp_path / "blocks")
        with pytest.raises(DataLoss, match="f: its blocks"):
            await store.pull(str(path))


async def test_what_is_no_flist(store: ImageStore, tmp_path: Path) -> None:
    path = tmp_path / "no.fl"
    path.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 20)
    with pytest.raises(InvalidArgument, match="no flist"):
        await store.pull(str(path))
    with pytest.raises(NotFound, match="no such file"):
        await store.pull("/nowhere/x.fl")
    path = tmp_path / "view.fl"
    flist = Flist(path, [])
    flist.db.executescript("CREATE VIEW v AS SELECT * FROM inode")
    flist.close()
    with pytest.raises(InvalidArgument, match="views"):
        await store.pull(str(path))
