"""StreamImages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri.cri.batches import as_fields, batches
from zos_cri.cri.image_views import image_view

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from zos_cri._pb import cri_pb2 as pb
    from zos_cri.cri.services import Services


async def stream_images(
    services: Services, request: pb.StreamImagesRequest
) -> AsyncGenerator[bytes, None]:
    """The images on this host, or the one that the filter names, in answers under 1 MiB."""
    images = await services.images.list(request.filter.image.image)
    items = (image_view(image).SerializeToString() for image in images)
    async for answer in batches(as_fields(items)):
        yield answer
