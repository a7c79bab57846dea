"""A registry on loopback that does what tests want: the distribution API to read, and faults.

Content is added by `add_image` and `add_blob`. `faults` maps a path's end (a tag, a digest) to a
list of `Fault`s, of which each request of it takes the first until none is left.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import json
import socket
import tarfile
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping, Sequence
    from typing import Self

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """A plain archive of regular files, always the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o644
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@dataclass
class Fault:
    """What happens to one request instead of the right answer.

    Attributes:
        status: answered with this, and `headers`; 0 for none.
        cut_after: the connection ends after so many bytes of the body.
        stall_after: nothing comes after so many bytes, until the registry is closed; with a
            `gate`, until that is set: then the rest comes.
        replace: another body; its length is what Content-Length says.
        length: what Content-Length says.
        ignore_range: the whole body, status 200.
        wait: seconds before the answer.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_after: int = -1
    stall_after: int = -1
    gate: threading.Event | None = None
    replace: bytes | None = None
    length: int = -1
    ignore_range: bool = False
    wait: float = 0.0
    slow: float = 0.0


class Registry:
    """Runs while the `with` block does."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.queries: set[str] = set()
        self.ranges = True
        self.users: dict[str, str] = {}  # asks for basic authentication
        self.token_url = ""  # asks for bearer tokens
        self.good_tokens: set[str] = set()
        self.stopped = threading.Event()
        registry = self

        class Handler(_Handler):
            owner = registry

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.address = f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add_blob(self, content: bytes) -> dict[str, Any]:
        digest = digest_of(content)
        self.blobs[digest] = content
        return {"mediaType": LAYER, "digest": digest, "size": len(content)}

    def add_image(
        self,
        repository: str,
        tag: str,
        layers: Sequence[bytes],
        *,
        compress: Callable[[bytes], bytes] | None = None,
        config: dict[str, Any] | None = None,
        architecture: str = "amd64",
    ) -> str:
        """An image of these layers (plain tar archives); answers its manifest's digest."""
        pack = compress or (lambda content: gzip.compress(content, 1, mtime=0))
        blobs = [self.add_blob(pack(layer)) for layer in layers]
        document = {
            "architecture": architecture,
            "os": "linux",
            "config": config or {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
        }
        described = self.add_blob(json.dumps(document).encode())
        described["mediaType"] = "application/vnd.oci.image.config.v1+json"
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": described,
            "layers": blobs,
        }
        return self.add_manifest(repository, tag, manifest, MANIFEST)

    def add_manifest(self, repository: str, tag: str, document: object, media_type: str) -> str:
        body = json.dumps(document).encode()
        digest = digest_of(body)
        self.manifests[(repository, digest)] = (media_type, body)
        if tag:
            self.manifests[(repository, tag)] = (media_type, body)
        return digest

    def layers_of(self, repository: str, tag: str) -> list[str]:
        document = json.loads(self.manifests[(repository, tag)][1])
        return [layer["digest"] for layer in document["layers"]]

    def count(self, end: str, method: str = "GET") -> int:
        return sum(1 for m, path, _ in self.requests if m == method and path.endswith(end))


class _Handler(BaseHTTPRequestHandler):
    owner: Registry
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        self.owner.requests.append((self.command, path, dict(self.headers)))
        if path == "/token":
            self._token()
            return
        self.owner.queries.add(urlsplit(self.path).query)
        if not self._allowed():
            return
        content = self._content(path)
        faults = self.owner.faults.get(path.rpartition("/")[2], [])
        fault = faults.pop(0) if faults and self.command == "GET" else Fault()
        if fault.wait:
            self.owner.stopped.wait(fault.wait)
        if fault.status:
            self._send(fault.status, {"Content-Length": str(len(fault.body)), **fault.headers})
            self.wfile.write(fault.body)
        elif content is None:
            error = b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}'
            self._send(404, {"Content-Length": str(len(error))})
            if self.command != "HEAD":
                self.wfile.write(error)
        else:
            self._body(*content, fault)

    def _content(self, path: str) -> tuple[str, bytes] | None:
        parts = path.removeprefix("/v2/").split("/")
        kind, name = parts[-2], parts[-1]
        if kind == "manifests":
            return self.owner.manifests.get(("/".join(parts[:-2]), name))
        content = self.owner.blobs.get(name)
        return None if content is None else ("application/octet-stream", content)

    def _body(self, media_type: str, content: bytes, fault: Fault) -> None:
        headers = {"Content-Type": media_type, "Docker-Content-Digest": digest_of(content)}
        if fault.replace is not None:
            content = fault.replace
        status = 200
        wanted = self.headers.get("Range", "")
        if wanted and self.owner.ranges and not fault.ignore_range:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last) + 1, len(content)) if last else len(content)
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(content)}"
            content, status = content[int(first) : end], 206
        headers["Content-Length"] = str(len(content) if fault.length < 0 else fault.length)
        self._send(status, headers)
        if self.command == "HEAD":
            return
        if fault.slow:
            for start in range(0, len(content), 1000):
                if self.owner.stopped.wait(fault.slow):
                    return
                self.wfile.write(content[start : start + 1000])
        elif fault.cut_after >= 0:
            self.wfile.write(content[: fault.cut_after])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif fault.stall_after >= 0:
            self.wfile.write(content[: fault.stall_after])
            self.wfile.flush()
            (fault.gate or self.owner.stopped).wait()
            if fault.gate is not None:
                self.wfile.write(content[fault.stall_after :])
            self.close_connection = True
        else:
            self.wfile.write(content)

    def _allowed(self) -> bool:
        given = self.headers.get("Authorization", "")
        owner = self.owner
        if owner.token_url:
            if given.removeprefix("Bearer ") in owner.good_tokens:
                return True
            scope = "repository:" + "/".join(self.path.split("/")[2:-2]) + ":pull"
            challenge = f'Bearer realm="{owner.token_url}",service="fake",scope="{scope}"'
        elif owner.users:
            if given in {_basic(user, word) for user, word in owner.users.items()}:
                return True
            challenge = 'Basic realm="fake"'
        else:
            return True
        self._send(401, {"WWW-Authenticate": challenge, "Content-Length": "0"})
        return False

    def _token(self) -> None:
        owner = self.owner
        length = int(self.headers.get("Content-Length") or 0)
        form = parse_qs(self.rfile.read(length).decode())
        given = self.headers.get("Authorization", "")
        good = {_basic(user, word) for user, word in owner.users.items()}
        identity = form.get("refresh_token", [""])[0]
        if owner.users and given not in good and identity not in owner.users.values():
            self._send(401, {"Content-Length": "0"})
            return
        token = f"token-{len(owner.good_tokens)}-{time.monotonic_ns()}"
        owner.good_tokens.add(token)
        body = json.dumps({"token": token, "expires_in": 300}).encode()
        self._send(200, {"Content-Length": str(len(body))})
        self.wfile.write(body)

    def _send(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
