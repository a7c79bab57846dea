"""Port-forwarding: each pair of a client's streams joined to a connection into the pod.

Connections are independent: what happens to one is said on its own streams. A client-go of today
gives up the whole session when its error stream carries a message, so there is one only where the
port couldn't be connected to; a connection that breaks later resets its data stream.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from zos_cri.errors import Error, one_line
from zos_cri.log import get_log
from zos_cri.streaming.link import ConnectionLost
from zos_cri.streaming.spdy import Refused
from zos_cri.streaming.stream import CHUNK, StreamReset
from zos_cri.streaming.tasks import cancel_all, uninterrupted
from zos_cri.wire.portforward import Pairing, PortForwardError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from zos_cri.streaming.backend import Backend, Connection
    from zos_cri.streaming.spdy import SpdyStream
    from zos_cri.streaming.stream import Stream

_log = get_log(__name__)


async def forward(
    backend: Backend,
    pod_id: str,
    port: int,
    data: Stream,
    error: Stream,
    *,
    half_close: bool = True,
) -> None:
    """One connection from its start to its end, both directions. Raises nothing but cancellation.

    Where the streams can't pass on the end of one direction (`half_close`), the pod's end is the
    connection's.

    The streams are ended, and the connection is closed, before this returns.
    """
    error.discard()  # clients send nothing here
    try:
        connection = await backend.port_forward(pod_id, port)
    except (Error, OSError) as reason:
        _log.info("port can't be forwarded", pod=pod_id, port=port, error=one_line(reason))
        text = f"error forwarding port {port} to pod {pod_id}: {one_line(reason)}"
        await _say(error, text)
        data.reset()
        return
    except Exception:
        _log.exception("port can't be forwarded", pod=pod_id, port=port)
        await _say(error, f"error forwarding port {port}: a mistake of the server, see its log")
        data.reset()
        return
    try:
        await _join(connection, data, error, half_close=half_close)
    except (ConnectionLost, StreamReset):
        pass  # the client gave it up
    except (Error, OSError) as reason:
        _log.debug("forwarded connection broke", pod=pod_id, port=port, error=reason)
    except Exception:
        _log.exception("forwarded connection failed", pod=pod_id, port=port)
    finally:
        data.reset()  # nothing where both directions have ended as they should
        error.write_eof()
        await uninterrupted(connection.aclose, "closing a forwarded connection")


async def _join(connection: Connection, data: Stream, error: Stream, *, half_close: bool) -> None:
    """Copies both ways until both have ended, or the client resets. Half-closes are passed on."""
    from_pod = asyncio.create_task(_from_pod(connection, data, error))
    copies = {asyncio.create_task(_from_client(connection, data)), from_pod}
    # Both may be waiting for the pod when the client gives the connection up.
    reset = asyncio.create_task(data.wait_reset())
    pending: set[asyncio.Task[None]] = set(copies)
    try:
        while pending:
            done, _ = await asyncio.wait({reset, *pending}, return_when=asyncio.FIRST_COMPLETED)
            if reset in done:
                return
            for task in done:
                await task
            pending -= done
            if from_pod in done and not half_close:
                return
    finally:
        await cancel_all({reset, *copies})


async def _from_client(connection: Connection, data: Stream) -> None:
    try:
        while chunk := await data.read(CHUNK):
            await connection.write(chunk)
        await connection.write_eof()
    except (BrokenPipeError, ConnectionResetError):
        # The pod reads no more, but what it has sent before is still to come.
        data.discard()


async def _from_pod(connection: Connection, data: Stream, error: Stream) -> None:
    while chunk := await connection.read(CHUNK):
        await data.write(chunk)
    data.write_eof()
    # There is no error to come. A client waits for this before it closes its own side.
    error.write_eof()


async def _say(error: Stream, text: str) -> None:
    try:
        await error.write(text.encode())
    except (ConnectionLost, StreamReset):
        return
    error.write_eof()


class Forwarder:
    """All connections of one SPDY client: an `on_stream`."""

    def __init__(self, backend: Backend, pod_id: str, *, creation_timeout: float) -> None:
        """`creation_timeout`: seconds that one stream of a pair waits for the other."""
        self._backend = backend
        self._pod_id = pod_id
        self._creation_timeout = creation_timeout
        self._pairing = Pairing()
        self._streams: dict[int, SpdyStream] = {}  # of pairs that aren't whole
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, stream: SpdyStream) -> None:
        try:
            request_id, pair = self._pairing.add(stream.id, stream.headers)
        except PortForwardError as reason:
            raise Refused(str(reason)) from reason
        self._streams[stream.id] = stream
        if pair is None:
            self._timers[request_id] = asyncio.get_running_loop().call_later(
                self._creation_timeout, self._give_up, request_id
            )
            return
        self._timers.pop(request_id).cancel()
        data, error = self._streams.pop(pair.data_stream), self._streams.pop(pair.error_stream)
        self._start(forward(self._backend, self._pod_id, pair.port, data, error))

    async def aclose(self) -> None:
        """Ends all connections."""
        for timer in self._timers.values():
            timer.cancel()
        await cancel_all(self._tasks)

    def _give_up(self, request_id: str) -> None:
        del self._timers[request_id]
        for stream_id in self._pairing.forget(request_id):
            self._start(self._say_incomplete(self._streams.pop(stream_id)))

    async def _say_incomplete(self, stream: SpdyStream) -> None:
        if stream.headers.get("streamtype") == "error":
            await _say(stream, "timed out waiting for the data stream of this connection")
        stream.reset()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
