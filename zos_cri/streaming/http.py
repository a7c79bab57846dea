"""The HTTP request in front of every session: parsed by h11, answered, then out of the way."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NoReturn

import h11

from zos_cri.wire.remotecommand import header_list

if TYPE_CHECKING:
    from collections.abc import Iterable

# The request line and headers together. The kubelet's and client-go's are under 1 KiB; 16 KiB
# leaves room for proxies' headers.
MAX_REQUEST: Final = 16 * 1024
SPDY_UPGRADE: Final = "SPDY/3.1"
PROTOCOL_VERSION: Final = "X-Stream-Protocol-Version"
ACCEPTED_VERSIONS: Final = "X-Accepted-Stream-Protocol-Versions"


class HttpError(Exception):
    """The request gets this answer."""

    def __init__(
        self, status: HTTPStatus, message: str, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = tuple(headers)


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request without a body."""

    method: str
    path: str
    query: str
    target: str
    headers: tuple[tuple[str, str], ...]  # names in lower case
    rest: bytes  # what came behind it: the first bytes of the session

    def values(self, name: str) -> list[str]:
        """All lines of one header."""
        return [value for key, value in self.headers if key == name.lower()]

    def items(self, name: str) -> list[str]:
        """The elements of a header that is a list."""
        return header_list(self.values(name))

    def upgrades_to(self, protocol: str) -> bool:
        """Whether it asks for an upgrade to `protocol`."""
        return "upgrade" in (item.lower() for item in self.items("connection")) and (
            protocol.lower() in (item.lower() for item in self.items("upgrade"))
        )


class RequestParser:
    """One request from bytes in any pieces."""

    def __init__(self) -> None:
        self._core = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST)
        self._head: h11.Request | None = None

    def feed(self, data: bytes) -> Request | None:
        """The request, when it is whole. Not to be called again after that.

        Raises:
            HttpError: it isn't HTTP/1.1, is too long or has a body.
        """
        try:
            self._core.receive_data(data)
            while True:
                match self._core.next_event():
                    case h11.Request() as head:
                        self._head = head
                    case h11.Data():
                        _refuse_body()
                    case h11.EndOfMessage():
                        return self._request()
                    case _:
                        return None
        except h11.RemoteProtocolError as error:
            status = HTTPStatus(error.error_status_hint or HTTPStatus.BAD_REQUEST)
            raise HttpError(status, str(error)) from error

    def _request(self) -> Request:
        head = self._head
        assert head is not None
        target = head.target.decode("latin-1")
        path, _, query = target.partition("?")
        headers = tuple((k.decode("latin-1"), v.decode("latin-1")) for k, v in head.headers)
        rest, _closed = self._core.trailing_data
        return Request(head.method.decode("latin-1"), path, query, target, headers, rest)


def _refuse_body() -> NoReturn:
    raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "this request takes no body")


def switching_protocols(headers: Iterable[tuple[str, str]]) -> bytes:
    """The answer that upgrades to SPDY."""
    fixed = [("Connection", "Upgrade"), ("Upgrade", SPDY_UPGRADE)]
    return _head(HTTPStatus.SWITCHING_PROTOCOLS, [*fixed, *headers])


def error_response(error: HttpError) -> bytes:
    """The answer to a request that isn't upgraded; the connection is to be closed after it."""
    body = (str(error) + "\n").encode()
    fixed = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("X-Content-Type-Options", "nosniff"),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
    ]
    return _head(error.status, [*fixed, *error.headers]) + body


def _head(status: HTTPStatus, headers: Iterable[tuple[str, str]]) -> bytes:
    # h11's writer would do as well, but it puts every name in lower case, and clients that aren't
    # Go's are known to look for names as they are usually written.
    lines = [f"HTTP/1.1 {status.value} {status.phrase}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
