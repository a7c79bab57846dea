"""PortForward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri._pb import cri_pb2 as pb
from zos_cri.errors import InvalidArgument
from zos_cri.streaming.backend import PortForwardRequest

if TYPE_CHECKING:
    from zos_cri.cri.services import Services


async def port_forward(
    services: Services, request: pb.PortForwardRequest
) -> pb.PortForwardResponse:
    """The URL at which a pod's ports can be reached, once, within a minute.

    Raises:
        NotFound: no such pod.
        FailedPrecondition: it isn't ready.
        InvalidArgument: a number that is no port.
        ResourceExhausted: too many such URLs are waiting.
    """
    for index, port in enumerate(request.port):
        if not 0 < port < 65536:
            raise InvalidArgument(f"port[{index}]: {port} is no port")
    sandbox = services.sandboxes.ready(request.pod_sandbox_id).meta
    url = services.streaming.port_forward_url(
        PortForwardRequest(pod_id=sandbox.id, ports=tuple(request.port))
    )
    return pb.PortForwardResponse(url=url)
