"""Attach."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri._pb import cri_pb2 as pb
from zos_cri.cri.exec import check_streams
from zos_cri.streaming.backend import AttachRequest

if TYPE_CHECKING:
    from zos_cri.cri.services import Services


async def attach(services: Services, request: pb.AttachRequest) -> pb.AttachResponse:
    """The URL at which a container's streams can be joined, once, within a minute.

    Raises:
        NotFound: no such container.
        FailedPrecondition: it doesn't run.
        InvalidArgument: no stream, or a terminal with a stderr of its own.
        ResourceExhausted: too many such URLs are waiting.
    """
    check_streams(request)
    record = services.containers.running(services.creation.container(request.container_id).meta.id)
    url = services.streaming.attach_url(
        AttachRequest(
            container_id=record.meta.id,
            tty=request.tty,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
        )
    )
    return pb.AttachResponse(url=url)
