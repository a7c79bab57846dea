"""What the server asks of a worker process, and what it hears from it: JSON, one object a line.

The job comes on the worker's standard input, secrets and all (arguments and environments can be
read by others), the events on its standard output. The last event is `Done` or `Failed`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from zos_cri import errors
from zos_cri.images.model import Auth, Blob, Floor, NewImage


class Fetching(msgspec.Struct, frozen=True):
    """How a pull deals with the network and the disk, and what it asks of signatures.

    Attributes:
        connections: at most so many to registries at once.
        blob_connections: of these, at most so many for one large layer.
        max_layer_bytes: what one layer may take of the disk.
        min_free_bytes: what of the disk stays free.
        policy: a file as containers-policy.json(5) has it; "" asks for no signatures.
        registries_d: a directory as containers-registries.d(5) has it: where signatures are.
    """

    floor: Floor = Floor()
    connections: int = 6
    blob_connections: int = 3
    max_layer_bytes: int = 1 << 40
    min_free_bytes: int = 256 << 20
    policy: str = ""
    registries_d: str = "/etc/containers/registries.d"


class Job(msgspec.Struct, frozen=True, tag=True):
    """Common to all jobs.

    Attributes:
        root: the store's directory.
        staging: a directory of the job's own below it, which the worker may fill.
        layers: the directories' numbers of the layers that are there, by chain id.
    """

    root: str
    staging: str
    layers: dict[str, int] = {}
    fetching: Fetching = Fetching()


class PullJob(Job, frozen=True, tag=True):
    """An image from a registry.

    Attributes:
        ref: normalised or not.
        known: digests of this repository whose images are here, whole. Where the reference means
            one of them still, nothing is fetched.
        tokens: bearer tokens of earlier pulls: key to (value, end).
    """

    ref: str = ""
    certs_dirs: tuple[str, ...] = ()
    auth: Auth | None = None
    known: tuple[str, ...] = ()
    tokens: dict[str, tuple[str, float]] = {}


class LoadJob(Job, frozen=True, tag=True):
    """Images from an archive file: an OCI layout or `docker save`, plain or compressed."""

    path: str = ""


class SavedImage(msgspec.Struct, frozen=True):
    """An image to be written to an archive, and the tags it shall have there."""

    id: str
    config: bytes
    manifest: bytes
    manifest_type: str
    blobs: tuple[Blob, ...]
    names: tuple[str, ...]


class SaveJob(Job, frozen=True, tag=True):
    """Images to an archive file that is written to `path`."""

    path: str = ""
    images: tuple[SavedImage, ...] = ()


class FlistJob(Job, frozen=True, tag=True):
    """An image from an flist: a file's path, or a URL of one."""

    ref: str = ""
    location: str = ""


class SealJob(Job, frozen=True, tag=True):
    """Looks at unpacked layers: the digest of their metadata, and what they take.

    With `sync` everything is put on disk before.
    """

    numbers: tuple[int, ...] = ()
    sync: bool = False


class Begun(msgspec.Struct, frozen=True, tag=True):
    """The worker has read its job: always the first event."""


class Resolved(msgspec.Struct, frozen=True, tag=True):
    """What the image consists of; the server keeps these from being collected meanwhile."""

    image_id: str
    digest: str
    chain_ids: tuple[str, ...]
    blobs: tuple[str, ...]


STATES: Final = ("waiting", "fetching", "unpacking", "done")


class LayerProgress(msgspec.Struct, frozen=True):
    """One layer of a pull, in bytes.

    Attributes:
        size: of the archive.
        fetched: of it.
        unpacked: of the decompressed archive; its total isn't known before the end.
        state: one of `STATES`.
    """

    digest: str
    size: int
    fetched: int = 0
    unpacked: int = 0
    state: str = "waiting"


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Where all layers of the job stand."""

    layers: tuple[LayerProgress, ...]


class Sealed(msgspec.Struct, frozen=True, tag=True):
    """A layer was looked at. `seal` is empty where its directory is missing."""

    number: int
    seal: str
    bytes: int
    inodes: int


class Done(msgspec.Struct, frozen=True, tag=True):
    """The job's result.

    Attributes:
        images: what was made.
        unchanged: the digest among the job's `known` that the reference means; nothing was made.
    """

    images: tuple[NewImage, ...] = ()
    unchanged: str = ""
    tokens: dict[str, tuple[str, float]] = {}


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The job's error: the name of its class in `zos_cri.errors`, and its message."""

    kind: str
    message: str


AnyJob = PullJob | LoadJob | SaveJob | FlistJob | SealJob
AnyEvent = Begun | Resolved | Progress | Sealed | Done | Failed

_KINDS = {
    cls.__name__: cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, errors.Error)
}


def failed(error: BaseException, where: str = "") -> Failed:
    """An error as an event: its nearest class of `zos_cri.errors`, or what fits best.

    Args:
        where: the directory that was worked in, for errors of the kernel that name no file.
    """
    for cls in type(error).__mro__:
        if cls.__name__ in _KINDS and cls is not errors.Error:
            return Failed(cls.__name__, errors.one_line(error))
    if errors.exhausted(error):
        return Failed("ResourceExhausted", f"{where}: {errors.one_line(error)}")
    return Failed("Internal", f"{type(error).__name__}: {errors.one_line(error)}")


def as_error(event: Failed) -> errors.Error:
    """The error that an event tells of."""
    return _KINDS.get(event.kind, errors.Internal)(event.message)
