"""Writes flists and their blocks, from the format's description alone: no code of ours."""

from __future__ import annotations

import hashlib
import sqlite3
import stat
from typing import TYPE_CHECKING

import cramjam
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

BLOCK = 512 * 1024


def blake(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32).digest()


def seal(plain: bytes) -> tuple[bytes, bytes, bytes]:
    """A block's id, key and what is stored."""
    key = blake(plain)
    packed = bytes(cramjam.snappy.compress_raw(plain))
    stored = AESGCM(key).encrypt(key[:12], packed, None)
    return blake(stored), key, stored


class Flist:
    """An flist under construction; `blocks` holds what its stores shall have."""

    def __init__(self, path: Path, routes: Iterable[tuple[int, int, str]]) -> None:
        self.path = path
        self.blocks: dict[bytes, bytes] = {}
        self._next = 2
        self._ids: dict[str, int] = {"": 1}
        self.db = sqlite3.connect(path)
        self.db.executescript(
            """
            CREATE TABLE inode (ino INTEGER PRIMARY KEY AUTOINCREMENT, parent INTEGER,
                name VARCHAR(255), size INTEGER, uid INTEGER, gid INTEGER, mode INTEGER,
                rdev INTEGER, ctime INTEGER, mtime INTEGER);
            CREATE TABLE extra (ino INTEGER PRIMARY KEY, data VARCHAR(4096));
            CREATE TABLE block (ino INTEGER, id VARCHAR(32), key VARCHAR(32));
            CREATE TABLE tag (key VARCHAR(10) PRIMARY KEY, value VARCHAR(255));
            CREATE TABLE route (start INTEGER, end INTEGER, url VARCHAR(2048));
            INSERT INTO tag VALUES ('version', '1'), ('block-size', '524288');
            """
        )
        self.db.executemany("INSERT INTO route VALUES (?, ?, ?)", list(routes))
        self._insert(1, 0, "/", mode=stat.S_IFDIR | 0o755)

    def _insert(self, ino: int, parent: int, name: str, **fields: int) -> None:
        row = {"size": 0, "uid": 0, "gid": 0, "mode": 0, "rdev": 0, "mtime": 1000, **fields}
        self.db.execute(
            "INSERT INTO inode VALUES (:ino, :parent, :name, :size, :uid, :gid, :mode, :rdev,"
            " :mtime, :mtime)",
            {"ino": ino, "parent": parent, "name": name, **row},
        )

    def add(self, path: str, **fields: int) -> int:
        """An inode; `mode` with its type bits. Directories above must be there."""
        parent, _, name = path.rpartition("/")
        ino = self._next
        self._next += 1
        self._ids[path] = ino
        self._insert(ino, self._ids[parent], name, **fields)
        return ino

    def directory(self, path: str, mode: int = 0o755, **fields: int) -> None:
        self.add(path, mode=stat.S_IFDIR | mode, **fields)

    def file(self, path: str, content: bytes, mode: int = 0o644, **fields: int) -> list[bytes]:
        """A regular file; answers its blocks' ids."""
        given = {"size": len(content), **fields}
        ino = self.add(path, mode=stat.S_IFREG | mode, **given)
        ids = []
        for start in range(0, len(content), BLOCK):
            block_id, key, stored = seal(content[start : start + BLOCK])
            self.blocks[block_id] = stored
            self.db.execute("INSERT INTO block VALUES (?, ?, ?)", (ino, block_id, key))
            ids.append(block_id)
        return ids

    def symlink(self, path: str, target: str) -> None:
        ino = self.add(path, mode=stat.S_IFLNK | 0o777)
        self.db.execute("INSERT INTO extra VALUES (?, ?)", (ino, target))

    def close(self) -> None:
        self.db.commit()
        self.db.close()

    def write_blocks(self, folder: Path, *, flat: bool = False) -> None:
        """Puts the blocks where a `dir://` or `http://` store has them."""
        for block_id, stored in self.blocks.items():
            name = block_id.hex()
            place = folder / name if flat else folder / name[:2] / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(stored)
