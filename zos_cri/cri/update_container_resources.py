"""UpdateContainerResources."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from zos_cri.cri.services import Services


async def update_container_resources(
    services: Services, request: pb.UpdateContainerResourcesRequest
) -> pb.UpdateContainerResourcesResponse:
    """Changes the limits of a created or running container; what isn't given stays.

    Zero and empty mean "not given", as everywhere in this message: so an `oom_score_adj` of 0 can't
    be asked for, and a limit is taken away by -1. `unified` replaces key by key, huge pages size by
    size. A memory limit without a swap limit is both, as at the creation. The runtime gets all
    limits together; where it refuses, none is changed. Processes that run, and later execs, get a
    new `oom_score_adj`; a created container starts with what it was updated to. What NRI plugins
    want otherwise comes on top.

    Raises:
        NotFound: no such container.
        FailedPrecondition: it has ended.
        InvalidArgument: a value is out of range.
        Error: the runtime or a plugin refused; nothing is changed then.
    """
    record = services.creation.container(request.container_id)
    more = await services.nri.update(record, request.linux)
    await services.limits.update(record, request.linux, more)
    await services.nri.updated(record)
    return pb.UpdateContainerResourcesResponse()
