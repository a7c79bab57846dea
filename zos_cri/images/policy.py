"""containers-policy.json(5): which images must be signed, by whom, and under which names.

The file is the one that skopeo, Podman and CRI-O read. What can't be understood is an error, never
something to read over: a policy that is half followed protects nobody.
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from zos_cri.errors import FailedPrecondition, SignatureValidationFailed
from zos_cri.wire import reference

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from zos_cri.wire.reference import Reference

MAX_POLICY: Final = 4 << 20  # bytes; it may hold keys
MAX_KEY: Final = 1 << 20  # bytes: a keyring of hundreds


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    pass


class MatchExact(_Strict, frozen=True, tag="matchExact"):
    """The signature names what is pulled, tag or digest included."""


class MatchRepoDigestOrExact(_Strict, frozen=True, tag="matchRepoDigestOrExact"):
    """As `MatchExact`; of what is pulled by digest the repository is compared alone."""


class MatchRepository(_Strict, frozen=True, tag="matchRepository"):
    """The signature names the repository, with any tag or none."""


class ExactReference(_Strict, frozen=True, tag="exactReference"):
    """The signature names this, whatever is pulled."""

    docker_reference: str


class ExactRepository(_Strict, frozen=True, tag="exactRepository"):
    """The signature names this repository, whatever is pulled."""

    docker_repository: str


class RemapIdentity(_Strict, frozen=True, tag="remapIdentity"):
    """As `MatchRepoDigestOrExact`, with what is pulled renamed before."""

    prefix: str
    signed_prefix: str


Identity = (
    MatchExact
    | MatchRepoDigestOrExact
    | MatchRepository
    | ExactReference
    | ExactRepository
    | RemapIdentity
)


class Accept(_Strict, frozen=True, tag="insecureAcceptAnything"):
    """Nothing is asked."""


class Reject(_Strict, frozen=True, tag="reject"):
    """Nothing will do."""


class _Signed(_Strict, frozen=True):
    """One of the fields with keys is given: a file's path, or its content in base64."""

    key_path: str = ""
    key_paths: tuple[str, ...] = ()
    key_data: str = ""
    key_datas: tuple[str, ...] = ()
    signed_identity: Identity = MatchRepoDigestOrExact()

    def read_keys(self) -> tuple[bytes, ...]:
        """The keys, any of which will do.

        Raises:
            FailedPrecondition: none, or several fields are given; one can't be read.
        """
        given = [bool(v) for v in (self.key_path, self.key_paths, self.key_data, self.key_datas)]
        if sum(given) != 1:
            raise FailedPrecondition("give one of keyPath, keyPaths, keyData, keyDatas")
        paths = (self.key_path,) if self.key_path else self.key_paths
        if paths:
            return tuple(_read(Path(path), MAX_KEY) for path in paths)
        try:
            datas = (self.key_data,) if self.key_data else self.key_datas
            return tuple(base64.b64decode(data, validate=True) for data in datas)
        except binascii.Error as error:
            raise FailedPrecondition(f"keyData: {error}") from error


class SignedBy(_Signed, frozen=True, tag="signedBy"):
    """Simple signing: a message signed with GPG."""

    key_type: str = ""

    def read_keys(self) -> tuple[bytes, ...]:
        if self.key_type != "GPGKeys":
            raise FailedPrecondition(f'keyType: "{self.key_type}" is not "GPGKeys"')
        return super().read_keys()


class SigstoreSigned(_Signed, frozen=True, tag="sigstoreSigned"):
    """Sigstore with a key pair: a signature beside the image, as `cosign sign --key` puts it."""


Requirement = Accept | Reject | SignedBy | SigstoreSigned
_Requirements = Annotated[tuple[Requirement, ...], msgspec.Meta(min_length=1)]


class Policy(_Strict, frozen=True):
    """The whole file."""

    default: _Requirements
    transports: dict[str, dict[str, _Requirements]] = {}

    def find(self, transport: str, scopes: Iterable[str]) -> tuple[str, Sequence[Requirement]]:
        """What all must be met, and where the policy says so, for messages."""
        known = self.transports.get(transport, {})
        for scope in (*scopes, ""):
            if scope in known:
                return f'transports.{transport}."{scope}"', known[scope]
        return "default", self.default


def load(path: Path) -> Policy:
    """Reads a policy.

    Raises:
        FailedPrecondition: it can't be read or understood.
    """
    try:
        document = json.loads(_read(path, MAX_POLICY), object_pairs_hook=_unique)
        return msgspec.convert(document, Policy)
    except (ValueError, RecursionError) as error:  # all that JSON, UTF-8 and msgspec refuse
        raise FailedPrecondition(f"{path}: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'"{twice}" is given twice')
    return found


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise FailedPrecondition(f"{path}: {error.strerror}") from error
    if len(content) > limit:
        raise FailedPrecondition(f"{path}: larger than {limit} bytes")
    return content


def scopes(ref: Reference) -> Iterator[str]:
    """What a policy may call an image, the most exact name first.

    That is the reference, its repository, the namespaces above that up to the host, and then
    `*.` before each domain above the host's, without a port.
    """
    yield ref.key
    name = ref.name
    while True:
        yield name
        if "/" not in name:
            break
        name = name.rpartition("/")[0]
    name = name.partition(":")[0]
    while "." in name:
        name = name.partition(".")[2]
        yield f"*.{name}"


def matches(identity: Identity, ref: Reference, signed: str) -> bool:
    """Whether a signature that names `signed` is one of what is pulled as `ref`."""
    try:
        theirs = reference.parse(signed)
        match identity:
            case MatchRepository():
                return theirs.name == ref.name
            case ExactRepository(docker_repository=name):
                return theirs.name == reference.parse(name).name
            case ExactReference(docker_reference=name):
                wanted = str(reference.parse(name))
            case MatchExact():
                wanted = ref.key
            case RemapIdentity(prefix=prefix, signed_prefix=new):
                if ref.name == prefix or ref.name.startswith(f"{prefix}/"):
                    ref = reference.parse(new + ref.key.removeprefix(prefix))
                wanted = _wanted(ref, theirs)
            case _:
                wanted = _wanted(ref, theirs)
    except reference.InvalidReference:
        return False
    bare = not theirs.digest and not signed.endswith(f":{theirs.tag}")
    return not bare and str(theirs) == wanted  # a bare repository is no exact name


def _wanted(ref: Reference, theirs: Reference) -> str:
    """What a signature must name; of what is pulled by digest the repository is compared alone."""
    if ref.digest and theirs.name == ref.name:
        return str(theirs)
    return ref.key


def allow_unsigned(path: str, transport: str, what: str) -> None:
    """Lets through what has no signatures, where the policy asks for none.

    Args:
        path: the policy's; "" for none.

    Raises:
        SignatureValidationFailed: it asks for one.
        FailedPrecondition: as `load`.
    """
    if not path:
        return
    where, requirements = load(Path(path)).find(transport, ())
    for requirement in requirements:
        if not isinstance(requirement, Accept):
            raise SignatureValidationFailed(
                f"SignatureValidationFailed: {what}: {path} ({where}) refuses what isn't signed"
            )
