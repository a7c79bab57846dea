"""UpdateContainerResources."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri._pb import cri_pb2 as pb
from zos_cri.oci import resources

if TYPE_CHECKING:
    from zos_cri.cri.services import Services


async def update_container_resources(
    services: Services, request: pb.UpdateContainerResourcesRequest
) -> pb.UpdateContainerResourcesResponse:
    """Changes the limits of a created or running container; what isn't given stays.

    Raises:
        NotFound: no such container.
        FailedPrecondition: it has ended.
        InvalidArgument: a value is out of range.
        Error: the runtime refused; nothing is changed then.
    """
    record = services.creation.container(request.container_id)
    await services.containers.update(
        record.meta.id,
        lambda spec: resources.merge_update(spec, request.linux, services.host),
        lambda: resources.merge_reported(
            services.views.resources(services.creation.container(record.meta.id)), request.linux
        ).SerializeToString(),
    )
    return pb.UpdateContainerResourcesResponse()
