"""One blob from a repository's hosts into a file, readable while it comes.

The file is the buffer: connections write their parts where they belong, the reader follows as far
as there is no gap. A broken connection goes on where it was, on the same host or the next; so does
a later pull, where the file of an earlier one was left behind (its digest is checked over all of
it in the end). Large blobs come over several connections at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from typing import TYPE_CHECKING, Final

from zos_cri.errors import DataLoss
from zos_cri.images.http import TransferError
from zos_cri.images.registry import Failures

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from zos_cri.images.decompress import Source
    from zos_cri.images.hosts import Host
    from zos_cri.images.http import Response
    from zos_cri.images.model import Blob
    from zos_cri.images.registry import Repository

# A part is long enough for a connection to get up to speed, and short enough for the reader not to
# wait long behind it.
PART: Final = 8 << 20
_READ: Final = 1 << 18
# Consecutive failures without a byte in between, over all hosts, until a blob is given up.
_FAILURES: Final = 6
_FIRST_WAIT: Final = 0.1
_MAX_WAIT: Final = 10.0
_BLOCK: Final = 4096


class Mismatch(DataLoss):
    """What came isn't what the manifest names; another host may have the right thing."""


class BlobFile:
    """A file that is filled by parts and read from its beginning meanwhile.

    Attributes:
        size: the blob's length as its manifest has it.
        total: how many of its bytes are there, gaps or not; it only grows.
    """

    def __init__(self, path: Path, size: int) -> None:
        """Opens or creates it, and waits while another process fetches the same blob."""
        self.size = size
        self.path = path
        self._fd = _open_locked(path)
        self._changed = threading.Condition()
        self._parts: dict[int, int] = {}  # beyond the gapless beginning: offset -> end
        self._complete = self.total = _gapless(self._fd, size)
        self._error: BaseException | None = None
        self._position = 0
        self._next = self._complete

    @property
    def complete(self) -> int:
        """How many bytes from the beginning are there."""
        return self._complete

    def claim(self, length: int) -> tuple[int, int]:
        """The next part to fetch: (offset, end); empty where nothing is left."""
        with self._changed:
            start = self._next
            self._next = min(self.size, start + length)
            return start, self._next

    def write(self, offset: int, data: bytes) -> None:
        """Puts data in their place; the reader hears of it if there is no gap before."""
        view, where = memoryview(data), offset
        while view:
            written = os.pwrite(self._fd, view, where)
            view, where = view[written:], where + written
        with self._changed:
            self._note(offset, where)
            self._changed.notify_all()

    def _note(self, start: int, end: int) -> None:
        for known, known_end in list(self._parts.items()):
            if known <= start <= known_end:  # goes on where a part stood
                start, end = known, max(end, known_end)
        self._parts[start] = end
        while True:
            joined = [known for known in self._parts if known <= self._complete]
            if not joined:
                break
            self._complete = max(self._complete, *(self._parts.pop(known) for known in joined))
        self.total = max(
            self.total,
            self._complete + sum(stop - first for first, stop in self._parts.items()),
        )

    def fail(self, error: BaseException) -> None:
        """Lets the reader (and other writers) know that no more will come."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    @property
    def failed(self) -> BaseException | None:
        return self._error

    def read(self, size: int) -> bytes:
        """What is there next, up to `size` bytes; waits for it. Empty at the blob's end.

        Raises:
            What `fail` was told.
        """
        with self._changed:
            while self._position >= self._complete and self._position < self.size:
                if self._error is not None:
                    raise self._error
                self._changed.wait()
            available = self._complete - self._position
        data = os.pread(self._fd, min(size, available), self._position)
        self._position += len(data)
        return data

    def restart(self) -> None:
        """Throws away what is there."""
        os.ftruncate(self._fd, 0)
        with self._changed:
            self._parts.clear()
            self._complete = self._position = self._next = self.total = 0
            self._error = None

    def rewind(self) -> None:
        """Reads from the beginning again."""
        self._position = 0

    def close(self) -> None:
        """Closes it, and lets another process have it."""
        os.close(self._fd)


class Verified:
    """Reads a blob and digests what it reads; `check` at the end says whether it was right."""

    def __init__(self, file: Source, blob: Blob, on_read: Callable[[int], None]) -> None:
        self._file = file
        self._blob = blob
        self._hash = hashlib.new(blob.digest.partition(":")[0])
        self._on_read = on_read

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._hash.update(data)
        self._on_read(len(data))
        return data

    def check(self) -> None:
        """Reads what is left (padding after a compressed stream) and compares.

        Raises:
            Mismatch: it isn't what the manifest names.
        """
        while self.read(_READ):
            pass
        algorithm = self._blob.digest.partition(":")[0]
        found = f"{algorithm}:{self._hash.hexdigest()}"
        if found != self._blob.digest:
            raise Mismatch(f"{self._blob.digest}: what came has the digest {found}")


class Fetcher:
    """Fills one `BlobFile`. `start` once, then `join`; errors go to the file's reader."""

    def __init__(
        self,
        repository: Repository,
        blob: Blob,
        file: BlobFile,
        *,
        connections: int,
        slots: threading.Semaphore,
        avoid: Collection[str] = (),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """
        Args:
            connections: how many this blob may have, if it is large.
            slots: what bounds the connections of the whole pull.
            avoid: hosts that sent something wrong before; asked only where there is no other.
        """
        self._repository = repository
        self._blob = blob
        self._file = file
        hosts = repository.pull_hosts()
        self._hosts = [host for host in hosts if host.host not in avoid] or hosts
        self.used: set[str] = set()
        self._failures = Failures(repository.ref, f"blob {blob.digest}")
        self._in_a_row = 0
        self._seen = file.total  # at the last failure
        self._owner: threading.Thread | None = None  # who fetches all, where ranges aren't known
        self._lock = threading.Lock()
        self._slots = slots
        self._sleep = sleep
        parts = -(-(blob.size - file.complete) // PART)
        count = max(1, min(connections, parts))
        self._part = PART if count > 1 else max(1, blob.size)
        self._threads = [
            threading.Thread(target=self._run, name=f"fetch {blob.digest[7:19]}", daemon=True)
            for _ in range(count)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        try:
            with self._slots:
                while self._file.failed is None and self._owner is None:
                    start, end = self._file.claim(self._part)
                    if start >= end:
                        return
                    self._fetch(start, end)
        except BaseException as error:
            self._file.fail(error)

    def _fetch(self, start: int, end: int) -> None:
        """One part, through as many connections as it takes."""
        while self._file.failed is None:
            if self._owner is threading.current_thread():
                end = self._blob.size
            elif self._owner is not None:
                return
            if start >= end:
                return
            if not self._hosts:
                raise self._failures.error()
            host = self._hosts[self._in_a_row % len(self._hosts)]
            self.used.add(host.host)
            try:
                # -1 is no end, and from 0 no range at all
                last = -1 if end == self._blob.size else end - 1
                response = self._repository.blob(host, self._blob.digest, first=start, last=last)
                try:
                    start = self._copy(response, start, end)
                finally:
                    response.close()
            except _Broken as error:
                start = error.position
                self._failed(host, TransferError(str(error)))
            except TransferError as error:
                self._failed(host, error)

    def _copy(self, response: Response, start: int, end: int) -> int:
        """Writes a response's body to its place; answers where it ended."""
        if response.status == 200 and (start or end < self._blob.size):
            if not self._take_all():
                return start
            start, end = 0, self._blob.size
        position = start
        try:
            while self._file.failed is None and (data := response.read(_READ)):
                if position + len(data) > end:
                    raise TransferError(f"more than its {self._blob.size} bytes come")
                self._file.write(position, data)
                position += len(data)
        except TransferError as error:
            raise _Broken(str(error), position) from error
        if position < end and self._file.failed is None:
            raise _Broken(f"the connection ended after {position} of {end} bytes", position)
        return position

    def _take_all(self) -> bool:
        """The host knows no ranges: one connection fetches everything from the beginning."""
        with self._lock:
            if self._owner is None:
                self._owner = threading.current_thread()
            return self._owner is threading.current_thread()

    def _failed(self, host: Host, error: TransferError) -> None:
        """Decides what comes next: the same host, another one after a pause, or the end."""
        with self._lock:
            self._failures.add(host, error)
            self._in_a_row = 1 if self._file.total > self._seen else self._in_a_row + 1
            self._seen = self._file.total
            tries = self._in_a_row
            if error.status in (401, 403, 404) and host in self._hosts:
                self._hosts = [known for known in self._hosts if known != host]
            hosts = len(self._hosts)
        if not hosts or tries >= _FAILURES:
            raise self._failures.error()
        if tries >= hosts:
            self._sleep(min(_MAX_WAIT, max(error.retry_after, _FIRST_WAIT * 2**tries)))


class _Broken(TransferError):
    """A connection ended early; what came before `position` is there."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


def _open_locked(path: Path) -> int:
    """The file, once no other process has it; if that one finished and moved it, a new file."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            if os.stat(path).st_ino == os.fstat(fd).st_ino:
                return fd
        except FileNotFoundError:
            pass
        os.close(fd)


def _gapless(fd: int, size: int) -> int:
    """How much of an earlier attempt's file surely has no gap.

    Parts were written at their places, so the first hole ends it; of the block before it any part
    may be unwritten.
    """
    length = os.fstat(fd).st_size
    if length == 0:
        return 0
    hole = min(os.lseek(fd, 0, os.SEEK_HOLE), length, size)
    return max(0, hole // _BLOCK * _BLOCK - _BLOCK)
