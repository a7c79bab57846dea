"""UpdatePodSandboxResources."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from zos_cri._pb import cri_pb2 as pb
from zos_cri.oci.resources import linux_resources

if TYPE_CHECKING:
    from zos_cri.cri.services import Services
    from zos_cri.store.model import SandboxStatus


async def update_pod_sandbox_resources(
    services: Services, request: pb.UpdatePodSandboxResourcesRequest
) -> pb.UpdatePodSandboxResourcesResponse:
    """Notes a pod's new overhead and resources; what isn't given stays.

    The kubelet has changed the pod's cgroup by then: nothing is left to be done to it.

    Raises:
        NotFound: there is no such pod.
        InvalidArgument: a value is out of range.
        Error: an NRI plugin refused.
    """
    pod = services.sandboxes.find(request.pod_sandbox_id).meta
    given = {
        field: getattr(request, field)
        for field in ("overhead", "resources")
        if request.HasField(field)
    }
    for field, resources in given.items():
        linux_resources(resources, services.host, field=field)

    def change(status: SandboxStatus) -> SandboxStatus:
        encoded = {field: resources.SerializeToString() for field, resources in given.items()}
        return msgspec.structs.replace(status, **encoded)

    await services.nri.update_pod(pod, given)
    await services.sandboxes.table.update(pod.id, change)
    await services.nri.pod_updated(pod)
    return pb.UpdatePodSandboxResourcesResponse()
