"""The streaming server: URLs for exec, attach and port-forward, and the connections behind them."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from zos_cri.errors import InvalidArgument
from zos_cri.log import get_log
from zos_cri.streaming.backend import AttachRequest, ExecRequest, PortForwardRequest
from zos_cri.streaming.http import HttpError, Request, RequestParser, error_response
from zos_cri.streaming.link import Link
from zos_cri.streaming.sessions import LINGER, Sessions
from zos_cri.streaming.tasks import cancel_all
from zos_cri.streaming.tokens import LIFETIME, MAX_WAITING, Tokens

if TYPE_CHECKING:
    import ssl

    from zos_cri.streaming.backend import Backend
    from zos_cri.streaming.link import Receiver
    from zos_cri.streaming.sessions import AnyRequest

_log = get_log(__name__)

CREATION_TIMEOUT: Final = 30.0  # seconds until the request, and then its streams, must be there
IDLE_TIMEOUT: Final = 4 * 3600.0  # seconds without a byte either way
# Connections at a time, those that haven't sent their request included. One exec is one.
MAX_CONNECTIONS: Final = 4000

_KINDS: Final[dict[str, type[AnyRequest]]] = {
    "exec": ExecRequest,
    "attach": AttachRequest,
    "portforward": PortForwardRequest,
}


class StreamingServer:
    """Issues URLs and serves them. `start` before URLs are asked for."""

    def __init__(
        self,
        backend: Backend,
        *,
        address: str = "127.0.0.1",
        port: int = 0,
        socket_path: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        base_url: str | None = None,
        token_lifetime: float = LIFETIME,
        max_tokens: int = MAX_WAITING,
        creation_timeout: float = CREATION_TIMEOUT,
        idle_timeout: float = IDLE_TIMEOUT,
        linger: float = LINGER,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """
        Args:
            address, port: where to listen; port 0 is any that is free.
            socket_path: a unix socket to listen on instead, mode 0600. Its URLs are
                `http+unix://<quoted path>/…` unless `base_url` says something else.
            tls_cert, tls_key: files in PEM; both or neither.
            base_url: what URLs begin with, where clients reach this server under another name.
            token_lifetime, creation_timeout, idle_timeout, linger: seconds.
        """
        if bool(tls_cert) != bool(tls_key):
            raise InvalidArgument("streaming: a TLS certificate and its key come together")
        self._address = address
        self._port = port
        self._socket_path = socket_path
        self._tls_files = (tls_cert, tls_key) if tls_cert and tls_key else None
        self._base_url = base_url.rstrip("/") if base_url else None
        self._creation_timeout = creation_timeout
        self._max_connections = max_connections
        self._token_lifetime = token_lifetime
        self._max_tokens = max_tokens
        self._tokens: Tokens[AnyRequest] | None = None
        self._sessions = Sessions(
            backend,
            creation_timeout=creation_timeout,
            idle_timeout=idle_timeout,
            linger=linger,
        )
        self._server: asyncio.Server | None = None
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begins to listen.

        Raises:
            OSError: the address is taken, or a TLS file can't be read.
        """
        loop = asyncio.get_running_loop()
        self._tokens = Tokens(
            clock=loop.time, lifetime=self._token_lifetime, limit=self._max_tokens
        )
        tls = self._tls()
        if self._socket_path is not None:
            listener = _bind_unix(self._socket_path)
            self._server = await loop.create_unix_server(self._connected, sock=listener, ssl=tls)
            default = "http+unix://" + quote(self._socket_path, safe="")
        else:
            self._server = await loop.create_server(
                self._connected,
                self._address,
                self._port,
                ssl=tls,
                ssl_handshake_timeout=self._creation_timeout if tls else None,
            )
            host, port = self._server.sockets[0].getsockname()[:2]
            host = f"[{host}]" if ":" in host else host
            default = f"{'https' if tls else 'http'}://{host}:{port}"
        self._base_url = self._base_url or default
        _log.info("streaming server listens", url=self._base_url)

    @property
    def base_url(self) -> str:
        """What URLs begin with."""
        assert self._base_url is not None, "start() comes first"
        return self._base_url

    def exec_url(self, request: ExecRequest) -> str:
        """A URL at which this command may be run once.

        Raises:
            InvalidArgument: CRI's rules for the request's fields.
            ResourceExhausted: too many URLs wait for their client.
        """
        _check_streams(request)
        if not request.cmd:
            raise InvalidArgument("exec: the command is empty")
        return self._url("exec", request)

    def attach_url(self, request: AttachRequest) -> str:
        """As `exec_url`."""
        _check_streams(request)
        return self._url("attach", request)

    def port_forward_url(self, request: PortForwardRequest) -> str:
        """As `exec_url`; any number of connections in one session."""
        if not request.pod_id:
            raise InvalidArgument("port-forward: the pod sandbox id is missing")
        for port in request.ports:
            if not 1 <= port <= 65535:
                raise InvalidArgument(f"port-forward: {port} is no port")
        return self._url("portforward", request)

    async def aclose(self) -> None:
        """Ends all sessions and stops listening. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        await cancel_all(list(self._tasks))
        for link in list(self._links):
            link.abort()
        if self._links:
            await asyncio.wait([link.lost for link in self._links])
        if server is not None:
            await server.wait_closed()
            if self._socket_path is not None:
                _remove_socket(self._socket_path)

    @property
    def connections(self) -> int:
        """Clients that are connected."""
        return len(self._links)

    # Inside.

    def _url(self, kind: str, request: AnyRequest) -> str:
        assert self._tokens is not None, "start() comes first"
        return f"{self.base_url}/{kind}/{self._tokens.issue(request)}"

    def _tls(self) -> ssl.SSLContext | None:
        if self._tls_files is None:
            return None
        import ssl  # noqa: PLC0415

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(*self._tls_files)
        return context

    def _connected(self) -> Link:
        return Link(self._accepted, on_lost=self._links.discard)

    def _accepted(self, link: Link) -> Receiver:
        # Not earlier: a client that fails the TLS handshake is never reported as lost.
        self._links.add(link)
        return _Front(self, link)

    def serve(self, link: Link, request: Request) -> None:
        """Answers a request, and runs its session where there is to be one."""
        # Everything up to the answer happens here and now, so that a token can't be used twice.
        session = self._sessions.begin(link, request, *self._authorise(request))
        task = asyncio.create_task(session)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        link.lost.add_done_callback(lambda _lost: task.cancel())

    def crowded(self) -> bool:
        """Whether there are more connections than may be."""
        return len(self._links) > self._max_connections

    @property
    def creation_timeout(self) -> float:
        """Seconds until a connection's request must be there."""
        return self._creation_timeout

    def _authorise(self, request: Request) -> tuple[Tokens[AnyRequest], str, AnyRequest]:
        kind, _, token = request.path.removeprefix("/").partition("/")
        wanted = _KINDS.get(kind)
        if wanted is None:
            raise HttpError(HTTPStatus.NOT_FOUND, "not found")
        if request.method not in ("GET", "POST"):
            allow = [("Allow", "GET, POST")]
            raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, "GET or POST", allow)
        assert self._tokens is not None
        what = self._tokens.peek(token)
        if not isinstance(what, wanted):
            raise HttpError(HTTPStatus.NOT_FOUND, "unknown or used token")
        return self._tokens, token, what


class _Front:
    """A connection until its request is there. It is its link's first receiver."""

    def __init__(self, server: StreamingServer, link: Link) -> None:
        self._server = server
        self._link = link
        self._parser = RequestParser()
        self._answered = False
        link.limit(server.creation_timeout, idle=False)
        if server.crowded():
            self._refuse(HttpError(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections"))

    def data_received(self, data: bytes) -> None:
        if self._answered:
            return  # after an error: dropped until the client closes
        try:
            request = self._parser.feed(data)
            if request is not None:
                self._answered = True
                self._server.serve(self._link, request)
        except HttpError as error:
            self._refuse(error)

    def _refuse(self, error: HttpError) -> None:
        self._answered = True
        _log.info("streaming request refused", status=error.status.value, error=error)
        self._link.write(error_response(error))
        self._link.close()

    def connection_lost(self) -> None:
        pass

    def probe(self) -> None:
        pass


def _check_streams(request: ExecRequest | AttachRequest) -> None:
    # CRI's api.proto states these rules on the fields.
    if not request.container_id:
        raise InvalidArgument("the container id is missing")
    if request.tty and request.stderr:
        raise InvalidArgument("tty and stderr can't both be true: a terminal has one output")
    if not (request.stdin or request.stdout or request.stderr):
        raise InvalidArgument("one of stdin, stdout and stderr must be true")


def _bind_unix(path: str) -> socket.socket:
    _remove_socket(path)  # of a server that was killed; anything else makes bind() fail
    listener = socket.socket(socket.AF_UNIX)
    try:
        # The file gets the socket's own mode: it never exists with a wider one.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(path)
    except OSError:
        listener.close()
        raise
    return listener


def _remove_socket(path: str) -> None:
    try:
        if stat.S_ISSOCK(os.stat(path, follow_symlinks=False).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        pass
