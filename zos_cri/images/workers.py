"""Worker processes, from the server's side: start one, hear its events, end it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri.errors import DeadlineExceeded, Internal
from zos_cri.images.jobs import AnyEvent, AnyJob, Done, Failed, as_error
from zos_cri.linux import spawn
from zos_cri.log import get_log

if TYPE_CHECKING:
    from collections.abc import Callable

_log = get_log(__name__)

# An image of 500 layers with its documents inside `Done` stays far below.
_MAX_LINE: Final = 64 << 20
# How long a killed worker may take to be gone; longer, and it is stuck in the kernel.
_KILL_GRACE: Final = 10.0
_STDERR_TAIL: Final = 2048
_DECODER: Final = msgspec.json.Decoder(AnyEvent)


async def run(job: AnyJob, on_event: Callable[[AnyEvent], None] | None = None) -> Done:
    """Runs a job in a worker process of its own and waits for its end.

    Where the caller is cancelled, the worker is killed and is gone when this returns. What it put
    into its staging directory stays the caller's to remove.

    Raises:
        Error: the job failed, as the class that the worker had.
        Internal: the worker died.
    """
    worker = _Worker()
    try:
        await worker.start()
        return await worker.converse(job, on_event)
    finally:
        await worker.close()


class _Worker:
    process: spawn.Process

    def __init__(self) -> None:
        self._link: socket.socket | None = None
        self._stack = contextlib.ExitStack()
        self._started = False

    async def start(self) -> None:
        stack = self._stack
        with contextlib.ExitStack() as theirs:
            # A socket, for its owner is always clear: uvloop's pipes close their descriptor later
            # than the file object that they were made of, when its number may be another's.
            self._link, end = socket.socketpair()
            theirs.callback(end.close)
            err = os.memfd_create("worker-stderr", os.MFD_CLOEXEC)
            self._stderr = stack.enter_context(os.fdopen(err, "rb", buffering=0))
            self.process = await spawn.start(
                [sys.executable, "-P", "-m", "zos_cri.images.worker"],
                env=environment(),
                stdin=end.fileno(),
                stdout=end.fileno(),
                stderr=err,
            )
            self._started = True

    async def converse(self, job: AnyJob, on_event: Callable[[AnyEvent], None] | None) -> Done:
        link, self._link = self._link, None
        reader, writer = await asyncio.open_connection(sock=link, limit=_MAX_LINE)
        self._stack.callback(writer.close)
        writer.write(msgspec.json.encode(job))
        writer.write_eof()
        while line := await _line(reader):
            event = _DECODER.decode(line)
            if isinstance(event, Done):
                return event
            if isinstance(event, Failed):
                raise as_error(event)
            if on_event is not None:
                on_event(event)
        code = await self.process.wait()
        raise Internal(f"image worker: ended with {code} before its job{self._said()}")

    def _said(self) -> str:
        tail = os.pread(self._stderr.fileno(), 1 << 20, 0)[-_STDERR_TAIL:]
        return f": {' '.join(tail.decode(errors='replace').split())}" if tail else ""

    async def close(self) -> None:
        """Kills it if it still runs, and waits for it to be gone."""
        try:
            if self._started and self.process.returncode is None:
                self.process.kill(group=True)
                try:
                    await asyncio.shield(self.process.wait(_KILL_GRACE))
                except DeadlineExceeded:
                    _log.error("image worker is stuck in the kernel", pid=self.process.pid)
        finally:
            if self._link is not None:
                self._link.close()
            self._stack.close()


async def _line(reader: asyncio.StreamReader) -> bytes:
    """The next line; b"" at the end, also where it died before it had read its job."""
    try:
        return await reader.readline()
    except ConnectionError:
        return b""


def environment() -> dict[str, str]:
    """Ours (proxies!), with our own package to be found wherever it was imported from."""
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{path}" if path else here}
