"""RemovePodSandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri._pb import cri_pb2 as pb
from zos_cri.errors import NotFound

if TYPE_CHECKING:
    from zos_cri.cri.services import Services


async def remove_pod_sandbox(
    services: Services, request: pb.RemovePodSandboxRequest
) -> pb.RemovePodSandboxResponse:
    """Removes a pod and its containers, stopping what runs. Idempotent.

    Raises:
        Error: as `Sandboxes.remove`.
    """
    try:
        id_ = services.sandboxes.find(request.pod_sandbox_id).meta.id
    except NotFound:
        return pb.RemovePodSandboxResponse()
    await services.sandboxes.remove(id_)
    services.views.forget(id_)
    return pb.RemovePodSandboxResponse()
