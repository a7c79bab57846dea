"""StopPodSandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from zos_cri.cri.services import Services


async def stop_pod_sandbox(
    services: Services, request: pb.StopPodSandboxRequest
) -> pb.StopPodSandboxResponse:
    """Ends all of the pod's processes and gives its address back. Idempotent.

    Raises:
        Error: as `Sandboxes.stop`.
    """
    await services.sandboxes.stop(request.pod_sandbox_id)
    return pb.StopPodSandboxResponse()
