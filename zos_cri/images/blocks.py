"""Blocks of flists: from their stores, through a cache, verified and opened.

A block is named by the digest of what is stored (its id), so any store and the cache are checked
before anything is made of its bytes; and its key is the digest of what is in it, so the result of
decryption is checked too.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import unquote, urlsplit

import cramjam
import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from zos_cri.errors import DataLoss, Error, NotFound, Unavailable, Unimplemented
from zos_cri.images.hosts import Host
from zos_cri.images.http import Client, TransferError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zos_cri.images.model import Floor

# rfs cuts files into 512 KiB; a tag may say otherwise, but not beyond this.
MAX_BLOCK: Final = 4 << 20
# Compressed data that don't compress grow by a sixth at most, and GCM adds a tag of 16 bytes.
_MAX_STORED: Final = MAX_BLOCK + MAX_BLOCK // 6 + 64
_NONCE: Final = 12
_TIMEOUT: Final = 30.0  # seconds; for connecting to a store and for each answer


class Block(msgspec.Struct, frozen=True):
    """A block as an flist names it: 32 bytes each."""

    id: bytes
    key: bytes


class Route(msgspec.Struct, frozen=True):
    """The store of the blocks whose id begins with a byte from `start` to `end`."""

    start: int
    end: int
    url: str


class Store(Protocol):
    """Where blocks lie. Safe for several threads."""

    def get(self, block_id: bytes) -> bytes:
        """What is stored under an id, unchecked.

        Raises:
            NotFound: it isn't there.
            Unavailable: the store didn't answer.
        """


class Blocks:
    """Reads blocks of one flist. Safe for several threads."""

    def __init__(self, routes: Sequence[Route], cache: Path, floor: Floor) -> None:
        self._routes = tuple(routes)
        self._cache = cache
        self._floor = floor
        self._stores: dict[str, Store] = {}
        self._lock = threading.Lock()

    def read(self, block: Block) -> bytes:
        """A block's plain content.

        Raises:
            DataLoss: what is in the block isn't what its key says.
            NotFound: no route leads to it, or no store has it; the message says what each said.
            Unavailable: a store that might have it didn't answer.
        """
        stored = self._cached(block.id)
        if stored is None:
            stored = self._fetch(block.id)
            self._keep(block.id, stored)
        return open_block(block, stored)

    def _cached(self, block_id: bytes) -> bytes | None:
        path = self._path(block_id)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        if _hash(content) != block_id:  # a crash, or a bad disk
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)  # what isn't used any more goes, in time
        return content

    def _keep(self, block_id: bytes, stored: bytes) -> None:
        path = self._path(block_id)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        temporary.write_bytes(stored)
        os.replace(temporary, path)

    def _path(self, block_id: bytes) -> Path:
        name = block_id.hex()
        return self._cache / name[:2] / name

    def _fetch(self, block_id: bytes) -> bytes:
        routes = [route for route in self._routes if route.start <= block_id[0] <= route.end]
        if not routes:
            raise NotFound(f"block {block_id.hex()}: no route leads to it")
        said: list[str] = []
        absent = True
        for route in routes:
            try:
                stored = self._store(route.url).get(block_id)
            except Error as error:
                absent = absent and isinstance(error, NotFound)
                said.append(f"{without_secrets(route.url)}: {error}")
                continue
            if _hash(stored) == block_id:
                return stored
            absent = False
            said.append(f"{without_secrets(route.url)}: its content has another hash")
        message = f"block {block_id.hex()}: {'; '.join(said)}"
        raise NotFound(message) if absent else Unavailable(message)

    def _store(self, url: str) -> Store:
        with self._lock:
            store = self._stores.get(url)
            if store is None:
                store = self._stores[url] = open_store(url, self._floor)
            return store


def open_block(block: Block, stored: bytes) -> bytes:
    """Decrypts, decompresses and checks what is stored of a block.

    Raises:
        DataLoss: it isn't what the block's key says.
    """
    name = block.id.hex()
    try:
        packed = AESGCM(block.key).decrypt(block.key[:_NONCE], stored, None)
    except (InvalidTag, ValueError) as error:
        raise DataLoss(f"block {name}: it can't be decrypted by its key") from error
    try:
        length = cramjam.snappy.decompress_raw_len(packed)
        if length > MAX_BLOCK:
            raise DataLoss(f"block {name}: {length} bytes, more than {MAX_BLOCK}")
        plain = bytes(cramjam.snappy.decompress_raw(packed))
    except cramjam.DecompressionError as error:
        raise DataLoss(f"block {name}: it can't be decompressed: {error}") from error
    if _hash(plain) != block.key:
        raise DataLoss(f"block {name}: its content has another hash than its key says")
    return plain


def open_store(url: str, floor: Floor) -> Store:
    """The store that a route names.

    Raises:
        Unimplemented: its kind isn't known here.
        DataLoss: the URL is none.
    """
    parts = urlsplit(url)
    if parts.scheme == "dir":
        return _DirectoryStore(Path(unquote(parts.path)))
    if parts.scheme in ("http", "https") and parts.netloc:
        return _HttpStore(parts.scheme, parts.netloc, parts.path, floor)
    if parts.scheme == "zdb" and parts.hostname and parts.port:
        return _ZdbStore(
            (parts.hostname, parts.port), unquote(parts.path.strip("/")), parts.password or ""
        )
    raise Unimplemented(f"stores of the kind {parts.scheme or url!r}")


def without_secrets(url: str) -> str:
    """A store's URL without user and password."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


class _DirectoryStore:
    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, block_id: bytes) -> bytes:
        name = block_id.hex()
        for path in (self._path / name[:2] / name, self._path / name):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise Unavailable(error.strerror or str(error)) from error
            with os.fdopen(fd, "rb") as file:
                return file.read(_MAX_STORED + 1)
        raise NotFound("it isn't there")


class _HttpStore:
    def __init__(self, scheme: str, netloc: str, path: str, floor: Floor) -> None:
        self._client = Client(Host(scheme, netloc, path.rstrip("/")), floor=floor, connections=16)

    def get(self, block_id: bytes) -> bytes:
        name = block_id.hex()
        for path in (f"/{name[:2]}/{name}", f"/{name}"):
            try:
                response = self._client.request("GET", path)
                try:
                    if response.status == 200:
                        return response.body(_MAX_STORED)
                    response.body(1 << 16)
                finally:
                    response.close()
            except TransferError as error:
                raise Unavailable(str(error)) from error
            if response.status != 404:
                raise Unavailable(f"HTTP {response.status}")
        raise NotFound("it isn't there")


class _ZdbStore:
    """0-db: Redis' protocol, keys are raw ids. One connection for each thread."""

    def __init__(self, address: tuple[str, int], namespace: str, password: str) -> None:
        self._address = address
        self._select = [namespace.encode(), *([password.encode()] if password else [])]
        self._local = threading.local()

    def get(self, block_id: bytes) -> bytes:
        try:
            connection = getattr(self._local, "connection", None) or self._connect()
            self._local.connection = connection
            answer = connection.ask(b"GET", block_id)
        except (OSError, EOFError) as error:
            self._local.connection = None
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Unavailable(text) from error
        if answer is None:
            raise NotFound("it isn't there")
        return answer

    def _connect(self) -> _Redis:
        connection = _Redis(socket.create_connection(self._address, _TIMEOUT))
        if self._select[0]:
            connection.ask(b"SELECT", *self._select)
        return connection


class _Redis:
    """As much of Redis' protocol as 0-db needs (RESP 2)."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._file = sock.makefile("rb")

    def ask(self, *words: bytes) -> bytes | None:
        """One command's answer. Raises OSError for an error, EOFError at the connection's end."""
        command = b"*%d\r\n" % len(words)
        command += b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
        self._socket.sendall(command)
        line = self._file.readline(4096)
        if not line.endswith(b"\r\n"):
            raise EOFError("the connection was closed")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b"-":
            text = rest.decode(errors="replace")
            if "not found" in text.lower():
                return None
            raise OSError(0, text)
        if kind != b"$" or not rest.lstrip(b"-").isdigit():
            raise OSError(0, f"an answer that is none: {line[:40]!r}")
        length = int(rest)
        if length < 0:
            return None
        if length > _MAX_STORED:
            raise OSError(0, f"a value of {length} bytes")
        data = self._file.read(length + 2)
        if len(data) != length + 2:
            raise EOFError("the connection was closed")
        return data[:-2]


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=32).digest()
