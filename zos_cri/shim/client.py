"""The asyncio shell of a ttrpc client: many calls in flight on one connection."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, Protocol, cast

from google.protobuf.message import DecodeError

from zos_cri import errors
from zos_cri._pb import ttrpc_pb2
from zos_cri.shim.status import to_error
from zos_cri.wire import ttrpc

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# A unix socket's connect waits only for a place in the listener's queue.
DIAL_TIMEOUT: Final = 5.0
_NANOSECONDS: Final = 1_000_000_000


class Caller(Protocol):
    """What a typed client needs."""

    async def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        timeout: float | None,
        metadata: Mapping[str, str],
    ) -> bytes: ...


def socket_path(address: str) -> str:
    """The path of a shim's address, as Python's sockets take it.

    `unix:///path` and `/path` are files; `unix://@name`, `@name` and, as containerd before 1.4
    printed them, names with neither scheme nor leading slash are abstract.

    Raises:
        Unimplemented: another scheme (vsock, hvsock).
    """
    scheme, separator, rest = address.partition("://")
    if separator and scheme != "unix":
        raise errors.Unimplemented(f"shim address {address}: only unix sockets are dialled")
    path = rest if separator else address
    if not path:
        raise errors.InvalidArgument("an empty shim address")
    if path.startswith("/"):
        return path
    return "\0" + path.removeprefix("@")


class Connection(asyncio.Protocol):
    """One connection. Made by `dial`, never used again after it closed.

    Args:
        peer: who is at the other end, for messages.
        on_close: called once, when the connection is gone, whoever closed it.
    """

    def __init__(self, peer: str, on_close: Callable[[], None] | None = None) -> None:
        self.peer = peer
        self._core = ttrpc.Client()
        self._transport: asyncio.Transport | None = None
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._writable = asyncio.Event()
        self._writable.set()
        self._reason: str | None = None
        self._on_close = on_close
        self._gone = asyncio.Event()

    @classmethod
    async def dial(
        cls,
        address: str,
        *,
        peer: str,
        timeout: float = DIAL_TIMEOUT,
        on_close: Callable[[], None] | None = None,
    ) -> Connection:
        """Connects to a unix socket.

        Raises:
            Unavailable: nobody listens there.
            DeadlineExceeded: the listener's queue stayed full for `timeout` seconds.
        """
        path = socket_path(address)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                _, connection = await loop.create_unix_connection(lambda: cls(peer, on_close), path)
        except TimeoutError:
            raise errors.DeadlineExceeded(
                f"{peer}: no connection to {address} within {timeout:g} s"
            ) from None
        except OSError as error:
            raise errors.Unavailable(f"{peer}: {address}: {error.strerror or error}") from error
        return connection

    @property
    def closed(self) -> bool:
        """Whether calls would fail at once."""
        return self._reason is not None

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    async def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        timeout: float | None,
        metadata: Mapping[str, str],
    ) -> bytes:
        """One unary call.

        The peer is told of the deadline, but ttrpc can't cancel: after DeadlineExceeded or a
        cancellation the call may still take effect. Ask for the state, don't assume.

        Args:
            timeout: seconds; None waits for as long as the connection lives.

        Raises:
            Unavailable: the connection is gone, or went before the answer came.
            DeadlineExceeded: no answer in time.
            ResourceExhausted: the request is larger than a ttrpc message may be.
            Error: whatever the peer's status says.
        """
        what = f"{self.peer}: {service}/{method}"
        request = ttrpc_pb2.Request(
            service=service,
            method=method,
            payload=payload,
            timeout_nano=int(timeout * _NANOSECONDS) if timeout is not None else 0,
            metadata=[ttrpc_pb2.KeyValue(key=key, value=metadata[key]) for key in metadata],
        ).SerializeToString()
        try:
            async with asyncio.timeout(timeout):
                data = await self._exchange(request, what)
        except TimeoutError:
            raise errors.DeadlineExceeded(f"{what}: no answer within {timeout:g} s") from None
        return _payload(data, what)

    async def _exchange(self, request: bytes, what: str) -> bytes:
        await self._writable.wait()  # a peer that reads no more: the caller's deadline bounds it
        if self._reason is not None or self._transport is None:
            raise errors.Unavailable(f"{what}: {self._reason or 'not connected'}")
        try:
            stream_id = self._core.request(request)
        except ttrpc.LocalProtocolError as error:
            raise errors.ResourceExhausted(f"{what}: {error}") from error
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[stream_id] = future
        self._transport.write(self._core.data_to_send())
        try:
            return await future
        except errors.Unavailable as error:
            raise errors.Unavailable(f"{what}: {error}") from error
        finally:
            del self._waiting[stream_id]
            self._core.abandon(stream_id)
            if future.done() and not future.cancelled():
                future.exception()  # seen, even where the caller was cancelled in the same turn

    async def close(self) -> None:
        """Closes the connection; calls in flight fail with Unavailable."""
        self._close("closed by us")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self._gone.wait()

    def abort(self) -> None:
        """Like `close`, at once."""
        self._close("closed by us")

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._handle(self._core.receive_data(data))

    def eof_received(self) -> None:
        self._handle(self._core.receive_eof())
        self._close("the peer closed the connection")

    def connection_lost(self, error: Exception | None) -> None:
        self._close(str(error) if error else "the peer closed the connection")
        self._gone.set()
        if self._on_close is not None:
            self._on_close()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _handle(self, events: list[ttrpc.Event]) -> None:
        for event in events:
            if isinstance(event, ttrpc.ResponseReceived):
                future = self._waiting.get(event.stream_id)
                if future is not None and not future.done():
                    future.set_result(event.data)
            elif isinstance(event, ttrpc.Broken):
                self._close(f"the peer broke the protocol: {event.error}")

    def _close(self, reason: str) -> None:
        if self._reason is not None:
            return
        self._reason = reason
        self._writable.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(errors.Unavailable(reason))
        if self._transport is not None:
            self._transport.abort()


class Redialler:
    """Calls over one connection that is made again when it is gone.

    A call that was in flight when the connection went fails: whether it took effect isn't known,
    so it isn't repeated.
    """

    def __init__(self, address: str, *, peer: str) -> None:
        self.address = address
        self.peer = peer
        self._connection: Connection | None = None
        self._dialling = asyncio.Lock()
        self._closed = False

    @property
    def connected(self) -> bool:
        return self._connection is not None and not self._connection.closed

    async def connect(self, timeout: float = DIAL_TIMEOUT) -> Connection:
        """The living connection, a new one where there is none.

        Raises:
            Unavailable, DeadlineExceeded: as `Connection.dial`.
        """
        async with self._dialling:
            if self._closed:
                raise errors.Unavailable(f"{self.peer}: closed by us")
            if self._connection is None or self._connection.closed:
                self._connection = await Connection.dial(
                    self.address, peer=self.peer, timeout=timeout
                )
            return self._connection

    async def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        timeout: float | None,
        metadata: Mapping[str, str],
    ) -> bytes:
        """As `Connection.call`; dialling counts towards `timeout`."""
        connection = self._connection
        if connection is None or connection.closed:
            started = asyncio.get_running_loop().time()
            connection = await self.connect(
                DIAL_TIMEOUT if timeout is None else min(timeout, DIAL_TIMEOUT)
            )
            if timeout is not None:
                timeout = max(0.0, timeout - (asyncio.get_running_loop().time() - started))
        return await connection.call(service, method, payload, timeout=timeout, metadata=metadata)

    async def close(self) -> None:
        """Closes for good."""
        self._closed = True
        if self._connection is not None:
            await self._connection.close()


def _payload(data: bytes, what: str) -> bytes:
    try:
        response = ttrpc_pb2.Response.FromString(data)
    except DecodeError as error:
        raise errors.Internal(f"{what}: the answer isn't a ttrpc.Response: {error}") from error
    failure = to_error(response.status, what)
    if failure is not None:
        raise failure
    return response.payload
