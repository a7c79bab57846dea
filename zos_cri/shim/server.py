"""The asyncio shell of a ttrpc server on a unix socket, for peers of our own user."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import struct
from collections import deque
from typing import TYPE_CHECKING, Final, cast

from google.protobuf.message import DecodeError

from zos_cri import errors
from zos_cri._pb import ttrpc_pb2
from zos_cri.log import get_log
from zos_cri.shim.status import from_error
from zos_cri.wire import ttrpc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    Handler = Callable[[bytes, Mapping[str, str]], Awaitable[bytes]]
    Instant = Callable[[bytes], bytes]

_log = get_log(__name__)

# Handlers that run at once for one connection; beyond it we stop reading, and the peer waits.
MAX_IN_FLIGHT: Final = 128
_PROBE_TIMEOUT: Final = 1.0  # connecting to a unix socket waits for a full queue only
_UCRED: Final = struct.Struct("iII")


class Server:
    """Serves handlers, each a coroutine function `(payload, metadata) -> payload`.

    Args:
        handlers: by service and method. An error of `zos_cri.errors` becomes its status.
        instant: those that return at once: each is answered as it is read, without a task.
        max_in_flight: handlers running at once for one connection.
    """

    def __init__(
        self,
        handlers: Mapping[tuple[str, str], Handler],
        *,
        instant: Mapping[tuple[str, str], Instant] | None = None,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        self.handlers = handlers
        self.instant = instant or {}
        self.max_in_flight = max_in_flight
        self.connections: set[ServerConnection] = set()
        self._server: asyncio.Server | None = None
        self._path = ""

    async def start(self, path: str) -> None:
        """Listens on a path, readable by our user only; a socket left there is replaced.

        Raises:
            AlreadyExists: somebody listens there.
            OSError: the path can't be used.
        """
        await remove_stale(path)
        loop = asyncio.get_running_loop()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Before listen: nobody can connect while the mode is still the umask's.
            listener.bind(path)
            os.chmod(path, 0o600)
            self._server = await loop.create_unix_server(
                lambda: ServerConnection(self), sock=listener
            )
        except BaseException:
            listener.close()
            raise
        self._path = path

    async def close(self) -> None:
        """Stops listening, closes all connections, removes the socket."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self.connections):
            connection.close()
        await self._server.wait_closed()
        self._server = None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)


class ServerConnection(asyncio.Protocol):
    """One peer."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._core = ttrpc.Server()
        self._transport: asyncio.Transport | None = None
        self._queue: deque[tuple[ttrpc.RequestReceived, ttrpc_pb2.Request]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self.peer = "?"

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        pid, uid = _peer_credentials(transport.get_extra_info("socket"))
        self.peer = f"pid {pid}"
        if uid != os.geteuid():
            _log.warning("ttrpc peer refused", pid=pid, uid=uid, want_uid=os.geteuid())
            self._transport.abort()
            return
        self._server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        for event in self._core.receive_data(data):
            if isinstance(event, ttrpc.RequestReceived):
                self._take(event)
            elif isinstance(event, ttrpc.Broken):
                _log.warning("ttrpc peer broke the protocol", peer=self.peer, error=event.error)
                self.close()
                return
        self._start_handlers()

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self)
        self._queue.clear()
        for task in self._tasks:
            task.cancel()

    def _take(self, event: ttrpc.RequestReceived) -> None:
        """Answers a request, or has it wait for its task."""
        try:
            request = ttrpc_pb2.Request.FromString(event.data)
        except DecodeError as error:
            self._failed(event, errors.InvalidArgument(f"not a ttrpc.Request: {error}"))
            return
        instant = self._server.instant.get((request.service, request.method))
        if instant is None or event.streaming:
            self._queue.append((event, request))
            return
        try:
            payload = instant(request.payload)
        except Exception as error:
            self._failed(event, error)
        else:
            self._respond(event.stream_id, ttrpc_pb2.Response(payload=payload))

    def _failed(self, event: ttrpc.RequestReceived, error: Exception) -> None:
        if not isinstance(error, errors.Error):
            _log.exception("ttrpc handler failed", peer=self.peer)
            error = errors.Internal(errors.one_line(error))
        self._respond(event.stream_id, ttrpc_pb2.Response(status=from_error(error)))

    def _start_handlers(self) -> None:
        """Starts what may run now; reads on only when everything read has been started."""
        if self._transport is None or self._transport.is_closing():
            return
        while self._queue and len(self._tasks) < self._server.max_in_flight:
            task = asyncio.create_task(self._serve(*self._queue.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._finished)
        if self._queue:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._start_handlers()

    async def _serve(self, event: ttrpc.RequestReceived, request: ttrpc_pb2.Request) -> None:
        try:
            response = ttrpc_pb2.Response(payload=await self._handle(event, request))
        except Exception as error:
            self._failed(event, error)
        else:
            self._respond(event.stream_id, response)

    async def _handle(self, event: ttrpc.RequestReceived, request: ttrpc_pb2.Request) -> bytes:
        name = (request.service, request.method)
        handler = self._server.handlers.get(name)
        if handler is None or event.streaming:
            kind = "streaming " if handler is not None else ""
            raise errors.Unimplemented(
                f"{kind}{request.service}/{request.method} isn't served here"
            )
        timeout = request.timeout_nano / 1e9 if request.timeout_nano > 0 else None
        metadata = {pair.key: pair.value for pair in request.metadata}
        try:
            async with asyncio.timeout(timeout):
                return await handler(request.payload, metadata)
        except TimeoutError:
            raise errors.DeadlineExceeded(f"{name[0]}/{name[1]}: the caller's deadline") from None

    def _respond(self, stream_id: int, response: ttrpc_pb2.Response) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        try:
            self._core.respond(stream_id, response.SerializeToString())
        except ttrpc.LocalProtocolError as error:
            status = from_error(errors.ResourceExhausted(str(error)))
            self._core.respond(stream_id, ttrpc_pb2.Response(status=status).SerializeToString())
        self._transport.write(self._core.data_to_send())


async def remove_stale(path: str) -> None:
    """Removes the socket of a server that is gone, and nothing else.

    Raises:
        AlreadyExists: somebody listens there, or it is no socket.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise errors.AlreadyExists(f"{path}: is there and isn't a socket")
    except FileNotFoundError:
        return
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT):
                await loop.sock_connect(probe, path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except TimeoutError:
            pass  # its queue is full, so somebody listens
    raise errors.AlreadyExists(f"{path}: another process listens there")


def _peer_credentials(sock: socket.socket) -> tuple[int, int]:
    """A unix peer's pid and user, as the kernel noted them when it connected."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _gid = _UCRED.unpack(raw)
    return pid, uid
