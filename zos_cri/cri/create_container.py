"""CreateContainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri._pb import cri_pb2 as pb
from zos_cri.errors import InvalidArgument

if TYPE_CHECKING:
    from zos_cri.cri.services import Services


async def create_container(
    services: Services, request: pb.CreateContainerRequest
) -> pb.CreateContainerResponse:
    """Makes a container in a ready pod, or joins the call that is making the same one.

    The pod's configuration is the one that RunPodSandbox was given; the copy in the request is
    not looked at.

    Raises:
        InvalidArgument, NotFound, FailedPrecondition, AlreadyExists, Error: as `Creation.create`.
    """
    if not request.HasField("config"):
        raise InvalidArgument("config: is missing")
    id_ = await services.creation.create(request.pod_sandbox_id, request.config)
    return pb.CreateContainerResponse(container_id=id_)
