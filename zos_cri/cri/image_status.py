"""ImageStatus."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from zos_cri._pb import cri_pb2 as pb
from zos_cri.cri.image_views import image_view
from zos_cri.errors import InvalidArgument

if TYPE_CHECKING:
    from zos_cri.cri.services import Services


async def image_status(
    services: Services, request: pb.ImageStatusRequest
) -> pb.ImageStatusResponse:
    """An image by any of its names; a response without `image` where it isn't here (CRI).

    Verbose, it also says how far a pull of that name is.

    Raises:
        InvalidArgument: it is no image's name.
    """
    if not request.image.image:
        raise InvalidArgument("image.image: is empty")
    image = await services.images.status(request.image.image)
    info = {}
    progress = services.images.progress(request.image.image) if request.verbose else None
    if progress is not None:
        info["pull"] = msgspec.json.encode(progress).decode()
    if image is None:
        return pb.ImageStatusResponse(info=info)
    if request.verbose:
        config = await services.images.raw_config(image.id)
        info["info"] = config.decode(errors="replace")
    return pb.ImageStatusResponse(image=image_view(image), info=info)
