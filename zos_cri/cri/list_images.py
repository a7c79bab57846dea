"""ListImages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri._pb import cri_pb2 as pb
from zos_cri.cri.image_views import image_view

if TYPE_CHECKING:
    from zos_cri.cri.services import Services


async def list_images(services: Services, request: pb.ListImagesRequest) -> pb.ListImagesResponse:
    """The images on this host, or the one that the filter names."""
    images = await services.images.list(request.filter.image.image)
    return pb.ListImagesResponse(images=[image_view(image) for image in images])
