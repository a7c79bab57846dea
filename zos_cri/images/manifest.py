"""Manifests and indexes: what they name, and which of an index's images is for this machine."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zos_cri.errors import DataLoss, NotFound, Unimplemented
from zos_cri.images.model import Blob, media_kind
from zos_cri.wire.reference import is_digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# overlayfs takes 500 lower directories; an image of more layers can't be mounted.
MAX_LAYERS: Final = 500
_SCHEMA1: Final = "application/vnd.docker.distribution.manifest.v1"
_NOT_IMAGES: Final = ("unknown",)


class Platform(msgspec.Struct, frozen=True):
    """A machine, by Go's names: `linux`, `arm`, `v7`."""

    os: str = "linux"
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, frozen=True):
    """What a manifest or index says of another document or blob."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None


class Manifest(msgspec.Struct, frozen=True):
    """One image: its configuration and its layers' archives, the base layer's first."""

    config: Descriptor
    layers: tuple[Blob, ...]


def kind_of(body: bytes, media_type: str) -> str:
    """`index` or `manifest`, by the document's own word, its served type, or its fields.

    Raises:
        DataLoss: it isn't a JSON object.
        Unimplemented: it is an image in a format that this can't run.
    """
    document = _decode(body)
    own = str(document.get("mediaType") or media_type)
    if own.startswith(_SCHEMA1) or document.get("schemaVersion") == 1:
        raise Unimplemented("Docker's manifest schema 1: build or push the image anew")
    kind = media_kind(own)
    has = {name for name in ("manifests", "layers", "config") if name in document}
    if "manifests" in has and has != {"manifests"}:
        raise DataLoss("a document that is an index and a manifest at once")
    if not kind:
        kind = "index" if "manifests" in has else "manifest" if "layers" in has else ""
    if not kind:
        raise Unimplemented(f"media type {own!r} is no container image")
    return kind


def parse_manifest(body: bytes) -> Manifest:
    """An image's manifest.

    Raises:
        DataLoss: a field is missing or wrong.
        Unimplemented: it is an artifact of another kind, or of too many layers.
    """
    document = _decode(body)
    config = _descriptor(document.get("config"), "config")
    if "image" not in config.media_type and config.media_type:
        raise Unimplemented(f"an artifact ({config.media_type}), no container image")
    listed = document.get("layers")
    if not isinstance(listed, list):
        raise DataLoss("manifest: layers is missing")
    if len(listed) > MAX_LAYERS:
        raise Unimplemented(f"an image of {len(listed)} layers, more than {MAX_LAYERS}")
    layers = []
    for number, item in enumerate(listed):
        found = _descriptor(item, f"layers[{number}]")
        layers.append(Blob(found.digest, found.size, found.media_type))
    return Manifest(config, tuple(layers))


def choose(body: bytes, platforms: Sequence[Platform], what: str) -> Descriptor:
    """The image in an index that fits best.

    Args:
        platforms: what can be run here, the best first.
        what: the reference, for the error.

    Raises:
        NotFound: none fits; the message lists those there are.
        DataLoss: the index is damaged.
    """
    listed = _decode(body).get("manifests")
    if not isinstance(listed, list):
        raise DataLoss("index: manifests is missing")
    offered = [_descriptor(item, f"manifests[{n}]") for n, item in enumerate(listed)]
    for wanted in platforms:
        for found in offered:
            if found.platform is not None and _normal(found.platform) == _normal(wanted):
                return found
    if len(offered) == 1 and offered[0].platform is None:
        return offered[0]
    there = ", ".join(str(d.platform) for d in offered if _is_image(d)) or "none"
    raise NotFound(f"{what}: no image for {platforms[0]}; there are: {there}")


def platforms_of(machine: str) -> tuple[Platform, ...]:
    """What a machine (`uname -m`) runs, the best first."""
    arm = [Platform("linux", "arm", f"v{n}") for n in (8, 7, 6, 5)]
    known: dict[str, Iterable[Platform]] = {
        "x86_64": (Platform("linux", "amd64"), Platform("linux", "386")),
        "aarch64": (Platform("linux", "arm64", "v8"), *arm),
        "armv8l": arm,
        "armv7l": arm[1:],
        "armv6l": arm[2:],
        "i686": (Platform("linux", "386"),),
    }
    return tuple(known.get(machine, (Platform("linux", machine),)))


def go_architecture(machine: str) -> str:
    """A machine (`uname -m`) as images name it (GOARCH)."""
    return platforms_of(machine)[0].architecture


def check_platform(document: dict[str, Any], platforms: Sequence[Platform], what: str) -> None:
    """Refuses a configuration that names another machine; one that names none is let through.

    Raises:
        NotFound: it is for another machine.
    """
    architecture = str(document.get("architecture") or "")
    system = str(document.get("os") or "linux")
    fits = any(architecture in ("", p.architecture) and system == p.os for p in platforms)
    if not fits:
        found = Platform(system, architecture, str(document.get("variant") or ""))
        raise NotFound(f"{what}: no image for {platforms[0]}; there is: {found}")


def chain_ids(diff_ids: Sequence[str]) -> tuple[str, ...]:
    """Each layer's chain id, from the diff ids from the base up to it (OCI image-spec, config.md).

    Raises:
        DataLoss: one of them is no digest.
    """
    chain: list[str] = []
    for diff_id in diff_ids:
        if not is_digest(diff_id):
            raise DataLoss(f"configuration: {diff_id[:80]!r} is no diff id")
        joined = f"{chain[-1]} {diff_id}" if chain else ""
        chain.append(f"sha256:{hashlib.sha256(joined.encode()).hexdigest()}" if joined else diff_id)
    return tuple(chain)


def _normal(platform: Platform) -> Platform:
    """Architectures have a default variant that may be left out, and other names."""
    names = {"x86_64": "amd64", "aarch64": "arm64", "i386": "386", "armhf": "arm"}
    architecture = names.get(platform.architecture, platform.architecture)
    defaults = {("arm64", "v8"): "", ("arm", ""): "v7", ("amd64", "v1"): ""}
    variant = defaults.get((architecture, platform.variant), platform.variant)
    return Platform(platform.os, architecture, variant)


def _is_image(found: Descriptor) -> bool:
    return found.platform is not None and found.platform.os not in _NOT_IMAGES


def _decode(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (ValueError, RecursionError) as error:  # wrong JSON, wrong UTF-8, or nested too deep
        raise DataLoss(f"a manifest that is no JSON object: {error}") from error


def _descriptor(value: object, what: str) -> Descriptor:
    if not isinstance(value, dict):
        raise DataLoss(f"manifest: {what} is missing")
    digest, size = value.get("digest"), value.get("size")
    if not isinstance(digest, str) or not is_digest(digest):
        raise DataLoss(f"manifest: {what}: {str(digest)[:80]!r} is no digest")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 62:
        raise DataLoss(f"manifest: {what}: its size is {str(size)[:40]!r}")
    platform = value.get("platform")
    chosen = None
    if isinstance(platform, dict):
        fields = (str(platform.get(name) or "") for name in ("os", "architecture", "variant"))
        chosen = Platform(*fields)
    return Descriptor(str(value.get("mediaType") or ""), digest, size, chosen)
