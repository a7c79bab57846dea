"""The catalogue: which images, layers and containers' root filesystems there are.

One SQLite file (WAL), written by one thread, and the whole of it in memory for reads. What it names
is complete; whether it is on disk too, `seals` says. Whatever lies in the store without a row is
garbage.

`synchronous=NORMAL`: a crash of the host may lose the last transactions, never part of one. A lost
image is pulled again, a removed one that is there again lacks its layers and is found out.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zos_cri.errors import DataLoss, FailedPrecondition
from zos_cri.images.model import Blob, Image, Layer, NewImage, Usage, parse_config
from zos_cri.log import get_log

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_log = get_log(__name__)

FORMAT: Final = 1
_BUSY_TIMEOUT: Final = 5.0  # seconds; only a person's sqlite3 can be in the way
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS layer (
    n INTEGER PRIMARY KEY, chain_id TEXT NOT NULL UNIQUE, diff_id TEXT NOT NULL,
    parent TEXT NOT NULL, bytes INTEGER NOT NULL, inodes INTEGER NOT NULL, seal TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS image (
    id TEXT PRIMARY KEY, config BLOB NOT NULL, chain_ids TEXT NOT NULL, pinned INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS manifest (
    digest TEXT PRIMARY KEY, image_id TEXT NOT NULL, media_type TEXT NOT NULL, body BLOB NOT NULL,
    blobs TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS name (key TEXT PRIMARY KEY, image_id TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS container (
    id TEXT PRIMARY KEY, image_id TEXT NOT NULL, chain_ids TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""


class Manifest(msgspec.Struct, frozen=True):
    """A platform's manifest of an image, and the archives that it names."""

    digest: str
    image_id: str
    media_type: str
    blobs: tuple[Blob, ...]


class Catalog:
    """Rows and their values in memory. Methods that write belong to one thread, the writer's."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the file.

        Raises:
            FailedPrecondition: a newer version wrote it.
            DataLoss: it is no SQLite file, or a damaged one.
        """
        self._path = path
        self.layers: dict[str, Layer] = {}
        self.images: dict[str, Image] = {}
        self.names: dict[str, str] = {}
        self.manifests: dict[str, Manifest] = {}
        self.containers: dict[str, tuple[str, tuple[str, ...]]] = {}
        try:
            self._db = self._open()
            self._load()
        except (sqlite3.DatabaseError, msgspec.DecodeError) as error:
            raise DataLoss(f"{path}: {error}: move it away to start anew") from error

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self._path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        found = int(db.execute("PRAGMA user_version").fetchone()[0])
        if found > FORMAT:
            db.close()
            raise FailedPrecondition(
                f"{self._path}: format {found} is newer than {FORMAT}, the newest this version"
                " knows: run the version that wrote it"
            )
        db.executescript(_SCHEMA)
        db.execute(f"PRAGMA user_version={FORMAT}")
        self._path.chmod(0o600)
        return db

    def close(self) -> None:
        self._db.close()

    def _load(self) -> None:
        for row in self._db.execute(
            "SELECT n, chain_id, diff_id, parent, bytes, inodes, seal FROM layer"
        ):
            self.layers[row[1]] = Layer(*row)
        for digest, image_id, media_type, blobs in self._db.execute(
            "SELECT digest, image_id, media_type, blobs FROM manifest"
        ):
            decoded = msgspec.json.decode(blobs, type=tuple[Blob, ...])
            self.manifests[digest] = Manifest(digest, image_id, media_type, decoded)
        self.names.update(self._db.execute("SELECT key, image_id FROM name"))
        for container_id, image_id, chain_ids in self._db.execute(
            "SELECT id, image_id, chain_ids FROM container"
        ):
            self.containers[container_id] = (image_id, _split(chain_ids))
        for image_id, config, chain_ids, pinned in self._db.execute(
            "SELECT id, config, chain_ids, pinned FROM image"
        ):
            self._remember(image_id, config, _split(chain_ids), pinned=bool(pinned))

    def _remember(
        self, image_id: str, config: bytes, chain_ids: tuple[str, ...], *, pinned: bool
    ) -> None:
        try:
            parsed, document = parse_config(config)
        except ValueError as error:
            _log.error("image configuration unreadable", image=image_id, error=error)
            return
        tags, digests = self._names_of(image_id)
        self.images[image_id] = Image(
            id=image_id,
            repo_tags=tags,
            repo_digests=digests,
            size=self._size(image_id, chain_ids, len(config)),
            config=parsed,
            chain_ids=chain_ids,
            pinned=pinned,
            created=str(document.get("created") or ""),
            architecture=str(document.get("architecture") or ""),
            os=str(document.get("os") or "linux"),
            variant=str(document.get("variant") or ""),
        )

    def _names_of(self, image_id: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        keys = sorted(key for key, owner in self.names.items() if owner == image_id)
        return tuple(k for k in keys if "@" not in k), tuple(k for k in keys if "@" in k)

    def _size(self, image_id: str, chain_ids: tuple[str, ...], config: int) -> int:
        layers = (self.layers.get(chain_id) for chain_id in chain_ids)
        return (
            config
            + sum(layer.bytes for layer in layers if layer)
            + sum({b.digest: b.size for b in self.blobs_of(image_id)}.values())
        )

    def blobs_of(self, image_id: str) -> list[Blob]:
        """The archives that any of the image's manifests names."""
        owned = [m for m in self.manifests.values() if m.image_id == image_id]
        return [blob for manifest in owned for blob in manifest.blobs]

    # Writes. SQL first, memory after: what can be seen is in the file.

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def add_image(self, new: NewImage, layers: list[Layer], *, pinned: bool = False) -> Image:
        """Names an image and its new layers, which lie in their places already.

        Names that belonged to another image are this one's from now on.
        """
        blobs = msgspec.json.encode(new.blobs).decode()
        was = self.images.get(new.id)
        pinned = pinned or (was is not None and was.pinned)
        with self._transaction() as db:
            for layer in layers:
                db.execute(
                    "INSERT INTO layer (n, chain_id, diff_id, parent, bytes, inodes, seal)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    msgspec.structs.astuple(layer),
                )
            db.execute(
                "INSERT OR REPLACE INTO image (id, config, chain_ids, pinned) VALUES (?, ?, ?, ?)",
                (new.id, new.config, " ".join(new.chain_ids), int(pinned)),
            )
            db.execute(
                "INSERT OR REPLACE INTO manifest (digest, image_id, media_type, body, blobs)"
                " VALUES (?, ?, ?, ?, ?)",
                (new.manifest_digest, new.id, new.manifest_type, new.manifest, blobs),
            )
            db.executemany(
                "INSERT OR REPLACE INTO name (key, image_id) VALUES (?, ?)",
                [(name, new.id) for name in new.names],
            )
        for layer in layers:
            self.layers[layer.chain_id] = layer
        self.manifests[new.manifest_digest] = Manifest(
            new.manifest_digest, new.id, new.manifest_type, new.blobs
        )
        robbed = {self.names[name] for name in new.names if name in self.names} - {new.id}
        self.names.update(dict.fromkeys(new.names, new.id))
        self._remember(new.id, new.config, new.chain_ids, pinned=pinned)
        for image_id in robbed:
            self._refresh_names(image_id)
        return self.images[new.id]

    def add_names(self, image_id: str, names: tuple[str, ...]) -> Image:
        """Further names for an image that is there already."""
        with self._transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO name (key, image_id) VALUES (?, ?)",
                [(name, image_id) for name in names],
            )
        robbed = {self.names[name] for name in names if name in self.names} - {image_id}
        self.names.update(dict.fromkeys(names, image_id))
        for changed in (image_id, *robbed):
            self._refresh_names(changed)
        return self.images[image_id]

    def _refresh_names(self, image_id: str) -> None:
        image = self.images.get(image_id)
        if image is not None:
            tags, digests = self._names_of(image_id)
            self.images[image_id] = msgspec.structs.replace(
                image, repo_tags=tags, repo_digests=digests
            )

    def remove_image(self, image_id: str) -> None:
        """Forgets an image and all its names; its layers' rows stay until `drop_layers`."""
        with self._transaction() as db:
            db.execute("DELETE FROM name WHERE image_id = ?", (image_id,))
            db.execute("DELETE FROM manifest WHERE image_id = ?", (image_id,))
            db.execute("DELETE FROM image WHERE id = ?", (image_id,))
        self.images.pop(image_id, None)
        self.names = {key: owner for key, owner in self.names.items() if owner != image_id}
        self.manifests = {d: m for d, m in self.manifests.items() if m.image_id != image_id}

    def drop_layers(self, chain_ids: list[str]) -> None:
        """Forgets layers; their directories may be removed after this."""
        with self._transaction() as db:
            db.executemany("DELETE FROM layer WHERE chain_id = ?", [(c,) for c in chain_ids])
        for chain_id in chain_ids:
            self.layers.pop(chain_id, None)

    def _undamaged(self, number: int) -> Layer | None:
        for layer in self.layers.values():
            if layer.n == number:
                return None if layer.damaged else layer
        return None

    def set_seal(self, number: int, seal: str, usage: Usage) -> None:
        """Records what a layer's tree looked like when it was known to be whole."""
        layer = self._undamaged(number)
        if layer is None:
            return
        chain_id = layer.chain_id
        with self._transaction() as db:
            db.execute(
                "UPDATE layer SET seal = ?, bytes = ?, inodes = ? WHERE n = ?",
                (seal, usage.bytes, usage.inodes, number),
            )
        self.layers[chain_id] = msgspec.structs.replace(
            layer, seal=seal, bytes=usage.bytes, inodes=usage.inodes
        )
        for image_id, image in list(self.images.items()):
            if chain_id in image.chain_ids:
                size = image.size - layer.bytes + usage.bytes
                self.images[image_id] = msgspec.structs.replace(image, size=size)

    def set_damaged(self, number: int) -> list[str] | None:
        """A layer isn't what it was: forgets the images that stand on it, so that they are pulled
        again, and gives the layer another name for the containers that use it still.

        Returns:
            The ids of the images; None: the layer has gone, or was known to be damaged.
        """
        layer = self._undamaged(number)
        if layer is None:
            return None
        chain_id = layer.chain_id
        damaged = layer.as_damaged()
        name = damaged.chain_id
        gone = [i.id for i in list(self.images.values()) if chain_id in i.chain_ids]
        for image_id in gone:
            self.remove_image(image_id)
        with self._transaction() as db:
            db.execute("UPDATE layer SET chain_id = ? WHERE n = ?", (name, number))
            db.execute(
                "UPDATE container SET chain_ids = replace(chain_ids, ?, ?)", (chain_id, name)
            )
        del self.layers[chain_id]
        self.layers[name] = damaged
        for container_id, (image_id, chain_ids) in list(self.containers.items()):
            if chain_id in chain_ids:
                renamed = tuple(name if c == chain_id else c for c in chain_ids)
                self.containers[container_id] = (image_id, renamed)
        return gone

    def add_container(self, container_id: str, image_id: str, chain_ids: tuple[str, ...]) -> None:
        """Records that a container's root filesystem stands on these layers."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO container (id, image_id, chain_ids) VALUES (?, ?, ?)",
                (container_id, image_id, " ".join(chain_ids)),
            )
        self.containers[container_id] = (image_id, chain_ids)

    def remove_container(self, container_id: str) -> None:
        with self._transaction() as db:
            db.execute("DELETE FROM container WHERE id = ?", (container_id,))
        self.containers.pop(container_id, None)

    def boot_id(self) -> str:
        """The boot of the host in which the store was last open; empty for a new store."""
        row = self._db.execute("SELECT value FROM meta WHERE key = 'boot_id'").fetchone()
        return str(row[0]) if row else ""

    def set_boot_id(self, boot_id: str) -> None:
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('boot_id', ?)", (boot_id,))

    # Reads that go to the file, for what is too large to hold.

    def raw_config(self, image_id: str) -> bytes:
        """The configuration's bytes. Raises KeyError for an unknown image."""
        return self._bytes("SELECT config FROM image WHERE id = ?", image_id)

    def raw_manifest(self, digest: str) -> bytes:
        """A manifest's bytes. Raises KeyError for an unknown one."""
        return self._bytes("SELECT body FROM manifest WHERE digest = ?", digest)

    def _bytes(self, sql: str, key: str) -> bytes:
        row: tuple[Any, ...] | None = self._db.execute(sql, (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        return bytes(row[0])

    # What is in use.

    def unused_layers(self) -> list[Layer]:
        """Layers of no image and no container, the uppermost first."""
        used = {c for image in self.images.values() for c in image.chain_ids}
        used.update(c for _, chain_ids in self.containers.values() for c in chain_ids)
        return sorted(
            (layer for chain_id, layer in self.layers.items() if chain_id not in used),
            key=lambda layer: -layer.n,
        )

    def used_blobs(self) -> set[str]:
        """Digests of the archives that some manifest names."""
        return {blob.digest for m in self.manifests.values() for blob in m.blobs}


def _split(chain_ids: str) -> tuple[str, ...]:
    return tuple(chain_ids.split())
