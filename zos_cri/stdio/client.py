"""The server's side of the logger: finds it, starts it where it isn't there, asks it, watches it.

The logger outlives the server and is never restarted by one that comes back. When it dies itself,
the connection breaks; the client starts another, which takes over by its own notes. Until then
nothing is lost: output waits in the FIFOs, and the client holds a read end of each open, because
the kernel throws a FIFO's content away when the last one that has it open is gone (a container
that exits while there is no logger). Where server and logger are dead at the same time, the
logger's `keeper` does that.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

import zos_cri
from zos_cri import errors
from zos_cri.errors import DeadlineExceeded, Error, Unavailable, one_line
from zos_cri.linux import spawn
from zos_cri.log import get_log
from zos_cri.stdio import messages
from zos_cri.stdio.messages import Attached, Finished, LoggerStatus, LogSpec
from zos_cri.wire.crilog import DEFAULT_MAX_LINE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_log = get_log(__name__)
T = TypeVar("T")

START_TIMEOUT: Final = 10.0  # a Python process on a busy host; normally 0.1 s
CALL_TIMEOUT: Final = 10.0  # includes starting the logger anew
_RETRY: Final = 0.02  # while another process's logger comes up
_RESTART_PAUSE: Final = 1.0  # after a start that failed
_RECEIVE: Final = 64 * 1024
_ERRORS: Final[Mapping[str, type[Error]]] = {
    errors.grpc_code(kind("")): kind
    for kind in (
        errors.InvalidArgument,
        errors.NotFound,
        errors.AlreadyExists,
        errors.FailedPrecondition,
        errors.PermissionDenied,
        errors.ResourceExhausted,
        errors.Unavailable,
        errors.DeadlineExceeded,
        errors.Internal,
    )
}

# An Attach that was answered so has left nothing behind.
_REFUSED: Final = (
    errors.InvalidArgument,
    errors.NotFound,
    errors.ResourceExhausted,
    errors.DeadlineExceeded,
)


class LoggerClient:
    """The one connection of a server to the logger. Calls may run at the same time."""

    def __init__(
        self,
        path: Path,
        *,
        state_dir: Path,
        argv: Sequence[str] = (sys.executable, "-m", "zos_cri.stdio"),
        log_file: Path | None = None,
        start: bool = True,
    ) -> None:
        """
        Args:
            path: the logger's control socket.
            state_dir: where it notes down what it serves; on tmpfs.
            argv: how it is started; arguments are added.
            log_file: its own log; beside the socket by default.
            start: starts one where there is none; else it is waited for.
        """
        self._path = path
        self._may_start = start
        self._argv = (
            *argv,
            *("--daemon", "--socket", str(path), "--state-dir", str(state_dir)),
            *("--log-file", str(log_file or path.with_suffix(".log"))),
        )
        self._link: _Link | None = None
        self._connecting = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None
        self._seq = itertools.count(1)
        self._held: dict[str, list[int]] = {}
        self.starts = 0  # how often this client has started a logger

    async def ensure(self, timeout: float = START_TIMEOUT) -> None:
        """Connects to the logger; starts one where there is none. The first call does so, too.

        Raises:
            Unavailable: it can't be had within `timeout` seconds.
        """
        await self._live(timeout)

    async def attach(
        self,
        container: str,
        *,
        log_path: str,
        stdout_fifo: str,
        stderr_fifo: str = "",
        log_root: str = "",
        max_line: int = DEFAULT_MAX_LINE,
        drop_after: float = messages.DROP_AFTER,
    ) -> None:
        """Has the logger read a container's FIFOs, which exist, into its log.

        Once it returns, the shim may open them. The same again is nothing. For the arguments see
        `messages.LogSpec`.

        Raises:
            InvalidArgument: the log path leads out of its directory, or isn't a file's.
            NotFound: a FIFO isn't there.
            AlreadyExists: the container is attached to something else.
            ResourceExhausted: the log file can't be made; the message says why.
            DeadlineExceeded: its file system doesn't answer.
            Unavailable: there is no logger.
        """
        spec = LogSpec(
            id=container,
            log_path=log_path,
            log_root=log_root,
            stdout=stdout_fifo,
            stderr=stderr_fifo,
            max_line=max_line,
            drop_after=drop_after,
        )
        held = container in self._held
        self.hold(container, stdout_fifo, stderr_fifo)
        try:
            await self._ask(messages.Attach(seq=next(self._seq), spec=spec), None)
        except _REFUSED:
            if not held:
                self._release(container)
            raise

    async def reopen(self, container: str) -> None:
        """Has the logger go on in a new file of the same path, from the next entry on.

        Raises:
            NotFound: it isn't attached (any more).
            ResourceExhausted, InvalidArgument: the file can't be opened; the old one stays.
            DeadlineExceeded: its file system doesn't answer.
        """
        await self._ask(messages.Reopen(seq=next(self._seq), id=container), None)

    async def finish(self, container: str, timeout: float = messages.FINISH_TIMEOUT) -> Finished:
        """For a container that has exited: returns when the end of its log is written.

        Bounded: after `timeout` seconds what is there is written, though somebody may still hold
        the FIFOs open, and they are closed. Then the logger knows the container no more.

        Raises:
            Unavailable: there is no logger.
        """
        request = messages.Finish(seq=next(self._seq), id=container, timeout=timeout)
        finished = await self._ask(request, Finished, timeout=timeout + CALL_TIMEOUT)
        self._release(container)
        return finished

    async def detach(self, container: str) -> None:
        """Has the logger forget a container; what can be read at once is written. Idempotent."""
        await self._ask(messages.Detach(seq=next(self._seq), id=container), None)
        self._release(container)

    async def list(self) -> list[Attached]:
        """The logger's containers."""
        return await self._ask(messages.List(seq=next(self._seq)), list[Attached])

    async def status(self) -> LoggerStatus:
        """The logger process."""
        return await self._ask(messages.Status(seq=next(self._seq)), LoggerStatus)

    async def ping(self) -> None:
        await self._ask(messages.Ping(seq=next(self._seq)), None)

    async def tap(self, container: str, *, stdout: bool = True, stderr: bool = True) -> TapReader:
        """Subscribes to what a running container writes from now on.

        The container waits for a subscriber that doesn't read; `TapReader.close` it.

        Raises:
            NotFound, FailedPrecondition: it isn't attached (any more); its output has ended.
        """
        await self.ensure()
        names = [name for name, wanted in (("stdout", stdout), ("stderr", stderr)) if wanted]
        request = messages.Tap(seq=next(self._seq), id=container, stdout=stdout, stderr=stderr)
        with contextlib.ExitStack() as ours:
            theirs = ours.enter_context(contextlib.ExitStack())
            pipes = [os.pipe() for _ in names]
            for reader, writer in pipes:
                ours.callback(os.close, reader)
                theirs.callback(os.close, writer)
            reply = await self._send_descriptors(request, [writer for _, writer in pipes])
            _result(reply, None)
            theirs.close()
            ours.pop_all()
        return TapReader({name: pipe[0] for name, pipe in zip(names, pipes, strict=True)})

    async def aclose(self) -> None:
        """Disconnects. The logger runs on."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        if self._link is not None:
            await self._link.aclose()
        for container in list(self._held):
            self._release(container)

    # The connection

    async def _ask(
        self, request: messages.AnyRequest, kind: type[T] | None, timeout: float = CALL_TIMEOUT
    ) -> T:
        """Asks, and asks again where the connection breaks: all requests are idempotent."""
        deadline = time.monotonic() + timeout
        while True:
            link = await self._live(deadline - time.monotonic())
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    return _result(await link.ask(request), kind)
            except TimeoutError:
                op = type(request).__name__.lower()
                raise Unavailable(f"logger: {op}: no answer in {timeout:g} s") from None
            except _LinkBroken:
                continue

    async def _live(self, timeout: float) -> _Link:
        try:
            async with asyncio.timeout(timeout), self._connecting:
                if self._link is None or self._link.broken.is_set():
                    self._link = await self._open()
        except TimeoutError:
            raise Unavailable(f"logger: not there within {timeout:.3g} s: {self._path}") from None
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch(), name="logger-watch")
        return self._link

    async def _open(self) -> _Link:
        reader, writer = await self._connect()
        link = _Link(reader, writer)
        try:
            for attached in _result(await link.ask(messages.List()), list[Attached]):
                if not attached.ended:
                    spec = attached.spec
                    self.hold(spec.id, spec.stdout, spec.stderr)
        except _LinkBroken as error:
            await link.aclose()
            raise Unavailable("logger: it went away at once") from error
        except BaseException:
            await link.aclose()
            raise
        return link

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        started = False
        while True:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                return await asyncio.open_unix_connection(str(self._path))
            if started:  # by somebody else, and it doesn't listen yet; or it died just now
                await asyncio.sleep(_RETRY)
            if self._may_start:
                await self._start()
            started = True

    async def _start(self) -> None:
        package = str(Path(zos_cri.__file__).parent.parent)
        search = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        env = {**os.environ, "PYTHONPATH": search}
        try:
            done = await spawn.run(self._argv, env=env, cwd="/", timeout=START_TIMEOUT, linger=0)
        except (OSError, DeadlineExceeded) as error:
            raise Unavailable(f"logger: start: {one_line(error)}") from error
        if done.returncode == 0:
            self.starts += 1
            _log.info("logger started", socket=str(self._path))
        elif done.returncode != messages.EXIT_RUNNING:
            raise Unavailable(f"logger: start: {done.failure()}")

    async def _watch(self) -> None:
        """Keeps a logger alive for as long as we are there."""
        while True:
            if self._link is not None:
                await self._link.broken.wait()
                _log.warning("logger is gone", socket=str(self._path))
            try:
                await self._live(START_TIMEOUT)
            except Exception as error:
                _log.error("logger can't be had", error=one_line(error))
                await asyncio.sleep(_RESTART_PAUSE)

    async def _send_descriptors(self, request: messages.Tap, fds: Sequence[int]) -> messages.Reply:
        """By a connection of its own: a stream writer can't send descriptors."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            try:
                async with asyncio.timeout(CALL_TIMEOUT):
                    await loop.sock_connect(sock, str(self._path))
                    # An empty socket takes these few bytes at once.
                    socket.send_fds(sock, [messages.frame(request)], list(fds))
                    frames = messages.Frames(messages.MAX_REPLY)
                    while data := await loop.sock_recv(sock, _RECEIVE):
                        for body in frames.feed(data):
                            return messages.parse_reply(body)
            except (OSError, messages.ProtocolError) as error:
                raise Unavailable(f"logger: tap: {one_line(error)}") from error
        raise Unavailable("logger: tap: it went away")

    # The FIFOs' read ends

    def hold(self, container: str, *fifos: str) -> None:
        """Keeps a container's FIFOs open for reading, until `finish` or `detach`.

        So nobody who opens them waits for the logger, or loses what it wrote where that goes away.
        """
        if container in self._held:
            return
        fds = self._held[container] = []
        for path in filter(None, fifos):
            with contextlib.suppress(OSError):  # the logger says what is wrong with it
                fds.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))

    def _release(self, container: str) -> None:
        for fd in self._held.pop(container, ()):
            os.close(fd)


class TapReader:
    """A subscription's reading ends, by stream. Cancelling a read loses nothing."""

    def __init__(self, fds: dict[str, int]) -> None:
        """Owns the descriptors."""
        self._fds = fds
        for fd in fds.values():
            os.set_blocking(fd, False)

    async def read(self, stream: str, limit: int) -> bytes:
        """1 to `limit` bytes of `stdout` or `stderr` as soon as there are any.

        b"" at the end: the stream's, or the logger's own. One reader a stream at a time.
        """
        fd = self._fds[stream]
        while True:
            with contextlib.suppress(BlockingIOError):
                return os.read(fd, limit)
            await _readable(fd)

    def detach(self) -> dict[str, int]:
        """Hands the descriptors over, by stream: closing them all unsubscribes."""
        fds, self._fds = self._fds, {}
        return fds

    def close(self) -> None:
        """Unsubscribes. Idempotent; not while a read waits."""
        while self._fds:
            os.close(self._fds.popitem()[1])


class _LinkBroken(Exception):
    """The connection is gone; the request may or may not have been done."""


class _Link:
    """One connection: requests out, answers to their futures."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.broken = asyncio.Event()
        self._reader = reader
        self._writer = writer
        self._answers: dict[int, asyncio.Future[messages.Reply]] = {}
        self._task = asyncio.create_task(self._receive(), name="logger-link")

    async def ask(self, request: messages.AnyRequest) -> messages.Reply:
        """Raises _LinkBroken."""
        if self.broken.is_set():
            raise _LinkBroken
        answer: asyncio.Future[messages.Reply] = asyncio.get_running_loop().create_future()
        self._answers[request.seq] = answer
        try:
            self._writer.write(messages.frame(request))
            return await answer
        finally:
            del self._answers[request.seq]

    async def aclose(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _receive(self) -> None:
        frames = messages.Frames(messages.MAX_REPLY)
        try:
            while data := await self._reader.read(_RECEIVE):
                for body in frames.feed(data):
                    reply = messages.parse_reply(body)
                    answer = self._answers.get(reply.seq)
                    if answer is not None and not answer.done():
                        answer.set_result(reply)
        except (OSError, messages.ProtocolError) as error:
            _log.warning("logger connection broke", error=one_line(error))
        finally:
            self.broken.set()
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(_LinkBroken())
            self._writer.close()


def _result(reply: messages.Reply, kind: type[T] | None) -> T:
    """An answer's content, or its error raised."""
    if reply.code:
        raise _ERRORS.get(reply.code, errors.Internal)(reply.error)
    return msgspec.json.decode(reply.result, type=kind)


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def tell() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, tell)
    try:
        await ready
    finally:
        loop.remove_reader(fd)
