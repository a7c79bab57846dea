"""Images to an archive file, in the worker.

What is written is an OCI layout and a Docker archive at once, as Docker itself does since version
25: `docker load`, `skopeo`, `ctr images import` and `load` here all take it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zos_cri.errors import DataLoss, InvalidArgument, NotFound
from zos_cri.images.jobs import Done
from zos_cri.images.layout import Layout
from zos_cri.images.load import NAMES, blob_path
from zos_cri.images.model import MEDIA_OCI_INDEX, MEDIA_OCI_MANIFEST

if TYPE_CHECKING:
    from zos_cri.images.jobs import SavedImage, SaveJob
    from zos_cri.images.model import Blob


def save(job: SaveJob) -> Done:
    """Writes images to one archive that is an OCI layout and a Docker archive at once."""
    layout = Layout(Path(job.root))
    for image in job.images:
        for blob in image.blobs:
            if not layout.blob(blob.digest).exists():
                raise NotFound(
                    f"image {image.id}: the archive of its layer {blob.digest} isn't kept here:"
                    " pull it again"
                )
    temporary = f"{job.path}.{os.getpid()}.part"
    try:
        with (
            open(temporary, "xb") as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            os.fchmod(file.fileno(), 0o600)  # the worker's umask is 0, for layers' sake
            _write_all(tar, layout, job.images)
        os.replace(temporary, job.path)
    except OSError as error:
        raise InvalidArgument(f"{job.path}: {error.strerror or error}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return Done()


def _write_all(tar: tarfile.TarFile, layout: Layout, images: tuple[SavedImage, ...]) -> None:
    written: set[str] = set()
    manifest_list, docker_list = [], []
    for image in images:
        documents = {_digest(image.manifest): image.manifest, image.id: image.config}
        for digest, content in documents.items():
            if digest not in written:
                _add(tar, blob_path(digest), content)
                written.add(digest)
        for blob in image.blobs:
            if blob.digest not in written:
                _add_file(tar, blob_path(blob.digest), layout.blob(blob.digest), blob)
                written.add(blob.digest)
        described: dict[str, Any] = {
            "mediaType": image.manifest_type or MEDIA_OCI_MANIFEST,
            "digest": _digest(image.manifest),
            "size": len(image.manifest),
        }
        for name in image.names or ("",):
            tag = name.rpartition(":")[2]
            annotations = dict(zip(NAMES, (name, tag), strict=True)) if name else {}
            manifest_list.append({**described, **({"annotations": annotations} if name else {})})
        docker_list.append(
            {
                "Config": blob_path(image.id),
                "RepoTags": list(image.names),
                "Layers": [blob_path(blob.digest) for blob in image.blobs],
            }
        )
    index = {"schemaVersion": 2, "mediaType": MEDIA_OCI_INDEX, "manifests": manifest_list}
    _add(tar, "index.json", json.dumps(index).encode())
    _add(tar, "manifest.json", json.dumps(docker_list).encode())
    _add(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _add_file(tar: tarfile.TarFile, name: str, path: Path, blob: Blob) -> None:
    info = tarfile.TarInfo(name)
    with open(path, "rb") as file:
        info.size = os.fstat(file.fileno()).st_size
        if info.size != blob.size:
            raise DataLoss(f"{blob.digest}: {info.size} bytes are stored, not {blob.size}")
        found = hashlib.file_digest(file, blob.digest.partition(":")[0]).hexdigest()
        if found != blob.digest.partition(":")[2]:
            raise DataLoss(f"{blob.digest}: what is stored has the digest {found}: pull it again")
        file.seek(0)
        tar.addfile(info, file)


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
