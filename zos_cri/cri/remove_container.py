"""RemoveContainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri._pb import cri_pb2 as pb
from zos_cri.errors import NotFound

if TYPE_CHECKING:
    from zos_cri.cri.services import Services


async def remove_container(
    services: Services, request: pb.RemoveContainerRequest
) -> pb.RemoveContainerResponse:
    """Removes a container, killing it where it runs; its log is the kubelet's. Idempotent.

    Raises:
        Error: something could not be released; a further call tries again.
    """
    try:
        record = services.creation.container(request.container_id)
    except NotFound:
        return pb.RemoveContainerResponse()
    await services.containers.remove(record.meta.id)
    services.views.forget(record.meta.id)
    return pb.RemoveContainerResponse()
