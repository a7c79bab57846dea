"""What an archive of a checkpoint has in it, as containerd, CRI-O and checkpointctl read it.

config.dump       which container and image it was, when
spec.dump         its OCI specification
status.dump       its runtime.v1.ContainerStatus
status            the same in containerd's own terms
checkpoint/       CRIU's images
rootfs-diff.tar   what it had written, as a layer
deleted.files     what it had removed, for readers that know no whiteouts
container.log     its log
dump.log, stats-dump   of CRIU
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from zos_cri.errors import DataLoss

CONFIG: Final = "config.dump"
SPEC: Final = "spec.dump"
STATUS: Final = "status.dump"
CONTAINERD_STATUS: Final = "status"
IMAGES: Final = "checkpoint"
ROOTFS_DIFF: Final = "rootfs-diff.tar"
DELETED: Final = "deleted.files"
LOG: Final = "container.log"
CRIU_LOG: Final = "dump.log"
INVENTORY: Final = "inventory.img"  # in IMAGES; CRIU writes it for every dump
# Of a pod's checkpoint, beside its containers' archives (checkpointctl's names).
POD_OPTIONS: Final = "pod.options"
POD: Final = "pod.dump"
POD_VERSION: Final = 1

DOCUMENT_LIMIT: Final = 8 << 20  # bytes; a specification with 10,000 mounts has 2 MiB

# What CRI-O makes a container of when it restores one.
_CRIO: Final = "io.kubernetes.cri-o."


class Config(msgspec.Struct, frozen=True, rename="camel"):
    """config.dump; fields of others are ignored."""

    id: str = ""
    name: str = ""
    rootfs_image: str = ""
    rootfs_image_ref: str = ""
    rootfs_image_name: str = ""
    runtime: str = ""
    created_time: str = ""
    checkpointed_time: str = ""
    restored_time: str = "0001-01-01T00:00:00Z"
    restored: bool = False


class PodOptions(msgspec.Struct, frozen=True):
    """pod.options: the containers' archives by the containers' names."""

    version: int
    containers: dict[str, str]
    annotations: dict[str, str] = {}


def time_text(nanoseconds: int) -> str:
    """ns since the epoch, as Go's encoding/json writes a time."""
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat().replace("+00:00", "Z")


def spec_with_origin(
    spec: dict[str, Any], *, name: str, attempt: int, image: str, config: dict[str, Any]
) -> dict[str, Any]:
    """A specification with the annotations that CRI-O restores a container from.

    Args:
        config: the container's `labels` and `annotations`.
    """
    origin = {
        _CRIO + "Metadata": json.dumps({"name": name, "attempt": attempt}),
        _CRIO + "Annotations": json.dumps(config["annotations"]),
        _CRIO + "Labels": json.dumps(config["labels"]),
        _CRIO + "Image": image,
        "org.opencontainers.image.ref.name": image,
    }
    return {**spec, "annotations": {**spec.get("annotations", {}), **origin}}


def parse(document: bytes, what: str) -> dict[str, Any]:
    """A JSON object of an archive.

    Raises:
        DataLoss: it is none.
    """
    try:
        parsed = json.loads(document)
    except ValueError as error:
        raise DataLoss(f"{what}: no JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise DataLoss(f"{what}: no JSON object")
    return parsed


def parse_config(document: bytes, what: str) -> Config:
    """config.dump.

    Raises:
        DataLoss: it isn't one.
    """
    try:
        return msgspec.json.decode(document, type=Config)
    except msgspec.MsgspecError as error:
        raise DataLoss(f"{what}: {error}") from error
