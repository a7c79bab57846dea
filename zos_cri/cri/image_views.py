"""Images as CRI's messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from zos_cri.images.model import Image


def image_view(image: Image) -> pb.Image:
    """One entry of ListImages."""
    uid, username = image.user()
    return pb.Image(
        id=image.id,
        repo_tags=image.repo_tags,
        repo_digests=image.repo_digests,
        size=image.size,
        uid=pb.Int64Value(value=uid) if uid is not None else None,
        username=username,
        spec=pb.ImageSpec(image=image.id),
        pinned=image.pinned,
    )
