"""Pulls under a policy: sigstore's signatures beside the image, simple signing's in a directory."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.fakes.registry import INDEX, MANIFEST, Registry, tar_of
from zos_cri.errors import FailedPrecondition, SignatureValidationFailed, grpc_code
from zos_cri.images.jobs import Fetching
from zos_cri.images.store import ImageStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

pytestmark = pytest.mark.root

GPG = shutil.which("gpg") and shutil.which("gpgv")
SKOPEO = shutil.which("skopeo")
PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"


@dataclass
class World:
    """A registry, a store, and the policy that the store's pulls are under."""

    registry: Registry
    store: ImageStore
    directory: Path

    def require(self, *requirements: dict[str, Any]) -> None:
        (self.directory / "policy.json").write_text(json.dumps({"default": requirements}))

    def image(self, tag: str = "1") -> tuple[str, str]:
        """A reference and the manifest's digest."""
        digest = self.registry.add_image("a/b", tag, [tar_of({"etc/one": b"1"})])
        return f"{self.registry.address}/a/b:{tag}", digest


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    fetching = Fetching(policy=f"{tmp_path}/policy.json", registries_d=f"{tmp_path}/registries.d")
    store = ImageStore(tmp_path / "images", fetching=fetching)
    await store.start()
    with Registry() as registry:
        yield World(registry, store, tmp_path)
    await store.aclose()


def pem(key: Any) -> str:
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(public).decode()


def sigstore(key: Any, **identity: str) -> dict[str, Any]:
    identity = identity or {"type": "matchRepository"}
    return {"type": "sigstoreSigned", "keyData": pem(key), "signedIdentity": identity}


def signed(key: Any, payload: bytes) -> bytes:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(payload, ec.ECDSA(hashes.SHA256()))
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(payload, padding.PKCS1v15(), hashes.SHA256())
    return bytes(key.sign(payload))


def attach(registry: Registry, digest: str, *signatures: tuple[bytes, bytes]) -> None:
    """Puts payloads with their signatures where cosign puts them."""
    layers = []
    for payload, signature in signatures:
        layer = registry.add_blob(payload)
        layer["mediaType"] = PAYLOAD
        encoded = base64.b64encode(signature).decode()
        layer["annotations"] = {"dev.cosignproject.cosign/signature": encoded}
        layers.append(layer)
    config = registry.add_blob(b"{}")
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
    registry.add_manifest("a/b", f"{digest.replace(':', '-')}.sig", manifest, MANIFEST)


def payload(reference: str, digest: str, **changes: Any) -> bytes:
    critical = {
        "identity": {"docker-reference": reference},
        "image": {"docker-manifest-digest": digest},
        "type": "cosign container image signature",
        **changes,
    }
    return json.dumps({"critical": critical, "optional": None}).encode()


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate,
    ],
    ids=["ecdsa", "rsa", "ed25519"],
)
async def test_an_image_signed_by_the_key_is_pulled(world: World, make: Callable[[], Any]) -> None:
    mine = make()
    ref, digest = world.image()
    content = payload(ref.removesuffix(":1"), digest)
    attach(world.registry, digest, (content, signed(mine, content)))
    world.require(sigstore(mine))
    image_id = await world.store.pull(ref, None)
    assert await world.store.pull(ref, None) == image_id
    assert await world.store.pull(f"{ref.removesuffix(':1')}@{digest}", None) == image_id


async def test_one_good_signature_among_others_is_enough(world: World, key: Any) -> None:
    ref, digest = world.image()
    good, stranger = payload(ref, digest), ec.generate_private_key(ec.SECP256R1())
    pairs = [(good, signed(stranger, good)), (b"junk", signed(key, b"junk"))]
    attach(world.registry, digest, *pairs, (good, signed(key, good)))
    world.require(sigstore(key, type="matchExact"))
    assert await world.store.pull(ref, None)


async def test_the_index_or_the_manifest_is_signed(world: World, key: Any) -> None:
    _, digest = world.image()
    platform = {"os": "linux", "architecture": "amd64"}
    size = len(world.registry.manifests[("a/b", digest)][1])
    entry = {"mediaType": MANIFEST, "digest": digest, "size": size, "platform": platform}
    document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}
    index = world.registry.add_manifest("a/b", "all", document, INDEX)
    ref = f"{world.registry.address}/a/b:all"
    world.require(sigstore(key))
    with pytest.raises(SignatureValidationFailed, match="there is no signature of sha256:"):
        await world.store.pull(ref, None)
    for signs in (index, digest):
        content = payload(ref, signs)
        attach(world.registry, signs, (content, signed(key, content)))
        assert await world.store.pull(ref, None)
        await world.store.remove(ref)
        del world.registry.manifests[("a/b", f"{signs.replace(':', '-')}.sig")]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "a signature is by another key"),
        ({"reference": "other.example/a/b"}, "a signature is for 'other.example/a/b'"),
        ({"digest": "sha256:" + "0" * 64}, "a signature is for sha256:000"),
        ({"type": "atomic container signature"}, "of type 'atomic container signature'"),
        ({"more": 1}, "unknown field `more`"),
        ({"none": True}, "there is no signature of sha256:"),
    ],
    ids=lambda value: next(iter(value), "key") if isinstance(value, dict) else "",
)
async def test_an_image_that_is_not_signed_as_asked_is_refused(
    world: World,
    key: Any,
    fields: dict[str, Any],
    said: str,
) -> None:
    ref, digest = world.image()
    by = key if fields else ec.generate_private_key(ec.SECP256R1())
    changes = {name: value for name, value in fields.items() if name in ("type", "more")}
    content = payload(fields.get("reference", ref), fields.get("digest", digest), **changes)
    if "none" not in fields:
        attach(world.registry, digest, (content, signed(by, content)))
    world.require(sigstore(key))
    with pytest.raises(SignatureValidationFailed, match=said) as caught:
        await world.store.pull(ref, None)
    assert str(caught.value).startswith(f"SignatureValidationFailed: {ref}: ")
    assert grpc_code(caught.value) == "UNKNOWN"  # the kubelet knows the name in no other code
    assert await world.store.status(ref) is None
    assert (
        world.registry.count(world.registry.layers_of("a/b", "1")[0]) == 0
    )  # no layer was asked for


async def test_all_requirements_must_be_met(world: World, key: Any) -> None:
    ref, digest = world.image()
    content = payload(ref, digest)
    attach(world.registry, digest, (content, signed(key, content)))
    world.require(sigstore(key), {"type": "reject"})
    with pytest.raises(SignatureValidationFailed, match="it is rejected"):
        await world.store.pull(ref, None)
    world.require({"type": "insecureAcceptAnything"})
    assert await world.store.pull(ref, None)
    world.require({"type": "reject"})  # what is here already is asked for all the same
    with pytest.raises(SignatureValidationFailed, match="it is rejected"):
        await world.store.pull(ref, None)


async def test_a_policy_that_cannot_be_used_pulls_nothing(world: World) -> None:
    ref, _ = world.image()
    with pytest.raises(FailedPrecondition, match=r"policy\.json: No such file"):
        await world.store.pull(ref, None)
    world.require({"type": "sigstoreSigned", "keyData": base64.b64encode(b"no key").decode()})
    with pytest.raises(FailedPrecondition, match=r"policy\.json \(default\): no public key in PEM"):
        await world.store.pull(ref, None)


async def test_an_flist_has_no_signatures(world: World, key: Any, tmp_path: Path) -> None:
    world.require(sigstore(key))
    with pytest.raises(SignatureValidationFailed, match="refuses what isn't signed"):
        await world.store.pull(f"{tmp_path}/a.fl", None)


def run(environ: dict[str, str], *command: str) -> bytes:
    return subprocess.run(command, env=environ, check=True, capture_output=True).stdout


@pytest.fixture(scope="module")
def gnupg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], str]]:
    """A keyring with a key: the environment that names it, and the key's fingerprint."""
    home = Path("/tmp") / f"zt-gpg-{tmp_path_factory.mktemp('gpg').parent.name}"  # short: sockets
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(mode=0o700)
    environ = {"GNUPGHOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    gpg = ("gpg", "--batch", "--passphrase", "", "--pinentry-mode", "loopback")
    run(environ, *gpg, "--quick-generate-key", "Test <test@example.invalid>", "ed25519", "sign")
    listed = run(environ, "gpg", "--with-colons", "--list-keys").decode()
    yield environ, next(x.split(":")[9] for x in listed.splitlines() if x.startswith("fpr:"))
    run(environ, "gpgconf", "--kill", "all")
    shutil.rmtree(home)


@pytest.mark.skipif(not GPG or not SKOPEO, reason="needs gpg, gpgv and skopeo")
@pytest.mark.parametrize("armor", [(), ("--armor",)], ids=["binary", "armoured"])
async def test_what_skopeo_has_signed_is_pulled(
    world: World,
    gnupg: tuple[dict[str, str], str],
    tmp_path: Path,
    armor: tuple[str, ...],
) -> None:
    environ, fingerprint = gnupg
    ref, digest = world.image()
    (tmp_path / "manifest").write_bytes(world.registry.manifests[("a/b", digest)][1])
    place = tmp_path / "lookaside" / f"a/b@{digest.replace(':', '=')}" / "signature-1"
    exported = run(environ, "gpg", "--export", *armor, fingerprint)
    (tmp_path / "registries.d").mkdir()
    (tmp_path / "registries.d" / "a.yaml").write_text(
        f"docker:\n  {world.registry.address}/a:\n    lookaside: file://{tmp_path}/lookaside\n"
    )
    data = base64.b64encode(exported).decode()
    world.require({"type": "signedBy", "keyType": "GPGKeys", "keyData": data})
    with pytest.raises(SignatureValidationFailed, match="there is no signature of sha256:"):
        await world.store.pull(ref, None)
    place.parent.mkdir(parents=True)
    manifest = str(tmp_path / "manifest")
    sign = ("skopeo", "standalone-sign", manifest, ref, fingerprint, "--output", str(place))
    run(environ, *sign)
    assert await world.store.pull(ref, None)
    place.write_bytes(place.read_bytes()[:-20] + bytes(20))
    with pytest.raises(SignatureValidationFailed, match="a signature is refused"):
        await world.store.pull(ref, None)
