"""What images, their configuration, their content and a pull's progress look like to the server."""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

import msgspec

from zos_cri.errors import InvalidArgument

MEDIA_OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
MEDIA_OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
MEDIA_OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
MEDIA_OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
MEDIA_DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
MEDIA_DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"


class ImageConfig(msgspec.Struct, frozen=True):
    """What of an image's configuration matters to a container (OCI image-spec, config.md)."""

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    labels: dict[str, str] = {}


class Image(msgspec.Struct, frozen=True):
    """One image; immutable: a change of its names makes a new value.

    Attributes:
        id: `sha256:…`, the digest of its configuration.
        repo_tags: `docker.io/library/busybox:latest`, …, sorted.
        repo_digests: `docker.io/library/busybox@sha256:…`, …, sorted; the digests are those that
            the registry knows it by (its index's where there is one).
        size: bytes on this host's disk: its layers unpacked, and their archives as far as kept.
        chain_ids: of its layers, the base first.
        pinned: it is never removed by the kubelet's garbage collection.
        created: as in its configuration (RFC 3339), may be empty.
    """

    id: str
    repo_tags: tuple[str, ...]
    repo_digests: tuple[str, ...]
    size: int
    config: ImageConfig
    chain_ids: tuple[str, ...]
    pinned: bool = False
    created: str = ""
    architecture: str = ""
    os: str = "linux"
    variant: str = ""

    def user(self) -> tuple[int | None, str]:
        """The uid or else the user name that its processes run as, as CRI's Image has them.

        A group after the colon doesn't count. (None, "") where the image names no user.
        """
        name = self.config.user.partition(":")[0]
        return (int(name), "") if name.isascii() and name.isdigit() else (None, name)


class Layer(msgspec.Struct, frozen=True):
    """One unpacked layer, shared by all images whose chain of layers begins alike.

    Attributes:
        n: its directory's name below `l/`; short, so that many fit into a mount's options.
        chain_id: digest over the diff ids from the base up to it (OCI image-spec, config.md);
            of a damaged layer, a name that no image asks for.
        parent: the chain id below it, empty for a base layer.
        bytes: disk blocks it takes, in bytes; inodes likewise counted.
        seal: digest of its file tree's metadata, taken when it was on disk; empty before.
    """

    n: int
    chain_id: str
    diff_id: str
    parent: str
    bytes: int
    inodes: int
    seal: str = ""

    @property
    def damaged(self) -> bool:
        """Whether it was found not to be what it was; only old containers use it still."""
        return self.chain_id.endswith(self._damaged_suffix)

    def as_damaged(self) -> Layer:
        """The same layer under the name of a damaged one."""
        return msgspec.structs.replace(self, chain_id=self.chain_id + self._damaged_suffix)

    @property
    def _damaged_suffix(self) -> str:
        return f"-damaged-{self.n}"


class NewLayer(msgspec.Struct, frozen=True):
    """A layer as a worker hands it over: unpacked in `staged`."""

    chain_id: str
    diff_id: str
    parent: str
    staged: str
    bytes: int
    inodes: int


class Blob(msgspec.Struct, frozen=True):
    """A layer's archive as a manifest names it."""

    digest: str
    size: int
    media_type: str


class NewImage(msgspec.Struct, frozen=True):
    """An image as a worker hands it over.

    Attributes:
        config: the configuration's bytes; its digest is the image's id.
        manifest: the platform's manifest's bytes.
        chain_ids: of all its layers, the base first.
        layers: those of them that the worker unpacked.
        blobs: the layers' archives in the same order as `chain_ids`; empty for flists.
        names: keys of references it shall be known by.
    """

    id: str
    config: bytes
    manifest_digest: str
    manifest_type: str
    manifest: bytes
    chain_ids: tuple[str, ...]
    layers: tuple[NewLayer, ...]
    blobs: tuple[Blob, ...]
    names: tuple[str, ...]


class FsInfo(msgspec.Struct, frozen=True):
    """What the store takes of the filesystem it lies on.

    Attributes:
        mountpoint: the store's directory.
        used_bytes: of images: layers, their archives, the block cache.
        used_inodes: likewise.
        containers_bytes: of containers' writable layers, as far as they have been measured.
        containers_inodes: likewise.
        timestamp_ns: when this was found out.
    """

    mountpoint: str
    used_bytes: int
    used_inodes: int
    containers_bytes: int
    containers_inodes: int
    timestamp_ns: int


class Usage(msgspec.Struct, frozen=True):
    """Bytes (disk blocks) and inodes of a directory tree."""

    bytes: int
    inodes: int


class Auth(msgspec.Struct, frozen=True):
    """CRI's AuthConfig, all of it. `repr` shows no secrets."""

    username: str = ""
    password: str = ""
    auth: str = ""
    server_address: str = ""
    identity_token: str = ""
    registry_token: str = ""

    def __repr__(self) -> str:
        given = [name for name in self.__struct_fields__ if getattr(self, name)]
        return f"Auth({', '.join(given)})"


class Floor(msgspec.Struct, frozen=True):
    """Below `rate` bytes a second for `window` seconds, a transfer counts as stalled."""

    rate: float = 1024.0
    window: float = 30.0


def parse_config(raw: bytes) -> tuple[ImageConfig, dict[str, Any]]:
    """An image configuration's part for containers, and the whole document.

    Raises:
        ValueError: it isn't JSON, or a field isn't of the type the specification gives it.
    """
    try:
        document = msgspec.json.decode(raw, type=dict[str, Any])
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    inner = document.get("config") or {}
    if not isinstance(inner, dict):
        raise ValueError("config: not an object")
    volumes = inner.get("Volumes") or {}
    if not isinstance(volumes, dict):
        raise ValueError("config.Volumes: not an object")
    fields = {
        "user": inner.get("User") or "",
        "env": inner.get("Env") or (),
        "entrypoint": inner.get("Entrypoint") or (),
        "cmd": inner.get("Cmd") or (),
        "working_dir": inner.get("WorkingDir") or "",
        "volumes": tuple(sorted(volumes)),
        "stop_signal": inner.get("StopSignal") or "",
        "labels": inner.get("Labels") or {},
    }
    return msgspec.convert(fields, ImageConfig), document


def diff_ids(document: dict[str, Any]) -> tuple[str, ...]:
    """The diff ids in an image configuration, the base layer's first.

    Raises:
        ValueError: they are missing or no strings.
    """
    rootfs = document.get("rootfs")
    found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if found is None:
        found = []
    return msgspec.convert(found, tuple[str, ...])


def media_kind(media_type: str) -> str:
    """`index`, `manifest` or `` for anything else."""
    if media_type in (MEDIA_OCI_INDEX, MEDIA_DOCKER_LIST):
        return "index"
    if media_type in (MEDIA_OCI_MANIFEST, MEDIA_DOCKER_MANIFEST):
        return "manifest"
    return ""


def user_and_password(auth: Auth) -> tuple[str, str]:
    """The two, given by name or together in `auth` (base64 of `user:password`).

    Raises:
        InvalidArgument: `auth` isn't that. The message doesn't quote it.
    """
    if auth.username or not auth.auth:
        return auth.username, auth.password
    try:
        user, colon, password = base64.b64decode(auth.auth, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        colon = ""
    if not colon:
        raise InvalidArgument("auth: not the base64 of user:password")
    return user, password.strip("\0")
