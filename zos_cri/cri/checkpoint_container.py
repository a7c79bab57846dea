"""CheckpointContainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri._pb import cri_pb2 as pb
from zos_cri.cri.checkpoints import check_target

if TYPE_CHECKING:
    from zos_cri.cri.services import Services


async def checkpoint_container(
    services: Services, request: pb.CheckpointContainerRequest
) -> pb.CheckpointContainerResponse:
    """Writes a running container, its memory and what it has written to an archive; it goes on.

    The archive has the layout that containerd and CRI-O write and read. CreateContainer takes its
    path, or an image with the same in it, in place of an image.

    Raises:
        NotFound: no such container.
        FailedPrecondition: it doesn't run, or CRIU can't do it; the message has what CRIU says.
        InvalidArgument: the location can't be written to.
        DeadlineExceeded: it took longer than the timeout.
    """
    record = services.creation.container(request.container_id)
    target = check_target("location", request.location)
    await services.checkpoints.capture({record.meta.id: target}, timeout=request.timeout)
    return pb.CheckpointContainerResponse()
