"""One repository of one registry, asked through its mirrors and itself, in order.

A host that fails is noted with its reason and the next one is asked; when all have failed, the
error says of each why.
"""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri.errors import (
    Error,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    RegistryUnavailable,
    Unimplemented,
)
from zos_cri.images.http import Client, Response, TransferError
from zos_cri.images.model import (
    MEDIA_DOCKER_LIST,
    MEDIA_DOCKER_MANIFEST,
    MEDIA_OCI_INDEX,
    MEDIA_OCI_MANIFEST,
    Floor,
)
from zos_cri.images.tokens import Authenticator, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from zos_cri.images.hosts import Host
    from zos_cri.images.model import Auth
    from zos_cri.wire.reference import Reference

# Registries bound manifests to 4 MiB themselves.
MAX_MANIFEST: Final = 4 << 20
# containerd's bound for a configuration.
MAX_CONFIG: Final = 8 << 20
# How often one host is asked when it is overloaded or broken, and how long we wait for it at most.
_TRIES: Final = 3
_FIRST_WAIT: Final = 0.25
_MAX_WAIT: Final = 30.0
_ACCEPT: Final = ", ".join(
    (MEDIA_OCI_INDEX, MEDIA_DOCKER_LIST, MEDIA_OCI_MANIFEST, MEDIA_DOCKER_MANIFEST, "*/*;q=0.1")
)


class Document(msgspec.Struct, frozen=True):
    """A manifest or an index as it was served, its digest verified."""

    digest: str
    media_type: str
    body: bytes


class Repository:
    """Reads of one repository. Safe for several threads."""

    def __init__(
        self,
        ref: Reference,
        hosts: Sequence[Host],
        *,
        auth: Auth | None = None,
        tokens: Tokens | None = None,
        floor: Floor | None = None,
        environ: Mapping[str, str] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.ref = ref
        self._sleep = sleep
        self._scope = f"repository:{ref.path}:pull"
        tokens = tokens if tokens is not None else Tokens()
        self._hosts: list[tuple[Host, Authenticator]] = []
        for host in hosts:
            client = Client(
                host, floor=floor or Floor(), environ=os.environ if environ is None else environ
            )
            self._hosts.append((host, Authenticator(client, auth, tokens)))

    def document(self, reference: str, *, known: Collection[str] = ()) -> Document:
        """A manifest or index by tag or digest.

        Args:
            known: digests that we have already. Where the reference means one of them, the
                document isn't fetched and comes back without a body; that costs no pull where
                pulls are counted, yet it takes the right to pull.

        Raises:
            NotFound: no host has it.
            PermissionDenied: credentials are missing or refused.
            RegistryUnavailable: no host answered as it should.
        """
        by_digest = ":" in reference
        failures = Failures(self.ref, f"manifest {reference}")
        for host, asked in self._usable(resolve=not by_digest):
            try:
                digest = self._meaning(host, asked, reference) if known else ""
                if digest in known:
                    return Document(digest, "", b"")
                return self._document(host, asked, reference)
            except TransferError as error:
                failures.add(host, error)
        raise failures.error()

    def _meaning(self, host: Host, asked: Authenticator, reference: str) -> str:
        """The digest that a tag has now (or this very digest), empty where it isn't told."""
        path = self._path(host, f"/manifests/{reference}")
        response = self._ask(asked, "HEAD", path, {"Accept": _ACCEPT})
        response.close()
        if response.status != 200:
            return ""
        return reference if ":" in reference else response.headers.get("Docker-Content-Digest", "")

    def _document(self, host: Host, asked: Authenticator, reference: str) -> Document:
        path = self._path(host, f"/manifests/{reference}")
        response = self._ask(asked, "GET", path, {"Accept": _ACCEPT})
        try:
            _expect(response, 200)
            body = response.body(MAX_MANIFEST)
            length = response.headers.get("Content-Length", "")
            if length.isdigit() and int(length) != len(body):
                raise TransferError(f"{len(body)} of {length} bytes came")
        finally:
            response.close()
        digest = _digest_like(reference if ":" in reference else "sha256:", body)
        expected = reference
        if ":" not in reference:
            expected = response.headers.get("Docker-Content-Digest") or digest
            if expected.partition(":")[0] != "sha256":
                expected = digest  # a registry that counts in another algorithm
        if digest != expected:
            raise TransferError(f"it served {digest} for {expected}")
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
        return Document(digest, media_type, body)

    def small_blob(self, digest: str, size: int, limit: int = MAX_CONFIG) -> bytes:
        """A blob that is held in memory: an image's configuration.

        Raises:
            As `document`; and InvalidArgument: it has more than `limit` bytes.
        """
        if not 0 <= size <= limit:
            raise InvalidArgument(f"{self.ref}: blob {digest} of {size} bytes is too large")
        failures = Failures(self.ref, f"blob {digest}")
        for host, _ in self._usable(resolve=False):
            try:
                response = self.blob(host, digest)
                try:
                    body = response.body(size)
                finally:
                    response.close()
                if len(body) != size or _digest_like(digest, body) != digest:
                    raise TransferError(f"wrong content for {digest}: {len(body)} bytes")
                return body
            except TransferError as error:
                failures.add(host, error)
        raise failures.error()

    def forget_connections(self) -> None:
        """In a process that was forked: the connections are the parent's."""
        for _, asked in self._hosts:
            asked.forget_connections()

    def pull_hosts(self) -> list[Host]:
        """The hosts that blobs may be fetched from, in order."""
        return [host for host, _ in self._usable(resolve=False)]

    def blob(self, host: Host, digest: str, *, first: int = 0, last: int = -1) -> Response:
        """A blob's bytes from `first` to `last` (included), or to its end.

        The host may not know ranges and send it whole: see the answer's status (200, not 206).

        Raises:
            TransferError: no answer, or a status that isn't one of these two.
        """
        asked = next(asked for known, asked in self._hosts if known == host)
        headers = {}
        if first or last >= 0:
            headers["Range"] = f"bytes={first}-{last if last >= 0 else ''}"
        response = self._ask(asked, "GET", self._path(host, f"/blobs/{digest}"), headers)
        if response.status not in (200, 206):
            try:
                _expect(response, 200)
            finally:
                response.close()
        return response

    def _usable(self, *, resolve: bool) -> Iterator[tuple[Host, Authenticator]]:
        for host, asked in self._hosts:
            if host.resolve if resolve else host.pull:
                yield host, asked

    def _path(self, host: Host, rest: str) -> str:
        """A mirror is told whose content we mean, as a pull-through cache of several needs."""
        namespace = "" if host.upstream else f"?ns={self.ref.domain}"
        return f"/{self.ref.path}{rest}{namespace}"

    def _ask(
        self, asked: Authenticator, method: str, path: str, headers: dict[str, str]
    ) -> Response:
        """One request, repeated while the host says that it is only busy (429, 5xx)."""
        wait = _FIRST_WAIT
        for left in range(_TRIES - 1, -1, -1):
            response = asked.request(method, path, scope=self._scope, headers=headers)
            if left == 0 or (response.status != 429 and response.status < 500):
                break
            pause = _retry_after(response) or wait
            if pause > _MAX_WAIT:
                break
            response.close()
            self._sleep(pause)
            wait *= 4
        return response


class Failures:
    """What became of each host that was asked for one thing."""

    def __init__(self, ref: Reference, what: str) -> None:
        self._ref = ref
        self._what = what
        self._failed: list[tuple[str, TransferError]] = []

    def add(self, host: Host, error: TransferError) -> None:
        """Notes why a host failed; of a host asked again, only the last reason stays."""
        self._failed = [(name, known) for name, known in self._failed if name != host.host]
        self._failed.append((host.host, error))

    def error(self) -> Error:
        """One line: what was wanted, and of each host why it failed. The last host's decides."""
        if not self._failed:
            return RegistryUnavailable(
                f"RegistryUnavailable: {self._ref}: {self._what}: no host is configured for it"
            )
        tried = "; ".join(f"{name}: {error}" for name, error in self._failed)
        message = f"{self._ref}: {self._what}: tried {tried}"
        status = self._failed[-1][1].status
        if status == 404:
            return NotFound(f"image not found: {message}")
        if status in (401, 403):
            return PermissionDenied(f"access refused: {message}")
        return RegistryUnavailable(f"RegistryUnavailable: {message}")


def _expect(response: Response, status: int) -> None:
    if response.status == status:
        return
    said = response.error_text()
    raise TransferError(
        f"HTTP {response.status}" + (f" ({said})" if said else ""),
        status=response.status,
        retry_after=_retry_after(response),
    )


def _retry_after(response: Response) -> float:
    """Seconds to wait, where the answer names them; a date isn't worth a clock's comparison."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else 0.0


def _digest_like(digest: str, content: bytes) -> str:
    """The content's digest by the algorithm that `digest` names."""
    algorithm = digest.partition(":")[0]
    if algorithm not in ("sha256", "sha384", "sha512"):
        raise Unimplemented(f"digest algorithm {algorithm!r}")
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
