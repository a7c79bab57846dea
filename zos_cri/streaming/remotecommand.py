"""Exec and attach: a client's streams joined to a process's."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from zos_cri.errors import Error, one_line
from zos_cri.log import get_log
from zos_cri.streaming.link import ConnectionLost
from zos_cri.streaming.spdy import Refused
from zos_cri.streaming.stream import CHUNK, StreamReset
from zos_cri.streaming.tasks import cancel_all, uninterrupted
from zos_cri.wire.remotecommand import (
    RemoteCommandError,
    ResizeDecoder,
    StreamType,
    TerminalSize,
    exit_status,
    expected_streams,
    failure_status,
    stream_type,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from zos_cri.streaming.backend import AttachRequest, ExecRequest, ProcessIO
    from zos_cri.streaming.spdy import SpdyStream
    from zos_cri.streaming.stream import Stream

_log = get_log(__name__)

# A child that outlives the command may keep its outputs open for ever. After the exit each output
# is read until its end, or until nothing has come for so long.
DRAIN_TIMEOUT: Final = 2.0
VERSION_1_GRACE: Final = 1.0


class StreamCollector:
    """The streams of a SPDY client, as it opens them: an `on_stream`."""

    def __init__(self, request: ExecRequest | AttachRequest, version: int) -> None:
        self._expected = expected_streams(
            version,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
            tty=request.tty,
        )
        self.streams: dict[StreamType, Stream] = {}
        self._complete = asyncio.Event()

    def __call__(self, stream: SpdyStream) -> None:
        try:
            kind = stream_type(stream.headers)
        except RemoteCommandError as error:
            raise Refused(str(error)) from error
        if kind in self.streams:
            raise Refused(f"there is a {kind.value} stream already")
        self.streams[kind] = stream
        if self._expected <= self.streams.keys():
            self._complete.set()

    async def complete(self) -> None:
        """Waits until all streams that the request needs are there."""
        await self._complete.wait()

    @property
    def missing(self) -> str:
        """What has not come, for a message."""
        return ", ".join(sorted(kind.value for kind in self._expected - self.streams.keys()))


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with a client's streams."""

    version: int
    request: ExecRequest | AttachRequest
    start: Callable[[], Awaitable[ProcessIO]]
    failure: str  # begins the message where the process can't be had
    report_exit: bool  # attach ends well whatever the container's exit code
    error_before_end: bool = False  # see `_say_before_end`
    drain_timeout: float = DRAIN_TIMEOUT


async def serve_process(plan: Plan, streams: Mapping[StreamType, Stream]) -> None:
    """Runs one session to its end: the status is the last thing written.

    The process is closed before this returns, whatever happens, cancellation included.

    Raises:
        ConnectionLost, StreamReset: the client went away.
    """
    streams[StreamType.ERROR].discard()  # clients send nothing here
    try:
        status = await _run(plan, streams)
    except (ConnectionLost, StreamReset):
        raise
    except (Error, OSError) as error:
        _log.info("streaming session failed", what=plan.failure, error=one_line(error))
        status = failure_status(plan.version, f"{plan.failure}: {one_line(error)}")
    except Exception:
        _log.exception("streaming session failed", what=plan.failure)
        status = failure_status(
            plan.version, f"{plan.failure}: a mistake of the server, see its log"
        )
    if status and plan.error_before_end:
        await _say_before_end(status, streams[StreamType.ERROR])
        status = b""
    await _say(status, streams)


async def _say_before_end(status: bytes, error_stream: Stream) -> None:
    # SPDY clients of version 1 are content when the outputs have ended, and then forget to look
    # at the error stream. So the outputs end when the client, having read the error, has closed.
    await error_stream.write(status)
    error_stream.write_eof()
    with suppress(TimeoutError):
        async with asyncio.timeout(VERSION_1_GRACE):
            await error_stream.wait_reset()


async def say_failure(version: int, text: str, streams: Mapping[StreamType, Stream]) -> None:
    """Ends a session that didn't come to run anything."""
    await _say(failure_status(version, text), streams)


async def _say(status: bytes, streams: Mapping[StreamType, Stream]) -> None:
    if status and StreamType.ERROR in streams:
        await streams[StreamType.ERROR].write(status)
    for stream in streams.values():
        stream.write_eof()
        # What the client sent too much is read, or its end behind that would never be seen.
        stream.discard()


async def _run(plan: Plan, streams: Mapping[StreamType, Stream]) -> bytes:
    """The session up to its status."""
    async with AsyncExitStack() as stack:
        # Sizes are taken in from the first moment: clients send theirs before the process runs.
        sizes = _Sizes(streams.get(StreamType.RESIZE))
        stack.push_async_callback(cancel_all, [asyncio.create_task(sizes.receive())])

        process = await plan.start()
        stack.push_async_callback(uninterrupted, process.aclose, "closing a process's streams")

        helpers = [asyncio.create_task(_copy_stdin(plan, process, streams.get(StreamType.STDIN)))]
        stack.push_async_callback(cancel_all, helpers)
        if plan.request.tty:
            helpers.append(asyncio.create_task(sizes.apply(process)))

        outputs = _outputs(plan, process, streams)
        stack.push_async_callback(cancel_all, [output.task for output in outputs])
        code = await _finish(process, outputs, plan.drain_timeout)
        return exit_status(plan.version, code if plan.report_exit else 0)


def _outputs(plan: Plan, process: ProcessIO, streams: Mapping[StreamType, Stream]) -> list[_Output]:
    request = plan.request
    wanted = [(StreamType.STDOUT, request.stdout, process.read_stdout)]
    if not request.tty:
        wanted.append((StreamType.STDERR, request.stderr, process.read_stderr))
    return [
        _Output(read, streams[kind], end_at_eof=plan.version > 1)
        for kind, is_wanted, read in wanted
        if is_wanted and kind in streams
    ]


class _Output:
    """Copies one output to its stream."""

    def __init__(
        self, read: Callable[[int], Awaitable[bytes]], stream: Stream, *, end_at_eof: bool
    ) -> None:
        self._read = read
        self._stream = stream
        self._end_at_eof = end_at_eof
        self.reading_since: float | None = None  # loop time; None while the client is written to
        self.task = asyncio.create_task(self._copy())

    async def _copy(self) -> None:
        loop = asyncio.get_running_loop()
        self._stream.discard()  # clients send nothing here
        while True:
            self.reading_since = loop.time()
            data = await self._read(CHUNK)
            self.reading_since = None
            if not data:
                break
            await self._stream.write(data)
        if self._end_at_eof:
            self._stream.write_eof()


async def _finish(process: ProcessIO, outputs: list[_Output], drain_timeout: float) -> int:
    """Waits for the exit and for the outputs' ends; the exit code."""
    exited = asyncio.ensure_future(process.wait())
    pending: set[asyncio.Future[Any]] = {output.task for output in outputs}
    try:
        while pending and not exited.done():
            done, _ = await asyncio.wait({exited, *pending}, return_when=asyncio.FIRST_COMPLETED)
            _raise_first_error(done)
            pending -= done
        code = await exited
    finally:
        await cancel_all([exited])
    await _drain(outputs, drain_timeout)
    _raise_first_error({output.task for output in outputs if output.task.done()})
    return code


async def _drain(outputs: list[_Output], timeout: float) -> None:
    """Waits for the outputs' ends, or until none that goes on has had a byte for `timeout`."""
    loop = asyncio.get_running_loop()
    exit_time = loop.time()
    while pending := [output for output in outputs if not output.task.done()]:
        # Time counts only while the process is read from: a slow client isn't its fault.
        deadlines = [
            max(output.reading_since, exit_time) + timeout
            for output in pending
            if output.reading_since is not None
        ]
        now = loop.time()
        later = [deadline for deadline in deadlines if deadline > now]
        if not later and len(deadlines) == len(pending):
            _log.debug("outputs are kept open after the exit", count=len(pending))
            return
        await asyncio.wait(
            [output.task for output in pending],
            timeout=min(later) - now if later else timeout,
            return_when=asyncio.FIRST_COMPLETED,
        )


def _raise_first_error(tasks: Iterable[asyncio.Future[Any]]) -> None:
    for task in tasks:
        error = task.exception()
        if error is not None:
            raise error


async def _copy_stdin(plan: Plan, process: ProcessIO, stream: Stream | None) -> None:
    if stream is None:
        return
    if not plan.request.stdin:
        stream.discard()
        return
    try:
        while data := await stream.read(CHUNK):
            await process.write_stdin(data)
        await process.close_stdin()
    except BrokenPipeError:
        # The process doesn't read on. The client isn't told: it goes on sending until the exit.
        stream.discard()
    except (ConnectionLost, StreamReset):
        # The connection's end cancels the session; a reset of this one stream is its end of file.
        await process.close_stdin()
    except (Error, OSError) as error:
        _log.info("stdin can't be written", error=one_line(error))
        stream.discard()


class _Sizes:
    """The client's terminal size: only the newest matters."""

    def __init__(self, stream: Stream | None) -> None:
        self._stream = stream
        self._newest: TerminalSize | None = None
        self._changed = asyncio.Event()

    async def receive(self) -> None:
        if self._stream is None:
            return
        decoder = ResizeDecoder()
        try:
            while data := await self._stream.read(CHUNK):
                size = decoder.feed(data)
                if size is not None:
                    self._newest = size
                    self._changed.set()
        except (ConnectionLost, StreamReset):
            return
        except RemoteCommandError as error:
            _log.info("terminal sizes are ignored from now on", error=error)
        self._stream.discard()

    async def apply(self, process: ProcessIO) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            size = self._newest
            if size is None:
                continue
            try:
                await process.resize(size.width, size.height)
            except (Error, OSError) as error:  # it has just ended, say
                _log.info("terminal can't be resized", error=one_line(error))
