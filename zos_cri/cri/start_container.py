"""StartContainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from zos_cri.cri.services import Services


async def start_container(
    services: Services, request: pb.StartContainerRequest
) -> pb.StartContainerResponse:
    """Starts a created container.

    Raises:
        NotFound: no such container, or its pod is gone.
        FailedPrecondition: it was started before, or its pod isn't ready.
        Error: the runtime refused; ContainerStatus tells why (StartError).
    """
    record = services.creation.container(request.container_id)
    services.sandboxes.ready(record.meta.ns)
    await services.containers.start(record.meta.id)
    return pb.StartContainerResponse()
