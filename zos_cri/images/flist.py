"""An image from an flist: a SQLite file that lists a root filesystem, its contents elsewhere.

In the worker. The file comes from a stranger like any archive: its tables are read as data only,
every name is checked, and all is written by the same writer as layers are. The layer's diff id is
the flist's own digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import stat
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from zos_cri.errors import DataLoss, Error, InvalidArgument, NotFound, Unavailable, Unimplemented
from zos_cri.images.blocks import Block, Blocks, Route
from zos_cri.images.hosts import Host
from zos_cri.images.http import Client, TransferError
from zos_cri.images.jobs import Done, LayerProgress, Progress, Resolved
from zos_cri.images.layerfs import LayerWriter, Limits
from zos_cri.images.layout import Layout
from zos_cri.images.load import manifest_for
from zos_cri.images.manifest import go_architecture
from zos_cri.images.model import MEDIA_OCI_MANIFEST, NewImage, NewLayer
from zos_cri.images.policy import allow_unsigned
from zos_cri.wire.tarheader import Entry, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from zos_cri.images.jobs import AnyEvent, FlistJob
    from zos_cri.images.model import Floor

MAX_FLIST: Final = 1 << 30  # a million files are 100 MiB
_MD5: Final = 64  # bytes that are looked at of what a hub serves as `.md5`
_CHUNK: Final = 1 << 20
_FETCHERS: Final = 16
_AHEAD: Final = 64  # blocks fetched before they are needed: 32 MiB
_ROOT: Final = 1
MAX_INODES: Final = 5_000_000  # all are held in memory
_COLUMNS: Final = "ino, name, size, uid, gid, mode, rdev, mtime, parent"
_PROGRESS_EVERY: Final = 8 << 20
_KINDS: Final = {
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFREG: Kind.FILE,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHAR,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
}


def make(job: FlistJob, emit: Callable[[AnyEvent], None]) -> Done:
    """Makes an image of an flist.

    Raises:
        InvalidArgument: it is no flist, or names what no layer may hold.
        NotFound: the flist, or a block of it: the message has the file and the block.
        DataLoss: its md5, or a block's hash, is another.
        Unavailable: the hub or a store didn't answer.
        SignatureValidationFailed: the policy asks for signatures, and flists have none.
    """
    allow_unsigned(job.fetching.policy, "flist", job.ref)
    path = Path(job.staging) / "flist"
    digest = _obtain(job.location, path, job.fetching.floor)
    config = _config(job.location, digest)
    image_id = f"sha256:{hashlib.sha256(config).hexdigest()}"
    manifest = manifest_for(config, ())
    emit(Resolved(image_id, digest, (digest,), ()))
    layers: tuple[NewLayer, ...] = ()
    if digest not in job.layers:
        layers = (_unpack(job, path, digest, emit),)
    image = NewImage(
        id=image_id,
        config=config,
        manifest_digest=f"sha256:{hashlib.sha256(manifest).hexdigest()}",
        manifest_type=MEDIA_OCI_MANIFEST,
        manifest=manifest,
        chain_ids=(digest,),
        layers=layers,
        blobs=(),
        names=(job.ref,),
    )
    return Done(images=(image,))


def _config(location: str, digest: str) -> bytes:
    document = {
        "architecture": go_architecture(os.uname().machine),
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Labels": {"zos.flist": location},
        },
        "rootfs": {"type": "layers", "diff_ids": [digest]},
    }
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def _obtain(location: str, path: Path, floor: Floor) -> str:
    """Puts the flist in `path`; answers its digest. A URL's md5 is checked where the hub has it."""
    parts = urlsplit(location)
    sha, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    try:
        with open(path, "xb") as file:
            for piece in _pieces(location, floor):
                sha.update(piece)
                md5.update(piece)
                if file.tell() + len(piece) > MAX_FLIST:
                    raise InvalidArgument(f"flist {location}: larger than {MAX_FLIST} bytes")
                file.write(piece)
    except TransferError as error:
        raise Unavailable(f"flist {location}: {error}") from error
    if parts.scheme in ("http", "https"):
        expected = _served_md5(location, floor)
        if expected and expected != md5.hexdigest():
            raise DataLoss(f"flist {location}: its md5 is {md5.hexdigest()}, not {expected}")
    return f"sha256:{sha.hexdigest()}"


def _pieces(location: str, floor: Floor) -> Iterator[bytes]:
    parts = urlsplit(location)
    if parts.scheme in ("", "file"):
        name = location if not parts.scheme else unquote(parts.path)
        if not os.path.isabs(name):
            raise InvalidArgument(f"flist {location}: a path must be absolute")
        try:
            with open(name, "rb") as file:
                while piece := file.read(_CHUNK):
                    yield piece
        except FileNotFoundError:
            raise NotFound(f"flist {location}: no such file") from None
        except OSError as error:
            raise InvalidArgument(f"flist {location}: {error.strerror}") from error
        return
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise Unimplemented(f"flist {location}: neither a path nor an http(s) URL")
    response = _get(location, floor)
    try:
        if response.status == 404:
            raise NotFound(f"flist {location}: HTTP 404")
        if response.status != 200:
            raise TransferError(f"HTTP {response.status}")
        while piece := response.read(_CHUNK):
            yield piece
    finally:
        response.close()


def _get(url: str, floor: Floor) -> Any:
    parts = urlsplit(url)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    return Client(Host(parts.scheme, parts.netloc, ""), floor=floor).request("GET", path)


def _served_md5(location: str, floor: Floor) -> str:
    """What the hub says, or an empty string where it says nothing."""
    try:
        response = _get(f"{location}.md5", floor)
    except TransferError:
        return ""
    try:
        if response.status != 200:
            return ""
        words = response.read(_MD5).decode("ascii", "replace").split()
    except TransferError:
        return ""
    finally:
        response.close()
    word = words[0].lower() if words else ""
    return word if len(word) == 32 and set(word) <= set("0123456789abcdef") else ""


def _unpack(job: FlistJob, path: Path, digest: str, emit: Callable[[AnyEvent], None]) -> NewLayer:
    listing = _Listing(path, job.location)
    blocks = Blocks(listing.routes(), Layout(Path(job.root)).blocks, job.fetching.floor)
    staged = f"{job.staging}/layer-{os.urandom(4).hex()}"
    os.mkdir(staged, 0o755)
    fetching = job.fetching
    limits = Limits(max_bytes=fetching.max_layer_bytes, min_free=fetching.min_free_bytes)
    writer = LayerWriter(staged, limits)
    total = listing.total()
    done = shown = 0
    try:
        for item in _with_content(listing, blocks):
            if isinstance(item, Entry):
                writer.add(item)
                continue
            offset, data = item
            writer.write(offset, memoryview(data))
            done += len(data)
            if done - shown >= _PROGRESS_EVERY:
                shown = done
                emit(Progress((LayerProgress(digest, total, done, done, "unpacking"),)))
        writer.finish()
    finally:
        writer.close()
        listing.close()
    emit(Progress((LayerProgress(digest, total, done, done, "done"),)))
    return NewLayer(digest, digest, "", staged, done, 1)


def _with_content(listing: _Listing, blocks: Blocks) -> Iterator[Entry | tuple[int, bytes]]:
    """Entries in order, each file followed by its data; blocks come in parallel, ahead."""
    waiting: deque[Entry | tuple[Entry, Future[bytes]]] = deque()
    stop = threading.Event()
    ahead = 0
    position = 0
    with ThreadPoolExecutor(_FETCHERS, thread_name_prefix="block") as pool:

        def read(block: Block) -> bytes:
            if stop.is_set():
                raise DataLoss("no longer wanted")
            return blocks.read(block)

        def flush(until: int) -> Iterator[Entry | tuple[int, bytes]]:
            nonlocal ahead, position
            while waiting and (ahead > until or until == 0):
                item = waiting.popleft()
                if isinstance(item, Entry):
                    position = 0
                    yield item
                    continue
                entry, future = item
                ahead -= 1
                try:
                    data = future.result()
                except Error as error:
                    raise type(error)(f"{os.fsdecode(entry.path)}: {error}") from error
                if position + len(data) > entry.size:
                    raise DataLoss(f"{os.fsdecode(entry.path)}: its blocks are longer than it")
                yield position, data
                position += len(data)
                if not _more(waiting) and position != entry.size:
                    raise _short(entry, position)

        try:
            for entry, contents in listing.entries():
                waiting.append(entry)
                for block in contents:
                    waiting.append((entry, pool.submit(read, block)))
                    ahead += 1
                    yield from flush(_AHEAD)
                if entry.kind is Kind.FILE and entry.size and not contents:
                    raise _short(entry, 0)
            yield from flush(0)
        finally:
            stop.set()


def _more(waiting: deque[Entry | tuple[Entry, Future[bytes]]]) -> bool:
    """Whether the next thing is another block of the same file."""
    return bool(waiting) and not isinstance(waiting[0], Entry)


def _short(entry: Entry, position: int) -> DataLoss:
    return DataLoss(
        f"{os.fsdecode(entry.path)}: its blocks have {position} bytes of its {entry.size}"
    )


class _Listing:
    """The flist's tables, read as data."""

    def __init__(self, path: Path, location: str) -> None:
        self._what = f"flist {location}"
        try:
            self._db = sqlite3.connect(
                f"{path.as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None
            )
            self._db.text_factory = bytes
            for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "query_only=ON"):
                self._db.execute(f"PRAGMA {pragma}")
            views = self._db.execute(
                "SELECT count(*) FROM sqlite_schema WHERE type != 'table' AND type != 'index'"
            ).fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise InvalidArgument(f"{self._what}: no flist: {error}") from error
        if views:
            raise InvalidArgument(f"{self._what}: it has views or triggers, no flist has")

    def close(self) -> None:
        self._db.close()

    def _rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise InvalidArgument(f"{self._what}: no flist, or a damaged one: {error}") from error

    def routes(self) -> list[Route]:
        found = []
        for start, end, url in self._rows("SELECT start, end, url FROM route"):
            if not (isinstance(start, int) and isinstance(end, int) and isinstance(url, bytes)):
                raise InvalidArgument(f"{self._what}: a route that is none")
            found.append(Route(start, end, url.decode("utf-8", "replace")))
        return found

    def total(self) -> int:
        """Bytes of all files together."""
        sql = "SELECT total(size) FROM inode WHERE mode & ? = ?"
        return int(self._rows(sql, 0o170000, stat.S_IFREG)[0][0])

    def entries(self) -> Iterator[tuple[Entry, list[Block]]]:
        """All that the root leads to, directories before what they hold."""
        children: dict[object, list[tuple[Any, ...]]] = {}
        root = None
        # One pass: who says that the tables have indexes?
        for row in self._rows(f"SELECT {_COLUMNS} FROM inode ORDER BY name LIMIT ?", MAX_INODES):
            if row[0] == _ROOT:
                root = row
            else:
                children.setdefault(row[-1], []).append(row)
        if root is None:
            raise InvalidArgument(f"{self._what}: it has no root (inode {_ROOT})")
        blocks: dict[object, list[tuple[Any, ...]]] = {}
        for row in self._rows("SELECT ino, id, key FROM block ORDER BY rowid"):
            blocks.setdefault(row[0], []).append(row)
        yield self._entry(root, b"."), []
        pending: deque[tuple[int, bytes]] = deque([(_ROOT, b"")])
        while pending:
            parent, path = pending.popleft()
            for row in children.pop(parent, ()):
                own = path + self._name(row[1])
                entry = self._entry(row, own)
                files = blocks.pop(row[0], []) if entry.kind is Kind.FILE else []
                yield entry, [self._block(block, own) for block in files]
                if entry.kind is Kind.DIRECTORY:
                    pending.append((row[0], own + b"/"))

    def _name(self, name: object) -> bytes:
        if not isinstance(name, bytes) or name in (b"", b".", b"..") or {*name} & {0, 0x2F}:
            raise InvalidArgument(f"{self._what}: {name!r} is no file's name")
        if name.startswith(b".wh."):
            raise InvalidArgument(f"{self._what}: {name!r} means something else in a layer")
        return name

    def _entry(self, row: tuple[Any, ...], path: bytes) -> Entry:
        if not all(isinstance(value, int) for value in (row[0], *row[2:8])):
            raise InvalidArgument(f"{self._what}: {os.fsdecode(path)}: a field is no number")
        ino, _, size, uid, gid, mode, rdev, mtime, _ = row
        kind = _KINDS.get(stat.S_IFMT(mode))
        if kind is None:
            raise InvalidArgument(f"{self._what}: {os.fsdecode(path)}: mode {mode:o}")
        bounds = ((uid, 32), (gid, 32), (size, 63), (rdev, 63))
        if not all(0 <= value < 1 << bits for value, bits in bounds):
            raise InvalidArgument(f"{self._what}: {os.fsdecode(path)}: a field can't be so large")
        return Entry(
            path=path,
            kind=kind,
            mode=stat.S_IMODE(mode),
            uid=uid,
            gid=gid,
            size=size if kind is Kind.FILE else 0,
            mtime=mtime * 1_000_000_000,
            link=self._target(ino) if kind is Kind.SYMLINK else b"",
            major=os.major(rdev) if kind in (Kind.CHAR, Kind.BLOCK) else 0,
            minor=os.minor(rdev) if kind in (Kind.CHAR, Kind.BLOCK) else 0,
        )

    def _target(self, ino: int) -> bytes:
        rows = self._rows("SELECT data FROM extra WHERE ino = ?", ino)
        target = rows[0][0] if rows else b""
        return target if isinstance(target, bytes) else b""

    def _block(self, row: tuple[Any, ...], path: bytes) -> Block:
        _, block_id, key = row
        if not all(isinstance(value, bytes) and len(value) == 32 for value in (block_id, key)):
            raise InvalidArgument(f"{self._what}: {os.fsdecode(path)}: a block that is none")
        return Block(block_id, key)
