"""UpdateContainerResources."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from zos_cri._pb import cri_pb2 as pb
from zos_cri.linux import blocking
from zos_cri.linux.oomscore import set_oom_score_adj
from zos_cri.oci import resources

if TYPE_CHECKING:
    from zos_cri.cri.services import Services

RESCORE_TIMEOUT: Final = 10.0  # seconds; one that is written to takes microseconds


async def update_container_resources(
    services: Services, request: pb.UpdateContainerResourcesRequest
) -> pb.UpdateContainerResourcesResponse:
    """Changes the limits of a created or running container; what isn't given stays.

    Zero and empty mean "not given", as everywhere in this message: so an `oom_score_adj` of 0 can't
    be asked for, and a limit is taken away by -1. `unified` replaces key by key, huge pages size by
    size. A memory limit without a swap limit is both, as at the creation. The runtime gets all
    limits together; where it refuses, none is changed. Processes that run, and later execs, get a
    new `oom_score_adj`; a created container starts with what it was updated to.

    Raises:
        NotFound: no such container.
        FailedPrecondition: it has ended.
        InvalidArgument: a value is out of range.
        Error: the runtime refused; nothing is changed then.
    """
    record = services.creation.container(request.container_id)

    async def rescore(spec: dict[str, Any]) -> None:
        """No runtime's update does it: the processes that run are given it one by one."""
        pids = partial(services.cgroups.pids, record.meta.cgroup)
        value = spec["process"]["oomScoreAdj"]
        await blocking.call(set_oom_score_adj, pids, value, timeout=RESCORE_TIMEOUT)

    await services.containers.update(
        record.meta.id,
        lambda spec: resources.merge_update(spec, request.linux, services.host),
        lambda: resources.merge_reported(
            services.views.resources(services.creation.container(record.meta.id)), request.linux
        ).SerializeToString(),
        rescore if request.linux.oom_score_adj else None,
    )
    return pb.UpdateContainerResourcesResponse()
