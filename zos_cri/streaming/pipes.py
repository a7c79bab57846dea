"""A `ProcessIO` over pipes and FIFOs: non-blocking descriptors, read and written as they are ready.

Nothing is buffered here: bytes stay in the kernel's pipe until the client's connection takes them,
so a slow client slows the process and nothing grows.
"""

from __future__ import annotations

import array
import asyncio
import errno
import fcntl
import os
import select
import termios
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

# The most that one read takes, whatever its caller's limit.
_READ: Final = 1024 * 1024
# Shims open a process's stdin in a thread of their own, beside its start: a busy host's scheduler
# may let that thread wait.
READER_TIMEOUT: Final = 5.0
_READER_POLL: Final = 0.002


def open_read_end(path: str) -> int:
    """The reading end of a FIFO, at once, whether there is a writer or not."""
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def open_write_end(path: str) -> tuple[int, int]:
    """The writing end of a FIFO, at once, and a guard to close when the reader has opened its end.

    A FIFO can't be opened for writing without a reader; the guard is one meanwhile, so it also
    keeps writes from failing before the process is there.
    """
    guard = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC), guard
    except OSError:
        os.close(guard)
        raise


async def wait_for_reader(fd: int) -> None:
    """Waits until somebody has the FIFO open for reading whose writing end this is.

    To be called before that is closed, and after the guard was: who opens a FIFO for reading later,
    and without O_NONBLOCK as shims do, would wait for a writer that never comes, with a thread and
    a descriptor. After `READER_TIMEOUT` nobody is expected any more.
    """
    poll = select.poll()
    poll.register(fd, 0)  # POLLERR is told always: there is no reader
    loop = asyncio.get_running_loop()
    deadline = loop.time() + READER_TIMEOUT
    while poll.poll(0) and loop.time() < deadline:  # noqa: ASYNC110 no event tells of it
        await asyncio.sleep(_READER_POLL)


class Reader(Protocol):
    """An output of a process."""

    async def read(self, limit: int) -> bytes:
        """1 to `limit` bytes; b"" at the end, and after `close`."""
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


class FdReader:
    """Reads a pipe. Owns the descriptor."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False

    async def read(self, limit: int) -> bytes:
        """1 to `limit` bytes; b"" when all writers have closed, and after `close`."""
        while not self._ended and self._fd >= 0:
            try:
                data = os.read(self._fd, min(limit, _READ))
            except BlockingIOError:
                await self._readable()
                continue
            except OSError as error:
                if error.errno != errno.EIO:  # a terminal whose other side is closed
                    raise
                data = b""
            if data:
                return data
            if self._hung_up():
                self._ended = True
            else:  # a FIFO that nobody has opened for writing yet reads as empty too
                await self._readable()
        return b""

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            _wake(self._waiter)

    def _hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))

    async def _readable(self) -> None:
        self._waiter = self._loop.create_future()
        self._loop.add_reader(self._fd, _wake, self._waiter)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if self._fd >= 0:
                self._loop.remove_reader(self._fd)


class FdWriter:
    """Writes a pipe. Owns the descriptor and its guard.

    The guard goes as soon as something has been read: then the reader has surely opened its end,
    and if it has closed it again since, who writes must be told rather than wait for ever.
    """

    def __init__(self, fd: int, guard: int = -1) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._guard = guard
        self._guarded = 0  # bytes written while the guard was there
        self._expecting = False  # a reader, and the guard isn't there any more
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None

    async def write(self, data: bytes) -> None:
        """Returns when all of it is in the pipe.

        Raises:
            BrokenPipeError: nobody reads any more, or `close` was called.
        """
        view = memoryview(data)
        while view:
            if self._fd < 0:
                raise BrokenPipeError(errno.EPIPE, "the pipe is closed")
            try:
                written = os.write(self._fd, view)
            except BlockingIOError:
                if self._guard >= 0 and _unread(self._guard) < self._guarded:
                    self.reader_opened()
                await self._writable()
            else:
                view = view[written:]
                if self._guard >= 0:
                    self._guarded += written

    def reader_opened(self) -> None:
        """The process has its end: from now on its closing is noticed."""
        if self._guard >= 0:
            os.close(self._guard)
            self._guard = -1

    async def settle(self) -> None:
        """Before `close`: waits for a reader that is still to come (see `wait_for_reader`)."""
        if self._guard >= 0:
            self._expecting = _unread(self._guard) >= self._guarded
            self.reader_opened()
        if self._expecting and self._fd >= 0:
            await wait_for_reader(self._fd)
            self._expecting = False

    def close(self) -> None:
        """Idempotent."""
        self.reader_opened()
        if self._fd >= 0:
            self._loop.remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1
            _wake(self._waiter)

    async def _writable(self) -> None:
        self._waiter = self._loop.create_future()
        self._loop.add_writer(self._fd, _wake, self._waiter)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if self._fd >= 0:
                self._loop.remove_writer(self._fd)


def _unread(fd: int) -> int:
    """How many bytes a pipe holds."""
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class PipeProcess:
    """A `ProcessIO` made of descriptors and the calls that aren't about bytes."""

    def __init__(
        self,
        *,
        stdin: FdWriter | None = None,
        stdout: Reader | None = None,
        stderr: Reader | None = None,
        wait: Callable[[], Awaitable[int]],
        resize: Callable[[int, int], Awaitable[None]] | None = None,
        on_stdin_closed: Callable[[], Awaitable[None]] | None = None,
        keep_stdin: bool = False,
        release: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """
        Args:
            wait: the exit code, when there is one.
            resize: sets the terminal's size.
            on_stdin_closed: called after our end of stdin was closed (a shim's CloseIO).
            keep_stdin: an attachment's end doesn't end the container's stdin: not `stdin_once`.
            release: kills the process if it runs and removes FIFOs; after the descriptors are
                closed.
        """
        self._stdin = stdin
        self._outputs = (stdout, stderr)
        self._wait = wait
        self._resize = resize
        self._on_stdin_closed = on_stdin_closed
        self._keep_stdin = keep_stdin
        self._release = release

    async def read_stdout(self, limit: int) -> bytes:
        return await _read(self._outputs[0], limit)

    async def read_stderr(self, limit: int) -> bytes:
        return await _read(self._outputs[1], limit)

    async def write_stdin(self, data: bytes) -> None:
        if self._stdin is None:
            raise BrokenPipeError(errno.EPIPE, "the process has no stdin")
        await self._stdin.write(data)

    async def close_stdin(self) -> None:
        if self._stdin is not None and not self._keep_stdin:
            await self._stdin.settle()
            self._stdin.close()
            if self._on_stdin_closed is not None:
                await self._on_stdin_closed()

    async def resize(self, width: int, height: int) -> None:
        if self._resize is not None:
            await self._resize(width, height)

    async def wait(self) -> int:
        return await self._wait()

    async def aclose(self) -> None:
        try:
            if self._stdin is not None:
                await self._stdin.settle()
        finally:
            close_all([self._stdin, *self._outputs])
            if self._release is not None:
                await self._release()


async def _read(reader: Reader | None, limit: int) -> bytes:
    return b"" if reader is None else await reader.read(limit)


def close_all(ends: Iterable[Reader | FdWriter | None]) -> None:
    """Closes those that are there."""
    for end in ends:
        if end is not None:
            end.close()
