"""From layers' archives to a finished image in a job's staging directory (worker's side).

Pulling and loading share this: several layers are unpacked at once, each into a directory of its
own; then, from the base up, what they took for granted from below is put right. Only then is the
result handed to the server.
"""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from zos_cri.errors import DataLoss, Error
from zos_cri.images import lowerfix, trees
from zos_cri.images.decompress import CompressionError
from zos_cri.images.directories import UnpackError
from zos_cri.images.fetch import Mismatch
from zos_cri.images.jobs import LayerProgress
from zos_cri.images.layerfs import Limits
from zos_cri.images.layout import Layout
from zos_cri.images.merged import MergedView
from zos_cri.images.model import Blob, NewLayer
from zos_cri.images.unpack import Unpacked, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zos_cri.images.decompress import Source
    from zos_cri.images.jobs import Job


class Tracker:
    """Where the layers of a job stand. Safe for several threads."""

    def __init__(self, blobs: Sequence[Blob]) -> None:
        self._lock = threading.Lock()
        self._layers = [LayerProgress(blob.digest, blob.size) for blob in blobs]

    def update(
        self, index: int, *, fetched: int | None = None, unpacked: int = 0, state: str | None = None
    ) -> None:
        """Args: fetched: bytes there now; unpacked: bytes more."""
        with self._lock:
            known = self._layers[index]
            self._layers[index] = LayerProgress(
                known.digest,
                known.size,
                known.fetched if fetched is None else fetched,
                known.unpacked + unpacked,
                state or known.state,
            )

    def snapshot(self) -> tuple[LayerProgress, ...]:
        with self._lock:
            return tuple(self._layers)


class Archives(Protocol):
    """Where the layers' archives come from."""

    def open(self, index: int, tracker: Tracker) -> Archive:
        """The archive of the layer at `index`."""


class Archive(Protocol):
    """One layer's archive, open."""

    def source(self) -> Source:
        """Its bytes from the beginning, digested as they are read."""

    def verify(self) -> None:
        """After the source was read: raises Mismatch where it isn't what the manifest names."""

    def retry(self) -> bool:
        """After Mismatch: whether another copy may be had. `source` starts it."""

    def keep(self) -> None:
        """Puts it among the blobs."""

    def close(self) -> None: ...


class Parts:
    """An image's parts, as its manifest and configuration name them."""

    def __init__(
        self,
        *,
        blobs: Sequence[Blob],
        diff_ids: Sequence[str],
        chain_ids: Sequence[str],
    ) -> None:
        self.blobs = tuple(blobs)
        self.diff_ids = tuple(diff_ids)
        self.chain_ids = tuple(chain_ids)


class Assembler:
    """Unpacks the layers of one image that the store doesn't have yet."""

    def __init__(self, job: Job, parts: Parts, tracker: Tracker) -> None:
        self._job = job
        self._parts = parts
        self._tracker = tracker
        self._layout = Layout(Path(job.root))
        self._failed = threading.Event()
        # Directories named alike would go where those of an earlier pull went.
        self._token = os.urandom(4).hex()

    def run(self, archives: Archives) -> tuple[NewLayer, ...]:
        """The layers that were missing, complete.

        Raises:
            Error: of the first layer that failed, its digest in front.
        """
        chain = self._parts.chain_ids
        missing = [
            n for n, c in enumerate(chain) if c not in self._job.layers and c not in chain[:n]
        ]
        for index in range(len(chain)):
            if index not in missing:
                self._tracker.update(index, state="done")
        made: dict[int, Unpacked] = {}
        pool = ThreadPoolExecutor(max(2, os.cpu_count() or 2) + 1, thread_name_prefix="layer")
        try:
            running = {pool.submit(self._layer, index, archives): index for index in missing}
            finished, _ = wait(running, return_when=FIRST_EXCEPTION)
            for future in sorted(finished, key=lambda f: f.exception() is None):
                made[running[future]] = future.result()
        finally:
            self._failed.set()
            pool.shutdown(wait=False, cancel_futures=True)
        for index in missing:
            self._fix(index, made[index])
        return tuple(self._new_layer(index) for index in missing)

    def staged(self, index: int) -> str:
        return f"{self._job.staging}/{index}-{self._token}"

    def _layer(self, index: int, archives: Archives) -> Unpacked:
        blob = self._parts.blobs[index]
        try:
            archive = archives.open(index, self._tracker)
            with contextlib.closing(archive):
                while True:
                    try:
                        unpacked = self._unpack(index, archive)
                        break
                    except Mismatch:
                        if not archive.retry():
                            raise
                        trees.remove(self.staged(index))
                archive.keep()
        except Error as error:
            raise type(error)(f"layer {blob.digest}: {error}") from error
        self._tracker.update(index, state="done")
        return unpacked

    def _unpack(self, index: int, archive: Archive) -> Unpacked:
        fetching = self._job.fetching
        limits = Limits(max_bytes=fetching.max_layer_bytes, min_free=fetching.min_free_bytes)
        staged = self.staged(index)
        os.mkdir(staged, 0o755)
        tracker = self._tracker
        source = archive.source()
        try:
            unpacked = unpack(
                source,
                staged,
                limits=limits,
                on_bytes=lambda count: tracker.update(index, unpacked=count),
            )
        except (CompressionError, DataLoss, UnpackError):
            archive.verify()  # if what came was wrong, that is what is wrong
            raise
        archive.verify()
        expected = self._parts.diff_ids[index]
        if unpacked.diff_id != expected:
            raise DataLoss(f"it unpacks to {unpacked.diff_id}, the configuration says {expected}")
        return unpacked

    def _fix(self, index: int, unpacked: Unpacked) -> None:
        if not (unpacked.implied or unpacked.missing_links or unpacked.whiteouts):
            return
        below = self._parts.chain_ids[:index]
        lower = MergedView([os.fsencode(self._directory(chain_id)) for chain_id in below])
        try:
            lowerfix.fix(self.staged(index), lower, unpacked)
        except Error as error:
            raise type(error)(f"layer {self._parts.blobs[index].digest}: {error}") from error

    def _directory(self, chain_id: str) -> str:
        number = self._job.layers.get(chain_id)
        if number is not None:
            return str(self._layout.layer(number))
        return self.staged(self._parts.chain_ids.index(chain_id))

    def _new_layer(self, index: int) -> NewLayer:
        usage = os.stat(self.staged(index))
        chain = self._parts.chain_ids
        unpacked = self._tracker.snapshot()[index].unpacked
        return NewLayer(
            chain_id=chain[index],
            diff_id=self._parts.diff_ids[index],
            parent=chain[index - 1] if index else "",
            staged=self.staged(index),
            bytes=unpacked + usage.st_blocks * 512,
            inodes=1,
        )


def reporting(
    tracker: Tracker, report: Callable[[tuple[LayerProgress, ...]], None], every: float
) -> contextlib.ExitStack:
    """Reports while inside: what has changed, at most once in `every` seconds."""
    stop = threading.Event()

    def run() -> None:
        last = None
        while not stop.wait(every):
            now = tracker.snapshot()
            if now != last:
                report(now)
                last = now

    thread = threading.Thread(target=run, name="progress", daemon=True)
    thread.start()
    stack = contextlib.ExitStack()
    stack.callback(thread.join)
    stack.callback(stop.set)
    return stack
