"""From layers' archives to a finished image in a job's staging directory (worker's side).

Pulling and loading share this: several layers are unpacked at once, by a process for each
processor, each layer into a directory of its own; then, from the base up, what they took for
granted from below is put right. Only then is the result handed to the server.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from zos_cri.errors import DataLoss, Error
from zos_cri.images import helpers, lowerfix, trees
from zos_cri.images.decompress import CompressionError
from zos_cri.images.directories import UnpackError
from zos_cri.images.fetch import Mismatch
from zos_cri.images.jobs import STATES, LayerProgress
from zos_cri.images.layerfs import Limits
from zos_cri.images.layout import Layout
from zos_cri.images.merged import MergedView
from zos_cri.images.model import Blob, NewLayer
from zos_cri.images.unpack import Unpacked, unpack_into
from zos_cri.images.writing import Apart, Here

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zos_cri.images.decompress import Source
    from zos_cri.images.jobs import Job
    from zos_cri.images.writing import Sink

# Often enough for a bar that moves, seldom enough to cost nothing.
_REPORT_EVERY: Final = 0.2
_FIELDS: Final = 3  # of a layer's progress
_WORD: Final = 8


class Tracker:
    """Where the layers of a job stand. Safe for several threads, and shared with processes that are
    forked, as long as each layer is one process' only."""

    def __init__(self, blobs: Sequence[Blob]) -> None:
        self._lock = threading.Lock()
        self._blobs = tuple(blobs)
        # fetched, unpacked and the state's number of each
        memory = mmap.mmap(-1, _FIELDS * _WORD * max(1, len(self._blobs)))
        self._numbers = memoryview(memory).cast("q")

    def update(
        self, index: int, *, fetched: int | None = None, unpacked: int = 0, state: str | None = None
    ) -> None:
        """Args: fetched: bytes there now; unpacked: bytes more."""
        numbers, at = self._numbers, index * _FIELDS
        with self._lock:
            if fetched is not None:
                numbers[at] = fetched
            numbers[at + 1] += unpacked
            if state is not None:
                numbers[at + 2] = STATES.index(state)

    def snapshot(self) -> tuple[LayerProgress, ...]:
        numbers = self._numbers.tolist()
        layers = []
        for at, blob in enumerate(self._blobs):
            fetched, unpacked, state = numbers[at * _FIELDS : (at + 1) * _FIELDS]
            layers.append(LayerProgress(blob.digest, blob.size, fetched, unpacked, STATES[state]))
        return tuple(layers)


class Archives(Protocol):
    """Where the layers' archives come from."""

    def open(self, index: int, tracker: Tracker) -> Archive:
        """The archive of the layer at `index`."""

    def share(self, parts: int) -> None:
        """In a process that was forked: nothing that is shared with the parent may be used any
        more (connections), and of what is bounded this process has one of so many parts."""


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
        # Directories named alike would go where those of an earlier pull went.
        self._token = os.urandom(4).hex()

    def run(
        self, archives: Archives, report: Callable[[tuple[LayerProgress, ...]], None]
    ) -> tuple[NewLayer, ...]:
        """The layers that were missing, complete.

        There must be no other threads: it forks.

        Args:
            report: told where the layers stand, now and then and at the end.

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
        count = min(len(missing), max(2, os.cpu_count() or 2), helpers.MOST)
        if count > 1:
            made = self._by_helpers(missing, count, archives, report)
        else:
            made = {index: self._layer(index, archives, report=report) for index in missing}
        for index in missing:
            self._fix(index, made[index])
        report(self._tracker.snapshot())
        return tuple(self._new_layer(index) for index in missing)

    def _by_helpers(
        self,
        missing: Sequence[int],
        count: int,
        archives: Archives,
        report: Callable[[tuple[LayerProgress, ...]], None],
    ) -> dict[int, Unpacked]:
        share = sum(self._parts.blobs[index].size for index in missing) / count
        begun = False

        def work(index: int) -> Unpacked:
            nonlocal begun
            if not begun:
                archives.share(count)
                begun = True
            return self._layer(index, archives, ahead=self._parts.blobs[index].size > share)

        made: dict[int, Unpacked] = {}
        with helpers.Helpers(count, work) as staff, _reporting(self._tracker, report):
            pool = ThreadPoolExecutor(count, thread_name_prefix="layer")
            try:
                running = {pool.submit(staff.run, index): index for index in missing}
                finished, _ = wait(running, return_when=FIRST_EXCEPTION)
                for future in sorted(finished, key=lambda f: f.exception() is None):
                    made[running[future]] = future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        return made

    def staged(self, index: int) -> str:
        return f"{self._job.staging}/{index}-{self._token}"

    def _layer(
        self,
        index: int,
        archives: Archives,
        *,
        ahead: bool = True,
        report: Callable[[tuple[LayerProgress, ...]], None] | None = None,
    ) -> Unpacked:
        """One layer. There must be no other threads: it forks where it is to be `ahead`.

        Args:
            ahead: it takes longer than what else is to be done, so all processors are for it.
            report: told where the layers stand, unless somebody else tells it.
        """
        blob = self._parts.blobs[index]
        try:
            archive = archives.open(index, self._tracker)
            with contextlib.closing(archive):
                while True:
                    try:
                        unpacked = self._unpack(index, archive, ahead=ahead, report=report)
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

    def _unpack(
        self,
        index: int,
        archive: Archive,
        *,
        ahead: bool,
        report: Callable[[tuple[LayerProgress, ...]], None] | None,
    ) -> Unpacked:
        fetching = self._job.fetching
        limits = Limits(max_bytes=fetching.max_layer_bytes, min_free=fetching.min_free_bytes)
        staged = self.staged(index)
        os.mkdir(staged, 0o755)
        tracker = self._tracker
        apart = ahead and (os.cpu_count() or 1) > 1
        sink: Sink = Apart(staged, limits) if apart else Here(staged, limits)
        try:
            with contextlib.closing(sink), contextlib.ExitStack() as stack:
                if report is not None:
                    stack.enter_context(_reporting(tracker, report))
                unpacked = unpack_into(
                    archive.source(),
                    sink,
                    ahead=ahead,
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


def _reporting(
    tracker: Tracker, report: Callable[[tuple[LayerProgress, ...]], None]
) -> contextlib.ExitStack:
    """Reports while inside, when something has changed."""
    stop = threading.Event()

    def run() -> None:
        last = None
        while not stop.wait(_REPORT_EVERY):
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
