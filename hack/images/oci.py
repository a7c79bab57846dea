"""Writes OCI images into an OCI image layout, the same bytes every time."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
NAME = "org.opencontainers.image.ref.name"

# Of all files and images: what doesn't change can't make a digest change.
EPOCH = 1_600_000_000
CREATED = "2020-09-13T12:26:40Z"


class Layer:
    """Files of one layer, in the order of adding; folders on the way are added by themselves."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[tarfile.TarInfo, bytes]] = {}

    def folder(self, path: str, *, mode: int = 0o755) -> Layer:
        return self._add(path, tarfile.DIRTYPE, mode=mode)

    def file(self, path: str, content: bytes | str, *, mode: int = 0o644) -> Layer:
        data = content.encode() if isinstance(content, str) else content
        return self._add(path, tarfile.REGTYPE, mode=mode, data=data)

    def hard_link(self, path: str, target: str) -> Layer:
        return self._add(path, tarfile.LNKTYPE, mode=0o755, link=target.lstrip("/"))

    def symlink(self, path: str, target: str) -> Layer:
        return self._add(path, tarfile.SYMTYPE, mode=0o777, link=target)

    def tar(self) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for info, data in self._entries.values():
                archive.addfile(info, io.BytesIO(data))
        return out.getvalue()

    def _add(
        self, path: str, kind: bytes, *, mode: int, data: bytes = b"", link: str = ""
    ) -> Layer:
        name = path.strip("/")
        parent = name.rpartition("/")[0]
        if parent and parent not in self._entries:
            self.folder(parent)
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.size, info.linkname = kind, mode, len(data), link
        info.mtime = EPOCH
        self._entries[name] = (info, data)
        return self


@dataclass(frozen=True)
class Image:
    """What one image is made of; `config` holds User, Env, Entrypoint, Cmd, ... of its config."""

    layers: tuple[Layer, ...]
    config: dict[str, Any] = field(default_factory=dict)


class Layout:
    """An OCI image layout that is written from its start."""

    def __init__(self, root: Path, *, architecture: str) -> None:
        self._root = root
        self._architecture = architecture
        self._manifests: list[dict[str, Any]] = []
        self._layers: dict[Layer, tuple[dict[str, Any], str]] = {}
        (root / "blobs" / "sha256").mkdir(parents=True)

    def add(self, image: Image, *names: str) -> None:
        """Adds an image under each of its names (host/path:tag)."""
        layers = [self._layer(layer) for layer in image.layers]
        config = self._json(
            {
                "architecture": self._architecture,
                "config": image.config,
                "created": CREATED,
                "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
            },
            media_type=CONFIG,
        )
        manifest = self._json(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": config,
                "layers": [descriptor for descriptor, _ in layers],
            },
            media_type=MANIFEST,
        )
        self._manifests += [{**manifest, "annotations": {NAME: name}} for name in names]

    def finish(self) -> None:
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": self._manifests}
        (self._root / "index.json").write_text(json.dumps(index, indent=1) + "\n")
        (self._root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}\n')

    def _layer(self, layer: Layer) -> tuple[dict[str, Any], str]:
        if layer not in self._layers:
            content = layer.tar()
            diff_id = f"sha256:{hashlib.sha256(content).hexdigest()}"
            packed = gzip.compress(content, mtime=0)
            self._layers[layer] = self._blob(packed, media_type=LAYER), diff_id
        return self._layers[layer]

    def _json(self, value: dict[str, Any], *, media_type: str) -> dict[str, Any]:
        return self._blob(json.dumps(value, sort_keys=True).encode(), media_type=media_type)

    def _blob(self, content: bytes, *, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        path = self._root / "blobs" / "sha256" / digest
        if not path.exists():
            path.write_bytes(content)
            os.utime(path, (EPOCH, EPOCH))
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}
