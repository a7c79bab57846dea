"""Worker processes, from the server's side: start one, hear its events, end it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri.errors import DeadlineExceeded, Internal
from zos_cri.images import trees
from zos_cri.images.jobs import AnyEvent, AnyJob, Done, Failed, as_error
from zos_cri.linux import spawn
from zos_cri.log import get_log

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
        self._stack = contextlib.ExitStack()
        self._started = False

    async def start(self) -> None:
        stack = self._stack
        with contextlib.ExitStack() as theirs:
            in_read, in_write = os.pipe2(os.O_CLOEXEC)
            theirs.callback(os.close, in_read)
            self._stdin = stack.enter_context(os.fdopen(in_write, "wb", buffering=0))
            out_read, out_write = os.pipe2(os.O_CLOEXEC)
            theirs.callback(os.close, out_write)
            self._stdout = stack.enter_context(os.fdopen(out_read, "rb", buffering=0))
            err = os.memfd_create("worker-stderr", os.MFD_CLOEXEC)
            self._stderr = stack.enter_context(os.fdopen(err, "rb", buffering=0))
            self.process = await spawn.start(
                [sys.executable, "-P", "-m", "zos_cri.images.worker"],
                env=_environment(),
                stdin=in_read,
                stdout=out_write,
                stderr=err,
            )
            self._started = True

    async def converse(self, job: AnyJob, on_event: Callable[[AnyEvent], None] | None) -> Done:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_MAX_LINE)
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self._stdout
        )
        self._stack.callback(transport.close)
        writer, _ = await loop.connect_write_pipe(asyncio.Protocol, self._stdin)
        writer.write(msgspec.json.encode(job))
        writer.write_eof()
        while line := await reader.readline():
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
            self._stack.close()


def _environment() -> dict[str, str]:
    """Ours (proxies!), with our own package to be found wherever it was imported from."""
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{path}" if path else here}


def remove_staging(path: Path) -> None:
    """What a worker left, if it left anything."""
    with contextlib.suppress(OSError):  # the next start finds it again
        trees.remove(str(path))
