"""RemoveImage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri._pb import cri_pb2 as pb
from zos_cri.errors import InvalidArgument

if TYPE_CHECKING:
    from zos_cri.cri.services import Services


async def remove_image(
    services: Services, request: pb.RemoveImageRequest
) -> pb.RemoveImageResponse:
    """Removes an image under all its names. Idempotent.

    Raises:
        InvalidArgument: it is no image's name.
    """
    if not request.image.image:
        raise InvalidArgument("image.image: is empty")
    await services.images.remove(request.image.image)
    return pb.RemoveImageResponse()
