"""Exec."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri._pb import cri_pb2 as pb
from zos_cri.errors import InvalidArgument
from zos_cri.streaming.backend import ExecRequest

if TYPE_CHECKING:
    from zos_cri.cri.services import Services


async def exec_(services: Services, request: pb.ExecRequest) -> pb.ExecResponse:
    """The URL at which a command can be run in a container, once, within a minute.

    Raises:
        NotFound: no such container.
        FailedPrecondition: it doesn't run.
        InvalidArgument: no command, no stream, or a terminal with a stderr of its own.
        ResourceExhausted: too many such URLs are waiting.
    """
    if not request.cmd:
        raise InvalidArgument("cmd: is empty")
    check_streams(request)
    record = services.containers.running(services.creation.container(request.container_id).meta.id)
    url = services.streaming.exec_url(
        ExecRequest(
            container_id=record.meta.id,
            cmd=tuple(request.cmd),
            tty=request.tty,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
        )
    )
    return pb.ExecResponse(url=url)


def check_streams(request: pb.ExecRequest | pb.AttachRequest) -> None:
    """CRI's rules for the streams of an Exec or Attach.

    Raises:
        InvalidArgument: no stream, or a terminal with a stderr of its own.
    """
    if not (request.stdin or request.stdout or request.stderr):
        raise InvalidArgument("stdin, stdout, stderr: at least one must be true")
    if request.tty and request.stderr:
        raise InvalidArgument("stderr: a terminal has none of its own (tty is true)")
