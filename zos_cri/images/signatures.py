"""Whether an image is signed as the policy asks: sigstore's signatures, and simple signing's.

Runs in workers, and only where a policy is configured.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from zos_cri.errors import FailedPrecondition, NotFound, SignatureValidationFailed
from zos_cri.images import simplesigning
from zos_cri.images.policy import Accept, SignedBy, SigstoreSigned, load, matches, scopes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from zos_cri.images.jobs import Fetching
    from zos_cri.images.policy import Requirement
    from zos_cri.images.registry import Repository

MAX_SIGNATURES: Final = 128  # of one image; each costs a request
MAX_PAYLOAD: Final = 1 << 20  # bytes; a payload has about 300
_REASONS: Final = 4  # of refusals in one message
_SIGSTORE: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
_SIGNATURE: Final = "dev.cosignproject.cosign/signature"
_SIGSTORE_TYPE: Final = "cosign container image signature"
_SIMPLE_TYPE: Final = "atomic container signature"


class _Refused(Exception):
    """A signature, or all that there are, won't do; the message says why."""


class _Layer(msgspec.Struct, rename="camel"):
    digest: str
    size: int
    media_type: str = ""
    annotations: dict[str, str] = {}


class _Attached(msgspec.Struct):
    """The manifest that holds an image's signatures: each is a layer."""

    layers: list[_Layer]


class _SignedImage(msgspec.Struct, forbid_unknown_fields=True):
    digest: str = msgspec.field(name="docker-manifest-digest")


class _SignedIdentity(msgspec.Struct, forbid_unknown_fields=True):
    reference: str = msgspec.field(name="docker-reference")


class _Critical(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    image: _SignedImage
    identity: _SignedIdentity


class _Payload(msgspec.Struct, forbid_unknown_fields=True):
    """What is signed, in both formats."""

    critical: _Critical
    optional: dict[str, Any] | None = None


class Checker:
    """Checks one image against the policy that `fetching` names."""

    def __init__(self, repository: Repository, fetching: Fetching, staging: Path) -> None:
        """
        Args:
            staging: a directory for temporary files.
        """
        self._repository = repository
        self._ref = repository.ref
        self._fetching = fetching
        self._staging = staging
        self._path = Path(fetching.policy)
        self._where, self._requirements = load(self._path).find("docker", scopes(self._ref))

    @property
    def asks(self) -> bool:
        """Whether anything is to be checked of this image."""
        return not all(isinstance(each, Accept) for each in self._requirements)

    def check(self, digests: Sequence[str]) -> None:
        """
        Args:
            digests: of the image's manifest, and of the index that it was chosen from: a signature
                of either will do, for the index names the manifest by its digest.

        Raises:
            SignatureValidationFailed: a requirement isn't met.
            FailedPrecondition: a key or a file of the configuration is unusable.
            Error: signatures can't be fetched.
        """
        for requirement in self._requirements:
            try:
                self._meet(requirement, digests)
            except _Refused as refused:
                why = f"{self._ref}: {self._path} ({self._where}): {refused}"
                raise SignatureValidationFailed(f"SignatureValidationFailed: {why}") from None
            except FailedPrecondition as error:
                raise FailedPrecondition(f"{self._path} ({self._where}): {error}") from error

    def _meet(self, requirement: Requirement, digests: Sequence[str]) -> None:
        match requirement:
            case Accept():
                return
            case SigstoreSigned():
                keys = [_public_key(data) for data in requirement.read_keys()]
                payloads = self._sigstore(digests, keys)
                kind = _SIGSTORE_TYPE
            case SignedBy():
                ring = requirement.read_keys()
                payloads = self._simple(digests, ring)
                kind = _SIMPLE_TYPE
            case _:
                raise _Refused("it is rejected")
        reasons: list[str] = []
        for digest, payload in payloads:
            if isinstance(payload, _Refused):
                reasons.append(str(payload))
                continue
            try:
                found = _parse(payload, kind)
            except _Refused as refused:
                reasons.append(str(refused))
                continue
            if not matches(requirement.signed_identity, self._ref, found.identity.reference):
                reasons.append(f"a signature is for {found.identity.reference!r}")
            elif found.image.digest != digest:
                reasons.append(f"a signature is for {found.image.digest}")
            else:
                return
        more = len(reasons) - _REASONS
        said = "; ".join(reasons[:_REASONS]) + (f"; and {more} more" if more > 0 else "")
        raise _Refused(said or f"there is no signature of {' or '.join(digests)}")

    def _sigstore(
        self, digests: Sequence[str], keys: Sequence[Any]
    ) -> Iterator[tuple[str, bytes | _Refused]]:
        """Each signature's payload, or why the signature won't do."""
        for digest in digests:
            for layer in self._attached(digest):
                encoded = layer.annotations.get(_SIGNATURE, "")
                try:
                    signature = base64.b64decode(encoded, validate=True)
                except binascii.Error as error:
                    yield digest, _Refused(f"a signature is no base64: {error}")
                    continue
                payload = self._repository.small_blob(layer.digest, layer.size, MAX_PAYLOAD)
                if any(_verifies(key, signature, payload) for key in keys):
                    yield digest, payload
                else:
                    yield digest, _Refused("a signature is by another key")

    def _attached(self, digest: str) -> list[_Layer]:
        """The signatures that are beside an image, under a tag that its digest makes."""
        tag = f"{digest.replace(':', '-')}.sig"
        try:
            document = self._repository.document(tag)
        except NotFound:
            return []
        try:
            layers = msgspec.json.decode(document.body, type=_Attached).layers
        except (msgspec.DecodeError, RecursionError) as error:
            raise _Refused(f"{tag}: {error}") from error
        return [each for each in layers if each.media_type == _SIGSTORE][:MAX_SIGNATURES]

    def _simple(
        self, digests: Sequence[str], ring: Sequence[bytes]
    ) -> Iterator[tuple[str, bytes | _Refused]]:
        directory = Path(self._fetching.registries_d)
        for digest in digests:
            place = simplesigning.Place.find(directory, self._ref, digest)
            for signature in place.signatures(MAX_SIGNATURES, MAX_PAYLOAD, self._fetching.floor):
                try:
                    yield digest, simplesigning.opened(signature, ring, self._staging)
                except simplesigning.BadSignature as error:
                    yield digest, _Refused(str(error))


def _parse(payload: bytes, kind: str) -> _Critical:
    try:
        critical = msgspec.json.decode(payload, type=_Payload).critical
    except (msgspec.DecodeError, RecursionError) as error:
        raise _Refused(f"a signature's payload: {error}") from error
    if critical.type != kind:
        raise _Refused(f"a signature's payload is of type {critical.type!r}")
    return critical


def _public_key(data: bytes) -> Any:
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FailedPrecondition(f"no public key in PEM: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey):
        raise FailedPrecondition("the public key is neither ECDSA nor RSA nor Ed25519")
    return key


def _verifies(key: Any, signature: bytes, payload: bytes) -> bool:
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, payload, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, payload, padding.PKCS1v15(), hashes.SHA256())
        else:
            key.verify(signature, payload)
    except InvalidSignature:
        return False
    return True
