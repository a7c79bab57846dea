"""Worker processes, from the server's side: start one, hear its events, end it.

A worker does one job and ends. What a pull's worker imports takes as long as a small pull, so
`Workers` starts the one for the next pull ahead, when a pull has ended; it is let go where no
other comes soon, for its memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri.errors import DeadlineExceeded, Internal
from zos_cri.images.jobs import AnyEvent, AnyJob, Begun, Done, Failed, as_error
from zos_cri.linux import spawn
from zos_cri.log import get_log

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_log = get_log(__name__)

# An image of 500 layers with its documents inside `Done` stays far below.
_MAX_LINE: Final = 64 << 20
# How long a killed worker may take to be gone; longer, and it is stuck in the kernel.
_KILL_GRACE: Final = 10.0
_STDERR_TAIL: Final = 2048
# Images of a node's start, or of a pod's containers, are pulled one after another.
_SPARE_KEPT: Final = 60.0
# By then who waited for the last pull has been answered, and has the processors for what follows.
_SPARE_AFTER: Final = 0.1
_PULL: Final = "pull"
_DECODER: Final = msgspec.json.Decoder(AnyEvent)


async def run(job: AnyJob, on_event: Callable[[AnyEvent], None] | None = None) -> Done:
    """Runs a job in a worker process of its own and waits for its end.

    Where the caller is cancelled, the worker is killed and is gone when this returns. What it put
    into its staging directory stays the caller's to remove.

    Raises:
        Error: the job failed, as the class that the worker had.
        Internal: the worker died.
    """
    return await _have_done(_Worker(), job, on_event)


async def _have_done(
    worker: _Worker, job: AnyJob, on_event: Callable[[AnyEvent], None] | None
) -> Done:
    try:
        if not worker.started:
            await worker.start()
        return await worker.converse(job, on_event)
    finally:
        await worker.close()


class _NotBegun(Internal):
    """The worker died before it had its job."""


class Workers:
    """Workers for pulls, with one that waits for its job where there was a pull lately.

    To be closed by `aclose`.
    """

    def __init__(self, *, kept: float = _SPARE_KEPT, after: float = _SPARE_AFTER) -> None:
        """
        Args:
            kept: seconds that a spare worker waits for a job.
            after: seconds from a job's end to the start of the next worker.
        """
        self._kept = kept
        self._after = after
        self._spare: _Worker | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def run(self, job: AnyJob, on_event: Callable[[AnyEvent], None] | None = None) -> Done:
        """As the function `run`, by the worker that waits if there is one."""
        try:
            spare = self._take()
            if spare is not None:
                with contextlib.suppress(_NotBegun):  # it died while it waited
                    return await _have_done(spare, job, on_event)
            return await _have_done(_Worker(_PULL), job, on_event)
        finally:
            self._later(self._after, self._prepare)

    @property
    def spare(self) -> int:
        """The pid of the worker that waits; 0 where none does."""
        return self._spare.process.pid if self._spare is not None else 0

    async def aclose(self) -> None:
        """Ends the worker that waits; idempotent. Those with a job are their callers'."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._drop()

    def _take(self) -> _Worker | None:
        spare, self._spare = self._spare, None
        return spare

    def _later(self, delay: float, what: Callable[[], Coroutine[None, None, None]]) -> None:
        """The last one counts: a job's end puts off both the next start and the spare's end."""
        if self._timer is not None:
            self._timer.cancel()
        if not self._closed:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(delay, lambda: self._begin(what))

    def _begin(self, what: Callable[[], Coroutine[None, None, None]]) -> None:
        task = asyncio.create_task(what())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _prepare(self) -> None:
        if self._spare is None:
            worker = _Worker(_PULL)
            try:
                await worker.start()
            except OSError as error:  # the next pull will say so
                worker.release()
                _log.warning("no worker could be started ahead", error=error)
                return
            self._spare = worker
        self._later(self._kept, self._drop)

    async def _drop(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            await spare.close()


class _Worker:
    process: spawn.Process

    def __init__(self, *ahead: str) -> None:
        self._ahead = ahead  # a job's name, whose imports needn't wait for the job
        self._link: socket.socket | None = None
        self._stack = contextlib.ExitStack()
        self.started = False

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
                [sys.executable, "-P", "-m", "zos_cri.images.worker", *self._ahead],
                env=environment(),
                stdin=end.fileno(),
                stdout=end.fileno(),
                stderr=err,
            )
            self.started = True

    async def converse(self, job: AnyJob, on_event: Callable[[AnyEvent], None] | None) -> Done:
        link, self._link = self._link, None
        reader, writer = await asyncio.open_connection(sock=link, limit=_MAX_LINE)
        self._stack.callback(writer.close)
        writer.write(msgspec.json.encode(job))
        writer.write_eof()
        begun = False
        while line := await _line(reader):
            event = _DECODER.decode(line)
            begun = True
            if isinstance(event, Done):
                return event
            if isinstance(event, Failed):
                raise as_error(event)
            if on_event is not None and not isinstance(event, Begun):
                on_event(event)
        code = await self.process.wait()
        how = f"image worker: ended with {code} before its job{self._said()}"
        raise Internal(how) if begun else _NotBegun(how)

    def _said(self) -> str:
        tail = os.pread(self._stderr.fileno(), 1 << 20, 0)[-_STDERR_TAIL:]
        return f": {' '.join(tail.decode(errors='replace').split())}" if tail else ""

    async def close(self) -> None:
        """Kills it if it still runs, and waits for it to be gone."""
        try:
            if self.started and self.process.returncode is None:
                self.process.kill(group=True)
                try:
                    await asyncio.shield(self.process.wait(_KILL_GRACE))
                except DeadlineExceeded:
                    _log.error("image worker is stuck in the kernel", pid=self.process.pid)
        finally:
            self.release()

    def release(self) -> None:
        """Lets go of all descriptors. A worker without a job ends by that."""
        if self._link is not None:
            self._link.close()
            self._link = None
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
