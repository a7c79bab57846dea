"""ReopenContainerLog."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri._pb import cri_pb2 as pb
from zos_cri.errors import FailedPrecondition, NotFound

if TYPE_CHECKING:
    from zos_cri.cri.services import Services


async def reopen_container_log(
    services: Services, request: pb.ReopenContainerLogRequest
) -> pb.ReopenContainerLogResponse:
    """Opens a container's log file anew, after the kubelet has moved the old one away.

    Raises:
        NotFound: no such container.
        FailedPrecondition: it doesn't run.
        Error: the file can't be opened.
    """
    record = services.creation.container(request.container_id)
    services.containers.running(record.meta.id)
    try:
        await services.output.reopen(record.meta.id)
    except NotFound:  # the log is finished before the exit is told
        raise FailedPrecondition(f"container {record.meta.id}: it has just exited") from None
    return pb.ReopenContainerLogResponse()
