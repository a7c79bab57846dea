"""PullImage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri._pb import cri_pb2 as pb
from zos_cri.errors import InvalidArgument
from zos_cri.images.model import Auth, user_and_password

if TYPE_CHECKING:
    from zos_cri.cri.services import Services


async def pull_image(services: Services, request: pb.PullImageRequest) -> pb.PullImageResponse:
    """Pulls an image, or joins the call that is pulling it; the answer names it by its id.

    When the last caller that waits for it is gone, the pull ends and leaves nothing behind.

    Raises:
        InvalidArgument, NotFound, PermissionDenied, Unavailable, Error: as `ImageStore.pull`.
    """
    if not request.image.image:
        raise InvalidArgument("image.image: is empty")
    auth = Auth(
        username=request.auth.username,
        password=request.auth.password,
        auth=request.auth.auth,
        server_address=request.auth.server_address,
        identity_token=request.auth.identity_token,
        registry_token=request.auth.registry_token,
    )
    user_and_password(auth)  # before anything is asked of anyone
    given = auth if request.HasField("auth") else None
    return pb.PullImageResponse(image_ref=await services.images.pull(request.image.image, given))
