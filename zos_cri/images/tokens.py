"""Authentication with registries: bearer tokens and basic, with all that CRI's AuthConfig may say.

Credentials go to a host only after it asked for them (401), over the connection it asked on, and to
the token server that it names. With a server address in the AuthConfig, to that host alone.
"""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode, urlsplit

import msgspec

from zos_cri.images.http import Response, TransferError
from zos_cri.images.model import user_and_password
from zos_cri.wire import wwwauth

if TYPE_CHECKING:
    from zos_cri.images.http import Client
    from zos_cri.images.model import Auth

_MAX_TOKEN: Final = 1 << 20  # a token server's whole answer
# The token specification: a token without `expires_in` lives 60 s.
_DEFAULT_LIFE: Final = 60.0
_ATTEMPTS: Final = 3
_MARGIN: Final = 5.0  # a token this near its end isn't used any more
_DOCKER_HUB: Final = {"docker.io", "index.docker.io", "registry-1.docker.io"}


class Token(msgspec.Struct, frozen=True):
    """A bearer token and when (time.time()) it ends."""

    value: str
    expires: float


class Tokens:
    """A cache of tokens by what they are good for. It can be taken out and put back as a dict."""

    def __init__(self, known: dict[str, Token] | None = None) -> None:
        self._lock = threading.Lock()
        self.known = dict(known or {})

    def get(self, key: str) -> str:
        """A token with some life left, or an empty string."""
        with self._lock:
            token = self.known.get(key)
        return token.value if token and token.expires > time.time() + _MARGIN else ""

    def put(self, key: str, token: Token) -> None:
        with self._lock:
            self.known[key] = token

    def drop(self, key: str) -> None:
        with self._lock:
            self.known.pop(key, None)


def meant_for(auth: Auth, host: str) -> bool:
    """Whether credentials may be shown to a host: to any where they name no server."""
    if not auth.server_address:
        return True
    address = auth.server_address
    server = urlsplit(address if "://" in address else f"https://{address}").netloc
    return server == host or (server in _DOCKER_HUB and host in _DOCKER_HUB)


class Authenticator:
    """Answers one host's challenges. Safe for several threads."""

    def __init__(self, client: Client, auth: Auth | None, tokens: Tokens) -> None:
        self._client = client
        self._auth = auth if auth is not None and meant_for(auth, client.host.host) else None
        self._tokens = tokens
        self._lock = threading.Lock()
        self._header: dict[str, str] = {}  # by scope, for what doesn't end
        self._token_key: dict[str, str] = {}

    def forget_connections(self) -> None:
        """See `Client.forget_connections`."""
        self._client.forget_connections()

    def request(
        self, method: str, path: str, *, scope: str, headers: dict[str, str] | None = None
    ) -> Response:
        """A request with what authentication the host has asked for before, or asks for now.

        Raises:
            TransferError: no answer, or no token to be had.
        """
        given = dict(headers or {})
        authorization: str | None = self._known(scope)
        said = ""
        # Without any, with a cached token that may have ended, with a new one.
        for _ in range(_ATTEMPTS):
            response = self._send(method, path, given, authorization or "")
            if response.status != 401:
                return response
            challenges = wwwauth.parse(response.headers.get("WWW-Authenticate", ""))
            said = response.error_text() or said
            response.close()
            with self._lock:  # one thread fetches the token, the others find it
                authorization = self._answer(challenges, scope, refused=authorization or "")
            if authorization is None:
                break
        raise TransferError(_with("401: " + self._why_not(challenges), said), status=401)

    def _send(
        self, method: str, path: str, headers: dict[str, str], authorization: str
    ) -> Response:
        if authorization:
            headers = {**headers, "Authorization": authorization}
        return self._client.request(method, path, headers=headers.items())

    def _answer(
        self, challenges: list[wwwauth.Challenge], scope: str, *, refused: str
    ) -> str | None:
        """The Authorization header for the first challenge we can meet; None where there is none.

        Args:
            refused: the header that this very challenge refused; another is needed.
        """
        for challenge in challenges:
            if challenge.scheme == "bearer":
                return self._bearer(challenge, scope, refused)
            if challenge.scheme == "basic" and self._auth is not None:
                user, password = user_and_password(self._auth)
                header = _basic(user, password)
                if user and header != refused:
                    self._header[scope] = header
                    return header
        return None

    def _bearer(self, challenge: wwwauth.Challenge, scope: str, refused: str) -> str | None:
        auth = self._auth
        if auth is not None and auth.registry_token:
            header = f"Bearer {auth.registry_token}"
            if header == refused:
                return None
            self._header[scope] = header
            return header
        realm = challenge.parameters.get("realm", "")
        service = challenge.parameters.get("service", "")
        wanted = challenge.parameters.get("scope") or scope
        key = _key(auth, self._client.host.host, realm, service, wanted)
        if refused and refused == f"Bearer {self._tokens.get(key)}":
            self._tokens.drop(key)
        if not self._tokens.get(key):
            self._tokens.put(key, self._fetch(realm, service, wanted))
        self._token_key[scope] = key
        return self._known(scope) or None

    def _known(self, scope: str) -> str:
        """The header that this scope was granted by, as long as it is good."""
        token = self._tokens.get(self._token_key.get(scope, ""))
        return f"Bearer {token}" if token else self._header.get(scope, "")

    def _fetch(self, realm: str, service: str, scope: str) -> Token:
        """Asks the token server: by a refresh token as OAuth 2, else as the registry's own way."""
        parts = urlsplit(realm)
        if parts.scheme not in ("https", "http") or not parts.netloc:
            raise TransferError(f"401: it names no token server: realm={realm!r}", status=401)
        auth = self._auth
        secret = auth is not None and (auth.identity_token or user_and_password(auth)[0])
        if secret and parts.scheme == "http" and self._client.url("").startswith("https://"):
            raise TransferError(
                f"401: token server {realm!r} has no TLS, it gets no credentials", status=401
            )
        if auth is not None and auth.identity_token:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": auth.identity_token,
                "client_id": "zos-cri",
                "service": service,
                "scope": scope,
            }
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            response = self._client.send(
                "POST", realm, headers=headers, body=urlencode(form).encode()
            )
        else:
            query = urlencode({k: v for k, v in (("service", service), ("scope", scope)) if v})
            url = f"{realm}{'&' if parts.query else '?'}{query}" if query else realm
            headers = {}
            if auth is not None:
                user, password = user_and_password(auth)
                headers = {"Authorization": _basic(user, password)} if user else {}
            response = self._client.send("GET", url, headers=headers)
        try:
            return _parse_token(response, parts.netloc)
        finally:
            response.close()

    def _why_not(self, challenges: list[wwwauth.Challenge]) -> str:
        schemes = ", ".join(challenge.scheme for challenge in challenges) or "nothing we know"
        if self._auth is None:
            return f"credentials are needed ({schemes})"
        return f"the credentials are refused ({schemes})"


def _parse_token(response: Response, server: str) -> Token:
    if response.status != 200:
        raise TransferError(
            _with(f"token server {server}: HTTP {response.status}", response.error_text()),
            status=401 if response.status in (400, 401, 403) else response.status,
        )
    try:
        document = msgspec.json.decode(response.body(_MAX_TOKEN), type=dict[str, object])
    except (msgspec.DecodeError, msgspec.ValidationError):
        document = {}
    value = document.get("token") or document.get("access_token")
    if not isinstance(value, str) or not value:
        raise TransferError(f"token server {server}: its answer has no token", status=401)
    life = document.get("expires_in")
    seconds = float(life) if isinstance(life, int | float) and life > 0 else _DEFAULT_LIFE
    return Token(value, time.time() + max(seconds, _DEFAULT_LIFE))


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _key(auth: Auth | None, *parts: str) -> str:
    """The cache's key: never the secrets themselves."""
    secrets = b"" if auth is None else msgspec.json.encode(auth)
    return hashlib.sha256(b"\0".join([secrets, *(part.encode() for part in parts)])).hexdigest()


def _with(message: str, detail: str) -> str:
    return f"{message} ({detail})" if detail else message
