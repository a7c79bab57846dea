"""From an authorised request to its session: SPDY or WebSocket, process or port-forward."""

from __future__ import annotations

import asyncio
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import parse_qs

from zos_cri.log import get_log
from zos_cri.streaming.backend import AttachRequest, ExecRequest, PortForwardRequest
from zos_cri.streaming.http import (
    ACCEPTED_VERSIONS,
    PROTOCOL_VERSION,
    SPDY_UPGRADE,
    HttpError,
    switching_protocols,
)
from zos_cri.streaming.link import ConnectionLost
from zos_cri.streaming.portforward import Forwarder, forward
from zos_cri.streaming.remotecommand import (
    DRAIN_TIMEOUT,
    Plan,
    StreamCollector,
    say_failure,
    serve_process,
)
from zos_cri.streaming.spdy import SpdySession
from zos_cri.streaming.stream import StreamReset
from zos_cri.wire import portforward as pf
from zos_cri.wire.remotecommand import (
    CHANNELS,
    SPDY_PROTOCOLS,
    WEBSOCKET_PROTOCOLS,
    StreamType,
    WebSocketProtocol,
    negotiate,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable

    from zos_cri.streaming.backend import Backend, ProcessIO
    from zos_cri.streaming.http import Request
    from zos_cri.streaming.link import Link
    from zos_cri.streaming.stream import Stream
    from zos_cri.streaming.tokens import Tokens
    from zos_cri.streaming.websocket import WebSocket

    Work: TypeAlias = Coroutine[None, None, None]

_log = get_log(__name__)

AnyRequest: TypeAlias = ExecRequest | AttachRequest | PortForwardRequest

# Seconds that a client has to close after it took the last byte. They close at once.
LINGER: Final = 10.0
_MAX_PORTS: Final = 100  # of one WebSocket; a channel's number is a byte, and each takes two


class Sessions:
    """Makes sessions."""

    def __init__(
        self,
        backend: Backend,
        *,
        creation_timeout: float,
        idle_timeout: float,
        linger: float = LINGER,
        drain_timeout: float = DRAIN_TIMEOUT,
    ) -> None:
        self._backend = backend
        self._creation_timeout = creation_timeout
        self._idle_timeout = idle_timeout
        self._linger = linger
        self._drain_timeout = drain_timeout

    def begin(
        self, link: Link, request: Request, tokens: Tokens[AnyRequest], token: str, what: AnyRequest
    ) -> Work:
        """Upgrades the connection and gives the session to be run.

        The token is used up if the connection is upgraded, and only then: a client that tries
        WebSocket first may come again with SPDY.

        Raises:
            HttpError: it isn't to be upgraded. Nothing was sent.
        """
        if request.upgrades_to("websocket"):
            work = self._websocket(link, request, what)
        elif request.upgrades_to(SPDY_UPGRADE):
            work = self._spdy(link, request, what)
        else:
            raise HttpError(
                HTTPStatus.BAD_REQUEST,
                "unable to upgrade: neither SPDY/3.1 nor websocket asked for",
            )
        tokens.redeem(token)
        return self._run(link, work)

    async def _run(self, link: Link, work: Work) -> None:
        try:
            await work
            await link.linger(self._linger)
        except (ConnectionLost, StreamReset, asyncio.CancelledError) as error:
            _log.debug("streaming client is gone", timed_out=link.timed_out, error=error)
        except Exception:
            _log.exception("streaming session failed")
        finally:
            link.abort()

    # SPDY.

    def _spdy(self, link: Link, request: Request, what: AnyRequest) -> Work:
        if isinstance(what, PortForwardRequest):
            protocol = _negotiate_spdy(request, (pf.PROTOCOL,))
            forwarder = self._forwarder(what)
            session = SpdySession(link, on_stream=forwarder)
            work = self._serve_forwarder(link, forwarder)
        else:
            protocol = _negotiate_spdy(request, SPDY_PROTOCOLS)
            version = SPDY_PROTOCOLS[protocol]
            collector = StreamCollector(what, version)
            session = SpdySession(link, on_stream=collector)
            plan = self._plan(what, version, error_before_end=version == 1)
            work = self._serve_spdy_process(link, session, collector, plan)
        link.write(switching_protocols([(PROTOCOL_VERSION, protocol)]))
        link.attach(session)
        if request.rest:
            session.data_received(request.rest)
        return work

    async def _serve_spdy_process(
        self, link: Link, session: SpdySession, collector: StreamCollector, plan: Plan
    ) -> None:
        link.limit(self._idle_timeout, idle=True)
        try:
            async with asyncio.timeout(self._creation_timeout):
                await collector.complete()
        except TimeoutError:
            text = f"timed out waiting for the client's streams: {collector.missing}"
            _log.info("client opened too few streams", missing=collector.missing)
            await say_failure(plan.version, text, collector.streams)
            session.goaway()
            return
        await serve_process(plan, collector.streams)
        session.goaway()

    async def _serve_forwarder(self, link: Link, forwarder: Forwarder) -> None:
        link.limit(self._idle_timeout, idle=True)
        try:
            await asyncio.wait([link.lost])
        finally:
            await forwarder.aclose()

    # WebSocket.

    def _websocket(self, link: Link, request: Request, what: AnyRequest) -> Work:
        from zos_cri.streaming.websocket import WebSocket  # noqa: PLC0415

        is_forward = isinstance(what, PortForwardRequest)
        channels = pf.WEBSOCKET_PROTOCOLS if is_forward else WEBSOCKET_PROTOCOLS
        names = [protocol.name for protocol in channels]
        if is_forward:
            names.append(pf.TUNNEL_PROTOCOL)
        offered = request.items("sec-websocket-protocol")
        name = negotiate(offered, names)
        if offered and name is None:
            raise _no_common_protocol(offered, names)
        # No subprotocol asked for: binary channels, of version 1 where that matters.
        protocol = next((p for p in channels if p.name == name), WebSocketProtocol("", 1))
        ports = _ports(what, request) if isinstance(what, PortForwardRequest) else ()
        if is_forward and name != pf.TUNNEL_PROTOCOL and not 1 <= len(ports) <= _MAX_PORTS:
            text = f"the request names {len(ports)} ports; 1 to {_MAX_PORTS} can be had"
            raise HttpError(HTTPStatus.BAD_REQUEST, text)

        socket = WebSocket(link)
        response = socket.handshake(request, name)
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            text = bytes(response.body or b"").decode().strip()
            raise HttpError(HTTPStatus(response.status_code), text)
        link.attach(socket)
        link.limit(self._idle_timeout, idle=True)
        socket.accept(response)
        if not isinstance(what, PortForwardRequest):
            work = self._process_channels(socket, protocol, what)
        elif name == pf.TUNNEL_PROTOCOL:
            work = self._tunnel(link, socket, what)
        else:
            work = self._port_channels(socket, protocol, what.pod_id, ports)
        if request.rest:
            socket.data_received(request.rest)
        return work

    def _process_channels(
        self, socket: WebSocket, protocol: WebSocketProtocol, what: ExecRequest | AttachRequest
    ) -> Work:
        from zos_cri.streaming.websocket import ChannelSession  # noqa: PLC0415

        readable = [CHANNELS.index(StreamType.RESIZE)]
        if what.stdin:
            readable.append(CHANNELS.index(StreamType.STDIN))
        session = ChannelSession(socket, protocol, readable=readable)
        wanted = {
            StreamType.STDIN: what.stdin,
            StreamType.STDOUT: what.stdout,
            StreamType.STDERR: what.stderr,
            StreamType.ERROR: True,
            StreamType.RESIZE: True,
        }
        streams: dict[StreamType, Stream] = {
            kind: session.channel(CHANNELS.index(kind))
            for kind, is_wanted in wanted.items()
            if is_wanted
        }
        # An empty message on the first channel that is written to tells the client that it is
        # connected, as the kubelet's library does.
        first = next(
            kind
            for kind in (StreamType.STDOUT, StreamType.STDERR, StreamType.ERROR)
            if kind in streams
        )
        session.channel(CHANNELS.index(first)).send(b"")

        async def serve() -> None:
            await serve_process(self._plan(what, protocol.version), streams)
            socket.close()

        return serve()

    def _tunnel(self, link: Link, socket: WebSocket, what: PortForwardRequest) -> Work:
        from zos_cri.streaming.websocket import Tunnel  # noqa: PLC0415

        forwarder = self._forwarder(what)
        tunnel = Tunnel(socket)
        tunnel.receiver = SpdySession(tunnel, on_stream=forwarder)
        return self._serve_forwarder(link, forwarder)

    def _port_channels(
        self, socket: WebSocket, protocol: WebSocketProtocol, pod_id: str, ports: tuple[int, ...]
    ) -> Work:
        from zos_cri.streaming.websocket import ChannelSession  # noqa: PLC0415

        session = ChannelSession(socket, protocol, readable=range(0, 2 * len(ports), 2))
        for channel, port in enumerate(port for port in ports for _ in range(2)):
            session.channel(channel).send(pf.port_prefix(port))

        async def serve() -> None:
            async with asyncio.TaskGroup() as group:
                for index, port in enumerate(ports):
                    data, error = session.channel(2 * index), session.channel(2 * index + 1)
                    group.create_task(
                        forward(self._backend, pod_id, port, data, error, half_close=False)
                    )
            socket.close()

        return serve()

    # Both.

    def _forwarder(self, what: PortForwardRequest) -> Forwarder:
        return Forwarder(self._backend, what.pod_id, creation_timeout=self._creation_timeout)

    def _plan(
        self, what: ExecRequest | AttachRequest, version: int, *, error_before_end: bool = False
    ) -> Plan:
        start: Callable[[], Awaitable[ProcessIO]]
        if isinstance(what, ExecRequest):
            start, failure = partial(self._backend.exec, what), "executing command in"
        else:
            start, failure = partial(self._backend.attach, what), "attaching to"
        return Plan(
            version,
            what,
            start,
            failure=f"error {failure} container",
            report_exit=isinstance(what, ExecRequest),
            error_before_end=error_before_end,
            drain_timeout=self._drain_timeout,
        )


def _negotiate_spdy(request: Request, supported: Iterable[str]) -> str:
    offered = request.items(PROTOCOL_VERSION)
    if not offered:
        raise HttpError(
            HTTPStatus.BAD_REQUEST, f"unable to upgrade: header {PROTOCOL_VERSION} is missing"
        )
    protocol = negotiate(offered, supported)
    if protocol is None:
        raise _no_common_protocol(offered, supported)
    return protocol


def _no_common_protocol(offered: Iterable[str], supported: Iterable[str]) -> HttpError:
    names = list(supported)
    text = f"unable to upgrade: client has {', '.join(offered)}, server has {', '.join(names)}"
    return HttpError(HTTPStatus.FORBIDDEN, text, [(ACCEPTED_VERSIONS, name) for name in names])


def _ports(what: PortForwardRequest, request: Request) -> tuple[int, ...]:
    """The ports of the CRI request; where it has none, those that the client's query names."""
    if what.ports:
        return what.ports
    try:
        values = parse_qs(request.query, max_num_fields=_MAX_PORTS).get("port", [])
        ports = [pf.parse_port(part) for value in values for part in value.split(",")]
    except (pf.PortForwardError, ValueError) as error:
        raise HttpError(HTTPStatus.BAD_REQUEST, str(error)) from error
    return tuple(ports)
