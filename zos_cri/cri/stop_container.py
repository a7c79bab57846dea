"""StopContainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri._pb import cri_pb2 as pb
from zos_cri.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from zos_cri.cri.services import Services


async def stop_container(
    services: Services, request: pb.StopContainerRequest
) -> pb.StopContainerResponse:
    """Ends a container: its stop signal, `timeout` seconds, SIGKILL. Idempotent.

    Raises:
        InvalidArgument: a negative timeout.
        DeadlineExceeded: it outlived SIGKILL.
    """
    if request.timeout < 0:
        raise InvalidArgument(f"timeout: {request.timeout} s is negative")
    try:
        record = services.creation.container(request.container_id)
    except NotFound:
        return pb.StopContainerResponse()
    await services.containers.stop(record.meta.id, timeout=float(request.timeout))
    return pb.StopContainerResponse()
