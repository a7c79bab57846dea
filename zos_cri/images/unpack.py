"""A layer's archive into its directory: decompress, digest, parse and write in one pass.

For a layer by itself one thread reads ahead and decompresses, the caller's digests and parses: each
half spends its time in C code without the GIL, so a single large layer uses two cores.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri.errors import DataLoss
from zos_cri.images.decompress import decompressed
from zos_cri.images.writing import CHUNK, Here
from zos_cri.wire.tarheader import TarError
from zos_cri.wire.tarstream import TarReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from zos_cri.images.decompress import Source, Stream
    from zos_cri.images.layerfs import Limits
    from zos_cri.images.writing import Sink

_AHEAD: Final = 16  # chunks decompressed before they are needed


class Unpacked(msgspec.Struct, frozen=True):
    """What `unpack` has made, and what it leaves to `lowerfix.fix`."""

    diff_id: str
    implied: tuple[bytes, ...]
    missing_links: tuple[tuple[bytes, bytes], ...]
    whiteouts: tuple[bytes, ...]


def unpack(
    source: Source,
    root: str,
    *,
    limits: Limits | None = None,
    ahead: bool = True,
    on_bytes: Callable[[int], None] | None = None,
) -> Unpacked:
    """Unpacks an archive into the empty directory `root`.

    Args:
        source: the archive as it was transferred, compressed or not.
        ahead: read and decompress in a thread of its own; not worth it where every processor has a
            layer to unpack anyway.
        on_bytes: told of each piece's length after decompression.

    Raises:
        UnpackError: no layer may hold this; the message names the entry.
        CompressionError: the compressed stream is damaged.
        DataLoss: the archive is damaged.
        ResourceExhausted: it is larger than it may be, or the disk is full.
    """
    return unpack_into(source, Here(root, limits), ahead=ahead, on_bytes=on_bytes)


def unpack_into(
    source: Source,
    sink: Sink,
    *,
    ahead: bool = True,
    on_bytes: Callable[[int], None] | None = None,
) -> Unpacked:
    """As `unpack`, into a sink, which is closed in the end."""
    digest = hashlib.sha256()
    reader = TarReader()
    try:
        stream = decompressed(source)
        for chunk in _ahead(stream) if ahead else _chunks(stream):
            digest.update(chunk)
            sink.take(chunk, reader.feed(chunk))
            if on_bytes is not None:
                on_bytes(len(chunk))
        reader.close()
        written = sink.finish()
    except TarError as error:
        raise DataLoss(str(error)) from error
    finally:
        sink.close()
    return Unpacked(
        f"sha256:{digest.hexdigest()}",
        written.implied,
        written.missing_links,
        written.whiteouts,
    )


def _chunks(stream: Stream) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK):
        yield chunk


def _ahead(stream: Stream) -> Iterator[bytes]:
    """The stream's content, read by a thread that is a few chunks ahead."""
    chunks: queue.Queue[bytes | BaseException] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def run() -> None:
        try:
            while not stopped.is_set():
                chunk = stream.read(CHUNK)
                chunks.put(chunk)
                if not chunk:
                    return
        except BaseException as error:
            chunks.put(error)

    thread = threading.Thread(target=run, name="decompress", daemon=True)
    thread.start()
    try:
        while True:
            chunk = chunks.get()
            if isinstance(chunk, BaseException):
                raise chunk
            if not chunk:
                return
            yield chunk
    finally:
        stopped.set()
        while thread.is_alive():  # it may be waiting for room
            try:
                chunks.get(timeout=0.01)
            except queue.Empty:
                continue
        thread.join()
