"""HTTP to one registry host: TLS, proxies, redirects, and a floor under every transfer.

Runs in worker processes only: urllib3 is a good part of their memory.
"""

from __future__ import annotations

import http.client
import os
import ssl
import threading
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

import msgspec
import urllib3
from urllib3.exceptions import HTTPError, LocationParseError, SSLError

from zos_cri.errors import FailedPrecondition, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from zos_cri.images.hosts import Host
    from zos_cri.images.model import Floor

_MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_USER_AGENT: Final = "zos-cri"
# An error's body is quoted in messages: its first part is enough.
_ERROR_BODY: Final = 4096


class TransferError(Unavailable):
    """The connection, or what came over it, failed; another try or another host may do better.

    Attributes:
        status: the HTTP status where the host answered at all, else 0.
        retry_after: seconds the host asked us to wait; 0 where it named none.
    """

    def __init__(self, message: str, *, status: int = 0, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class Response:
    """An answer whose body is read piece by piece."""

    def __init__(
        self, raw: urllib3.BaseHTTPResponse, floor: Floor, clock: Callable[[], float]
    ) -> None:
        self._raw = raw
        self._floor = floor
        self._clock = clock
        self._window_began = clock()
        self._window_bytes = 0
        self.status: int = raw.status
        self.headers: Mapping[str, str] = raw.headers

    def read(self, size: int) -> bytes:
        """What has arrived, up to `size` bytes; none at the end.

        Raises:
            TransferError: it broke, or came too slowly.
        """
        try:
            piece = self._raw.read1(size)
        except (HTTPError, OSError, http.client.HTTPException) as error:
            raise TransferError(reason(error)) from error
        self._watch(len(piece))
        return piece

    def _watch(self, count: int) -> None:
        self._window_bytes += count
        passed = self._clock() - self._window_began
        if passed >= self._floor.window:
            if self._window_bytes < self._floor.rate * passed:
                raise TransferError(
                    f"stalled: {self._window_bytes} bytes in {passed:.0f} s, less than"
                    f" {self._floor.rate:g} a second"
                )
            self._window_began, self._window_bytes = self._clock(), 0

    def body(self, limit: int) -> bytes:
        """The whole body. Raises TransferError where it has more than `limit` bytes."""
        pieces: list[bytes] = []
        left = limit + 1
        while left > 0 and (piece := self.read(left)):
            pieces.append(piece)
            left -= len(piece)
        if left <= 0:
            raise TransferError(f"an answer of more than {limit} bytes", status=self.status)
        return b"".join(pieces)

    def error_text(self) -> str:
        """What an error's body says, on one line; empty where it isn't a registry's error."""
        try:
            text = self.body(_ERROR_BODY)
        except TransferError:
            return ""
        try:
            document = msgspec.json.decode(text)
            first = document["errors"][0]
            return " ".join(f"{first.get('code', '')}: {first.get('message', '')}".split())
        except (msgspec.DecodeError, KeyError, IndexError, TypeError, AttributeError):
            return ""

    def close(self) -> None:
        """Ends the transfer. A connection whose body wasn't read to its end isn't used again."""
        self._raw.close()
        self._raw.release_conn()


class Client:
    """Requests to one host, and to where it redirects. Safe for several threads."""

    def __init__(
        self,
        host: Host,
        *,
        floor: Floor,
        connections: int = 8,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.host = host
        self._floor = floor
        self._connections = connections
        self._environ = environ
        self._clock = clock
        self._scheme = "https" if host.scheme == "auto" else host.scheme
        self._settled = host.scheme != "auto"
        self._lock = threading.Lock()
        self._managers: dict[tuple[str, bool, str], urllib3.PoolManager] = {}
        self._contexts: dict[bool, ssl.SSLContext] = {}  # the host's own, and that for others

    def forget_connections(self) -> None:
        """In a process that was forked: the connections are the parent's, and aren't used here."""
        self._managers.clear()

    def url(self, path: str) -> str:
        """The URL of `path` below the API's root."""
        return f"{self._scheme}://{self.host.host}{self.host.path}{path}"

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
    ) -> Response:
        """One request to the host's API; redirects are followed.

        Raises:
            TransferError: no answer. An answer of any status is returned.
        """
        given = {"User-Agent": _USER_AGENT, **dict(self.host.header), **dict(headers)}
        try:
            return self._follow(method, self.url(path), given)
        except TransferError as error:
            if self._settled or not isinstance(error.__cause__, SSLError | HTTPError | OSError):
                raise
            with self._lock:
                self._scheme, self._settled = "http", True
            try:
                return self._follow(method, self.url(path), given)
            except TransferError as second:
                raise TransferError(str(second)) from error

    def _follow(self, method: str, url: str, headers: dict[str, str]) -> Response:
        for _ in range(_MAX_REDIRECTS + 1):
            response = self.send(method, url, headers=headers)
            self._settled = True
            if response.status not in _REDIRECTS or "Location" not in response.headers:
                return response
            response.close()
            target = urljoin(url, response.headers["Location"])
            if urlsplit(target).scheme not in ("http", "https"):
                raise TransferError(f"redirected to {target!r}", status=response.status)
            if urlsplit(target).scheme == "http" and url.startswith("https://"):
                raise TransferError("redirected from https to http", status=response.status)
            if urlsplit(target).netloc != urlsplit(url).netloc:
                # The other host has no business with our credentials for this one.
                names = ("User-Agent", "Range", "Accept")
                headers = {name: headers[name] for name in names if name in headers}
            url = target
        raise TransferError(f"more than {_MAX_REDIRECTS} redirects")

    def send(
        self, method: str, url: str, *, headers: Mapping[str, str], body: bytes | None = None
    ) -> Response:
        """One request to any URL; redirects are answers like others.

        Raises:
            TransferError: no answer.
            FailedPrecondition: a certificate or key of this host's configuration is unusable.
        """
        manager = self._manager(url)
        try:
            raw = manager.request(
                method,
                url,
                headers={"Accept-Encoding": "identity", **headers},
                body=body,
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
                timeout=urllib3.Timeout(connect=self.host.dial_timeout, read=self._floor.window),
            )
        except LocationParseError as error:
            raise TransferError(f"{url!r} is no URL") from error
        except (HTTPError, OSError, http.client.HTTPException) as error:
            raise TransferError(reason(error)) from error
        return Response(raw, self._floor, self._clock)

    def _manager(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        ours = parts.netloc == self.host.host
        proxy = proxy_for(parts.scheme, parts.netloc, self._environ)
        with self._lock:
            key = (parts.scheme, ours, proxy)
            manager = self._managers.get(key)
            if manager is None:
                secure = "https" in (parts.scheme, urlsplit(proxy).scheme)
                context = self._context(ours) if secure else None
                if proxy:
                    manager = urllib3.ProxyManager(
                        proxy, maxsize=self._connections, ssl_context=context
                    )
                else:
                    manager = urllib3.PoolManager(maxsize=self._connections, ssl_context=context)
                self._managers[key] = manager
            return manager

    def _context(self, ours: bool) -> ssl.SSLContext:
        """Made once: reading the system's certificates takes as long as a small pull."""
        context = self._contexts.get(ours)
        if context is None:
            context = self._own_context() if ours else ssl.create_default_context()
            self._contexts[ours] = context
        return context

    def _own_context(self) -> ssl.SSLContext:
        if self.host.skip_verify:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        else:
            context = ssl.create_default_context()
        try:
            for path in self.host.ca:
                context.load_verify_locations(path)
            for certificate, key in self.host.client:
                context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            files = (*self.host.ca, *(name for pair in self.host.client for name in pair))
            raise FailedPrecondition(
                f"{self.host.host}: a certificate or key can't be used ({', '.join(files)}):"
                f" {error}"
            ) from error
        return context


def proxy_for(scheme: str, netloc: str, environ: Mapping[str, str]) -> str:
    """The proxy's URL by HTTP_PROXY, HTTPS_PROXY, NO_PROXY (either case); empty for none.

    Loopback is never asked through a proxy, as Go's programs have it.
    """
    lower = {name.lower(): value for name, value in environ.items() if value}
    proxy = lower.get(f"{scheme}_proxy") or lower.get("all_proxy") or ""
    host = netloc.rpartition("@")[2]
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if not proxy or name.startswith("127.") or name in ("localhost", "[::1]"):
        return ""
    import urllib.request  # noqa: PLC0415 a worker's start is part of a pull

    excluded = {"no": lower.get("no_proxy", "")}
    if urllib.request.proxy_bypass_environment(host, excluded):  # type: ignore[attr-defined]
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"


def reason(error: BaseException) -> str:
    """Why a connection failed, in few words: the innermost cause that says something."""
    seen: set[int] = set()
    best = error
    while id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "reason", None)
        following = inner if isinstance(inner, BaseException) else error.__cause__
        if following is None:
            break
        error = following
        if str(error):
            best = error
    if isinstance(best, TimeoutError | urllib3.exceptions.TimeoutError):
        return "timed out"
    if isinstance(best, OSError) and best.strerror:
        return best.strerror.lower() if best.errno and best.errno > 0 else best.strerror
    return " ".join(str(best).split()) or type(best).__name__
