"""RunPodSandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri._pb import cri_pb2 as pb
from zos_cri.errors import InvalidArgument

if TYPE_CHECKING:
    from zos_cri.cri.services import Services


async def run_pod_sandbox(
    services: Services, request: pb.RunPodSandboxRequest
) -> pb.RunPodSandboxResponse:
    """Makes a pod ready for containers, or joins the call that is making the same one.

    Raises:
        InvalidArgument, AlreadyExists, Error: as `Sandboxes.run`.
    """
    if not request.HasField("config"):
        raise InvalidArgument("config: is missing")
    id_ = await services.sandboxes.run(request.config, request.runtime_handler)
    return pb.RunPodSandboxResponse(pod_sandbox_id=id_)
