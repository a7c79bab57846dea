"""ExecSync."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri._pb import cri_pb2 as pb
from zos_cri.errors import InvalidArgument
from zos_cri.oci import process

if TYPE_CHECKING:
    from zos_cri.cri.services import Services


async def exec_sync(services: Services, request: pb.ExecSyncRequest) -> pb.ExecSyncResponse:
    """Runs a command in a container to its end.

    Raises:
        NotFound: no such container.
        FailedPrecondition: it doesn't run.
        InvalidArgument: no command, or a negative timeout.
        DeadlineExceeded: the timeout ran out; the command's process group was killed.
    """
    if request.timeout < 0:
        raise InvalidArgument(f"timeout: {request.timeout} s is negative")
    if not request.cmd:
        raise InvalidArgument("cmd: is empty")
    record = services.creation.container(request.container_id)
    result = await services.execs.run(
        record.meta.id,
        lambda spec: process.exec_process(spec, list(request.cmd), tty=False),
        timeout=float(request.timeout) or None,
    )
    return pb.ExecSyncResponse(
        stdout=result.stdout, stderr=result.stderr, exit_code=result.exit_code
    )
