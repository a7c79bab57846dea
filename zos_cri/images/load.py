"""Images from archive files: OCI layouts and what `docker save` writes, in the worker.

An archive is unpacked like a layer first, into the job's staging directory, so that nothing in it
can name a file outside.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zos_cri.errors import DataLoss, InvalidArgument, NotFound
from zos_cri.images import manifest as manifests
from zos_cri.images.assemble import Assembler, Parts, Tracker
from zos_cri.images.fetch import Verified
from zos_cri.images.jobs import Done, Progress, Resolved
from zos_cri.images.layerfs import Limits
from zos_cri.images.layout import Layout
from zos_cri.images.model import (
    MEDIA_OCI_CONFIG,
    MEDIA_OCI_LAYER,
    MEDIA_OCI_MANIFEST,
    Blob,
    NewImage,
    diff_ids,
    parse_config,
)
from zos_cri.images.registry import MAX_CONFIG, MAX_MANIFEST
from zos_cri.images.unpack import unpack
from zos_cri.linux.fsattr import spread_subdirectories
from zos_cri.linux.safefs import open_in_root
from zos_cri.wire import reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from zos_cri.images.decompress import Source
    from zos_cri.images.jobs import AnyEvent, LoadJob

_MAX_IMAGES: Final = 1000  # in one archive
NAMES: Final = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_CHUNK: Final = 1 << 20


def load(job: LoadJob, emit: Callable[[AnyEvent], None]) -> Done:
    """Takes in all images of an archive, or of an OCI layout's directory, for this machine.

    Raises:
        InvalidArgument: the file is neither.
        DataLoss: something in it isn't what its manifest says.
    """
    path = Path(job.path)
    if path.is_dir():
        folder = path
    else:
        folder = Path(job.staging) / "archive"
        folder.mkdir()
        fetching = job.fetching
        limits = Limits(max_bytes=fetching.max_layer_bytes, min_free=fetching.min_free_bytes)
        with open(path, "rb", buffering=0) as file:
            unpack(file, str(folder), limits=limits)
    files = _Files(folder, ours=folder != path)
    if files.read("oci-layout", MAX_MANIFEST) is not None:
        found = _from_layout(files)
    elif files.read("manifest.json", MAX_MANIFEST) is not None:
        found = _from_docker(files)
    else:
        raise InvalidArgument(f"{path}: neither an OCI layout nor made by docker save")
    if not found:
        raise NotFound(f"{path}: no image for {manifests.platforms_of(os.uname().machine)[0]}")
    return Done(
        images=tuple(
            _take(job, image, files, number, emit=emit) for number, image in enumerate(found)
        )
    )


class _Found(msgspec.Struct, frozen=True):
    """An image in an archive: its documents, and the files of its layers."""

    id: str
    config: bytes
    manifest: bytes
    manifest_type: str
    names: tuple[str, ...]
    blobs: tuple[Blob, ...]
    layer_files: tuple[str, ...]


def _take(
    job: LoadJob,
    image: _Found,
    files: _Files,
    number: int,
    *,
    emit: Callable[[AnyEvent], None],
) -> NewImage:
    _, document = parse_config(image.config)
    ids = diff_ids(document)
    if len(ids) != len(image.blobs):
        raise DataLoss(
            f"image {image.id}: {len(image.blobs)} layers, {len(ids)} in its configuration"
        )
    parts = Parts(blobs=image.blobs, diff_ids=ids, chain_ids=manifests.chain_ids(ids))
    digest = _digest(image.manifest)
    emit(Resolved(image.id, digest, parts.chain_ids, tuple(b.digest for b in image.blobs)))
    staging = f"{job.staging}/image-{number}"
    os.mkdir(staging)
    spread_subdirectories(staging)
    tracker = Tracker(image.blobs)
    own = msgspec.structs.replace(job, staging=staging)
    archives = _LocalArchives(Layout(Path(job.root)), files, image)
    layers = Assembler(own, parts, tracker).run(archives, lambda now: emit(Progress(now)))
    return NewImage(
        id=image.id,
        config=image.config,
        manifest_digest=digest,
        manifest_type=image.manifest_type,
        manifest=image.manifest,
        chain_ids=parts.chain_ids,
        layers=layers,
        blobs=image.blobs,
        names=tuple(dict.fromkeys(_keys(image.names, digest))),
    )


def _keys(names: tuple[str, ...], digest: str) -> list[str]:
    keys = []
    for name in names:
        try:
            ref = reference.parse(name)
        except reference.InvalidReference:
            continue
        keys += [ref.key, ref.with_digest(digest)]
    return keys


class _Files:
    """Reads files of an archive's directory; links in it lead around within it."""

    def __init__(self, folder: Path, *, ours: bool) -> None:
        self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.folder = folder
        self.ours = ours

    def open(self, name: str) -> int:
        """A regular file's descriptor. Raises FileNotFoundError."""
        fd = open_in_root(self._fd, name, os.O_RDONLY | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise FileNotFoundError(name)
        return fd

    def read(self, name: str, limit: int) -> bytes | None:
        """A small file's content; None where there is none. Raises DataLoss if it is larger."""
        try:
            fd = self.open(name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        with os.fdopen(fd, "rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise DataLoss(f"{name} in the archive is larger than {limit} bytes")
        return content

    def document(self, digest: str, limit: int) -> bytes:
        """A blob that is a document, verified."""
        content = self.read(blob_path(digest), limit)
        if content is None:
            raise DataLoss(f"{digest} is missing in the archive")
        if digest != f"{digest.partition(':')[0]}:{_hash(digest, content)}":
            raise DataLoss(f"{digest} in the archive has another content")
        return content


def _from_layout(files: _Files) -> list[_Found]:
    index = files.read("index.json", MAX_MANIFEST)
    if index is None:
        raise DataLoss("index.json is missing in the archive")
    listed = _object(index, "index.json").get("manifests")
    if not isinstance(listed, list) or len(listed) > _MAX_IMAGES:
        raise DataLoss("index.json in the archive has no list of manifests")
    platforms = manifests.platforms_of(os.uname().machine)
    by_digest: dict[str, _Found] = {}
    for item in listed:
        annotations = item.get("annotations") if isinstance(item, dict) else None
        given = annotations if isinstance(annotations, dict) else {}
        names = tuple(dict.fromkeys(str(given[key]) for key in NAMES if key in given))[:1]
        digest = str(item.get("digest")) if isinstance(item, dict) else ""
        if not reference.is_digest(digest):
            raise DataLoss(f"index.json: {digest[:80]!r} is no digest")
        body = files.document(digest, MAX_MANIFEST)
        try:
            if manifests.kind_of(body, str(item.get("mediaType") or "")) == "index":
                chosen = manifests.choose(body, platforms, names[0] if names else digest)
                body = files.document(chosen.digest, MAX_MANIFEST)
            found = _found(files, body, names, platforms)
        except NotFound:
            continue  # of another machine
        known = by_digest.get(_digest(body))
        if known is not None:
            found = msgspec.structs.replace(known, names=(*known.names, *names))
        by_digest[_digest(body)] = found
    return list(by_digest.values())


def _found(
    files: _Files, body: bytes, names: tuple[str, ...], platforms: tuple[manifests.Platform, ...]
) -> _Found:
    parsed = manifests.parse_manifest(body)
    config = files.document(parsed.config.digest, MAX_CONFIG)
    try:
        _, document = parse_config(config)
    except ValueError as error:
        raise DataLoss(f"configuration {parsed.config.digest}: {error}") from error
    manifests.check_platform(document, platforms, names[0] if names else parsed.config.digest)
    return _Found(
        id=parsed.config.digest,
        config=config,
        manifest=body,
        manifest_type=str(_object(body, "manifest").get("mediaType") or MEDIA_OCI_MANIFEST),
        names=names,
        blobs=parsed.layers,
        layer_files=tuple(blob_path(blob.digest) for blob in parsed.layers),
    )


def _from_docker(files: _Files) -> list[_Found]:
    """`docker save` before version 25: no manifests of the registries' kind, so we make them."""
    content = files.read("manifest.json", MAX_MANIFEST)
    try:
        listed = msgspec.json.decode(content or b"", type=list[dict[str, Any]])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise DataLoss(f"manifest.json in the archive: {error}") from error
    platforms = manifests.platforms_of(os.uname().machine)
    found = []
    for item in listed[:_MAX_IMAGES]:
        name = str(item.get("Config"))
        config = files.read(name, MAX_CONFIG)
        layers = item.get("Layers")
        if config is None or not isinstance(layers, list):
            raise DataLoss(f"manifest.json: {name} or its layers are missing in the archive")
        tags = tuple(str(tag) for tag in item.get("RepoTags") or ())
        try:
            _, document = parse_config(config)
            manifests.check_platform(document, platforms, tags[0] if tags else name)
        except NotFound:
            continue
        except ValueError as error:
            raise DataLoss(f"{name}: {error}") from error
        paths = tuple(str(layer) for layer in layers)
        blobs = tuple(_blob_of(files, path) for path in paths)
        found.append(
            _Found(
                id=_digest(config),
                config=config,
                manifest=manifest_for(config, blobs),
                manifest_type=MEDIA_OCI_MANIFEST,
                names=tags,
                blobs=blobs,
                layer_files=paths,
            )
        )
    return found


def _blob_of(files: _Files, path: str) -> Blob:
    try:
        fd = files.open(path)
    except (FileNotFoundError, NotADirectoryError):
        raise DataLoss(f"{path} is missing in the archive") from None
    with os.fdopen(fd, "rb") as file:
        magic = file.read(2)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    suffix = "+gzip" if magic == b"\x1f\x8b" else ""
    return Blob(f"sha256:{digest}", size, MEDIA_OCI_LAYER + suffix)


def manifest_for(config: bytes, blobs: tuple[Blob, ...]) -> bytes:
    """An OCI manifest of a configuration and its layers' archives."""
    described = [{"mediaType": b.media_type, "digest": b.digest, "size": b.size} for b in blobs]
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MEDIA_OCI_MANIFEST,
            "config": {
                "mediaType": MEDIA_OCI_CONFIG,
                "digest": _digest(config),
                "size": len(config),
            },
            "layers": described,
        },
        separators=(",", ":"),
    ).encode()


class _LocalArchives:
    """Layers' archives that lie in files."""

    def __init__(self, layout: Layout, files: _Files, image: _Found) -> None:
        self._layout = layout
        self._files = files
        self._image = image

    def share(self, parts: int) -> None:
        """Each archive is opened anew, by name."""

    def open(self, index: int, tracker: Tracker) -> _LocalArchive:
        return _LocalArchive(
            self._layout,
            self._files,
            self._image.layer_files[index],
            self._image.blobs[index],
            lambda count: tracker.update(index, fetched=count, state="unpacking"),
        )


class _LocalArchive:
    def __init__(
        self,
        layout: Layout,
        files: _Files,
        name: str,
        blob: Blob,
        on_progress: Callable[[int], None],
    ) -> None:
        self._place = layout.blob(blob.digest)
        self._blob = blob
        self._on_progress = on_progress
        self._read = 0
        try:
            fd = files.open(name)
        except (FileNotFoundError, NotADirectoryError):
            raise DataLoss(f"{name} is missing in the archive") from None
        self._file = os.fdopen(fd, "rb", buffering=0)
        self._reader: Verified | None = None

    def source(self) -> Source:
        self._reader = Verified(self._file, self._blob, self._progressed)
        return self._reader

    def _progressed(self, count: int) -> None:
        self._read += count
        self._on_progress(self._read)

    def verify(self) -> None:
        assert self._reader is not None  # `source` comes first
        self._reader.check()
        if self._read != self._blob.size:
            raise DataLoss(f"{self._blob.digest}: {self._read} bytes, not {self._blob.size}")

    def retry(self) -> bool:
        return False

    def keep(self) -> None:
        if self._place.exists():
            return
        temporary = self._place.with_name(f".{self._place.name}.{os.getpid()}")
        self._file.seek(0)
        with open(temporary, "wb") as copy:
            shutil.copyfileobj(self._file, copy, _CHUNK)
        os.replace(temporary, self._place)

    def close(self) -> None:
        self._file.close()


def blob_path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _object(content: bytes, what: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise DataLoss(f"{what} in the archive: {error}") from error


def _hash(digest: str, content: bytes) -> str:
    return hashlib.new(digest.partition(":")[0], content).hexdigest()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
