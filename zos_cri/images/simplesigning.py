"""Simple signing: where signatures lie (containers-registries.d(5)), and opening them by gpgv."""

from __future__ import annotations

import base64
import binascii
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import msgspec
import yaml

from zos_cri.errors import FailedPrecondition, Unavailable
from zos_cri.images.hosts import Host
from zos_cri.images.http import Client, TransferError
from zos_cri.images.policy import scopes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from zos_cri.images.model import Floor
    from zos_cri.wire.reference import Reference

DEFAULT_PLACE: Final = "file:///var/lib/containers/sigstore"
_MAX_FILE: Final = 1 << 20  # bytes of one file of registries.d
_GPGV_TIMEOUT: Final = 30.0  # seconds; it takes milliseconds
_ARMOR: Final = b"-----BEGIN PGP PUBLIC KEY BLOCK-----"


class BadSignature(Exception):
    """It isn't by any of the keys, or is no signature."""


class _Entry(msgspec.Struct):
    """What a namespace's signatures are at. Other fields are for those who write them."""

    lookaside: str = ""
    sigstore: str = ""  # as `lookaside` was called


class _File(msgspec.Struct):
    default: _Entry | None = msgspec.field(default=None, name="default-docker")
    docker: dict[str, _Entry] | None = None


class Place:
    """Where the signatures of one image are."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: what each signature's URL begins with.
        """
        self.url = url

    @classmethod
    def find(cls, directory: Path, ref: Reference, digest: str) -> Place:
        """The place that the files in `directory` name for the image.

        Raises:
            FailedPrecondition: one of them can't be read or understood.
        """
        default, known = _configuration(directory)
        entry = next((known[scope] for scope in scopes(ref) if scope in known), default)
        base = entry.lookaside or entry.sigstore or DEFAULT_PLACE
        if urlsplit(base).scheme not in ("file", "http", "https"):
            raise FailedPrecondition(f"{directory}: lookaside {base!r} is no file or http(s) URL")
        return cls(f"{base.rstrip('/')}/{ref.path}@{digest.replace(':', '=')}/signature-")

    def signatures(self, count: int, limit: int, floor: Floor) -> Iterator[bytes]:
        """The signatures there are, the first `count`; they are numbered without a gap.

        Raises:
            Unavailable: one can't be read, or is longer than `limit` bytes.
        """
        for number in range(1, count + 1):
            url = f"{self.url}{number}"
            try:
                content = _fetch(url, limit, floor)
            except (TransferError, OSError) as error:
                raise Unavailable(f"signature {url}: {error}") from error
            if content is None:
                return
            yield content


def _configuration(directory: Path) -> tuple[_Entry, dict[str, _Entry]]:
    default, known = _Entry(), {}
    for path in sorted(directory.glob("*.yaml")):
        try:
            with path.open("rb") as file:
                text = file.read(_MAX_FILE)
            found = msgspec.convert(yaml.safe_load(text) or {}, _File)
        except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
            raise FailedPrecondition(f"{path}: {error}") from error
        default = found.default or default
        known.update(found.docker or {})
    return default, known


def _fetch(url: str, limit: int, floor: Floor) -> bytes | None:
    """A file, or None where there is none."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        try:
            with open(unquote(parts.path), "rb") as file:
                content = file.read(limit + 1)
        except FileNotFoundError:
            return None
        if len(content) > limit:
            raise TransferError(f"larger than {limit} bytes")
        return content
    response = Client(Host(parts.scheme, parts.netloc, ""), floor=floor).request("GET", parts.path)
    try:
        if response.status == 404:
            return None
        if response.status != 200:
            raise TransferError(f"HTTP {response.status}")
        return response.body(limit)
    finally:
        response.close()


def opened(signature: bytes, keys: Sequence[bytes], staging: Path) -> bytes:
    """What is signed, where one of the keys has signed it.

    Raises:
        BadSignature: none has.
        FailedPrecondition: there is no gpgv, or a key can't be read.
    """
    with tempfile.TemporaryDirectory(dir=staging, prefix="gpg-") as place:
        ring, message = Path(place) / "ring", Path(place) / "signature"
        ring.write_bytes(b"".join(_plain(key) for key in keys))
        message.write_bytes(signature)
        command: list[Any] = ["gpgv", "--homedir", place, "--keyring", ring]
        command += ["--status-fd", "2", "--output", "-", message]
        try:
            done = subprocess.run(
                command, capture_output=True, timeout=_GPGV_TIMEOUT, check=False, close_fds=True
            )
        except FileNotFoundError:
            raise FailedPrecondition("signedBy: there is no gpgv (apt-get install gpgv)") from None
        except subprocess.TimeoutExpired:
            raise BadSignature(f"gpgv has not ended within {_GPGV_TIMEOUT:g} s") from None
    said = done.stderr.decode(errors="replace").splitlines()
    # GOODSIG is not said of expired and revoked keys and signatures.
    if done.returncode != 0 or not any(line.startswith("[GNUPG:] GOODSIG ") for line in said):
        words = [line for line in said if not line.startswith("[GNUPG:]")]
        raise BadSignature(f"a signature is refused: {words[-1] if words else 'by gpgv'}")
    return done.stdout


def _plain(key: bytes) -> bytes:
    """A key as gpgv wants it: without the armour of `gpg --armor` (RFC 9580, 6)."""
    if _ARMOR not in key:
        return key
    plain = b""
    for block in key.split(_ARMOR)[1:]:
        body = block.partition(b"-----END")[0].replace(b"\r", b"").partition(b"\n\n")[2]
        lines = [line for line in body.split(b"\n") if line and not line.startswith(b"=")]
        try:
            plain += base64.b64decode(b"".join(lines), validate=True)
        except binascii.Error as error:
            raise FailedPrecondition(f"signedBy: a key's armour is damaged: {error}") from error
    return plain
