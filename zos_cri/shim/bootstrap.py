"""What goes to a shim's `start` on stdin, what comes back on stdout, and which dialect a binary
speaks. Pure, but for the small file that remembers the dialects.

Found by trying, with containerd's shims 1.6.20 and 2.4.2:

    stdin             shim 1.6.20                          shim 2.4.2
    BootstrapParams   "type with url <id>: not found", 1   starts, BootstrapResult
    Any               starts, text                         "parameters do not match", 1
    nothing           starts, text                         "deprecated API", 1

2.0 to 2.2 start whatever they are given, answer in JSON, and see options in an Any only. So an
answer that isn't a BootstrapResult to BootstrapParams means that the options weren't seen.
"""

from __future__ import annotations

import enum
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
from google.protobuf.message import DecodeError

from zos_cri import errors
from zos_cri._pb import bootstrap_pb2
from zos_cri.log import get_log
from zos_cri.shim.bundle import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from google.protobuf.any_pb2 import Any as AnyMessage

_log = get_log(__name__)

# Binaries ever started by one installation: a handful of shims and their upgrades.
_MAX_REMEMBERED: Final = 64


class Dialect(enum.StrEnum):
    """What `start` reads on stdin, in the order of trying."""

    PARAMS = "BootstrapParams"
    ANY = "options in an Any"
    NONE = "nothing"


class Encoding(enum.StrEnum):
    """What `start` writes on stdout."""

    PROTOBUF = "protobuf"
    JSON = "json"
    TEXT = "text"


class Result(msgspec.Struct, frozen=True):
    """Where a shim listens.

    Attributes:
        version: of its Task API.
        protocol: "ttrpc" or "grpc".
    """

    address: str
    protocol: str
    version: int
    encoding: Encoding


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What every dialect is made from; addresses as in `Launcher`."""

    id: str
    namespace: str
    events_address: str
    grpc_address: str
    publish_binary: str
    socket_dir: str
    options: AnyMessage | None = None
    debug: bool = False


def stdin(dialect: Dialect, parameters: Parameters) -> bytes:
    """What `start` is given."""
    if dialect is Dialect.NONE:
        return b""
    options = parameters.options
    if dialect is Dialect.ANY:
        return options.SerializeToString() if options is not None else b""
    debug, info = bootstrap_pb2.LOG_LEVEL_DEBUG, bootstrap_pb2.LOG_LEVEL_INFO
    message = bootstrap_pb2.BootstrapParams(
        instance_id=parameters.id,
        namespace=parameters.namespace,
        log_level=debug if parameters.debug else info,
        containerd_grpc_address=parameters.grpc_address,
        containerd_ttrpc_address=parameters.events_address,
        containerd_binary=parameters.publish_binary,
        socket_dir=parameters.socket_dir,
    )
    if options is not None:
        message.extensions.add().value.CopyFrom(options)
    return message.SerializeToString()


def parse(stdout: bytes) -> Result:
    """A shim's answer: protobuf, else JSON, else an address alone.

    Raises:
        Internal: none of them.
    """
    for reader in (_parse_protobuf, _parse_json, _parse_text):
        result = reader(stdout)
        if result is not None:
            return result
    raise errors.Internal(f"no address in the shim's answer {stdout[:200]!r}")


def _parse_protobuf(stdout: bytes) -> Result | None:
    try:
        message = bootstrap_pb2.BootstrapResult.FromString(stdout)
    except DecodeError:
        return None
    if not message.address or message.protocol not in {"ttrpc", "grpc"}:
        return None  # some texts happen to be protobuf
    return Result(message.address, message.protocol, message.version, Encoding.PROTOBUF)


def _parse_json(stdout: bytes) -> Result | None:
    try:
        document = json.loads(stdout)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or not isinstance(document.get("address"), str):
        return None
    version = document.get("version", 2)
    if not isinstance(version, int):
        return None
    protocol = str(document.get("protocol") or "ttrpc")
    return Result(document["address"], protocol, version, Encoding.JSON)


def _parse_text(stdout: bytes) -> Result | None:
    try:
        text = stdout.decode().strip()
    except UnicodeDecodeError:
        return None
    if not text or not text.isprintable() or len(text.split()) != 1 or text.startswith("{"):
        return None
    return Result(text, "ttrpc", 2, Encoding.TEXT)


class Identity(msgspec.Struct, frozen=True):
    """A binary as it was: an upgrade makes another inode or mtime."""

    path: str
    inode: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str) -> Identity:
        status = os.stat(path)
        return cls(path, status.st_ino, status.st_mtime_ns)


class _Remembered(msgspec.Struct, frozen=True):
    identity: Identity
    dialect: Dialect


class DialectCache:
    """Which dialect a binary speaks, in memory and in a small file.

    The file is only a saving of a failed try: it may be missing, damaged or old.

    Args:
        path: the file, None for memory only.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[Identity, Dialect] | None = None

    def get(self, identity: Identity) -> Dialect | None:
        return self._load().get(identity)

    def to_try(self, identity: Identity) -> Iterator[Dialect]:
        """The known dialect alone, or all of them in order."""
        known = self.get(identity)
        yield from [known] if known is not None else Dialect

    def learn(self, identity: Identity, dialect: Dialect) -> None:
        known = self._load()
        if known.get(identity) is not dialect:
            known[identity] = dialect
            self._save()

    def forget(self, identity: Identity) -> None:
        """A start failed: perhaps because of the dialect, as behind a wrapper script."""
        if self._load().pop(identity, None) is not None:
            self._save()

    def _load(self) -> dict[Identity, Dialect]:
        if self._known is None:
            self._known = {}
            try:
                data = self._path.read_bytes() if self._path is not None else b"[]"
                entries = msgspec.json.decode(data, type=list[_Remembered])
                self._known = {entry.identity: entry.dialect for entry in entries}
            except FileNotFoundError:
                pass
            except (OSError, msgspec.DecodeError) as error:
                _log.warning("shim dialects not read", path=self._path, error=error)
        return self._known

    def _save(self) -> None:
        if self._path is None or self._known is None:
            return
        entries = [_Remembered(*item) for item in self._known.items()][-_MAX_REMEMBERED:]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, msgspec.json.encode(entries), 0o600)
        except OSError as error:
            _log.warning("shim dialects not saved", path=self._path, error=error)
