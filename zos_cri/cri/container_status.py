"""ContainerStatus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf import json_format

from zos_cri._pb import cri_pb2 as pb
from zos_cri.linux import blocking
from zos_cri.shim import bundle as bundles

if TYPE_CHECKING:
    from zos_cri.cri.services import Services
    from zos_cri.module.types import ContainerRecord


async def container_status(services: Services, request: pb.ContainerStatusRequest) -> bytes:
    """A container as it is, from memory.

    Raises:
        NotFound: there is none.
    """
    record = services.creation.container(request.container_id)
    status = services.views.statuses.get(record)
    if not request.verbose:
        return status
    info = await _info(services, record)
    return status + pb.ContainerStatusResponse(info=info).SerializeToString()


async def _info(services: Services, record: ContainerRecord) -> dict[str, str]:
    try:
        spec = await blocking.call(bundles.read_config, Path(record.meta.bundle))
    except FileNotFoundError:
        spec = {}
    info = {
        "sandboxID": record.meta.ns,
        "pid": record.status.pid,
        "runtimeHandler": record.meta.handler,
        "cgroup": record.meta.cgroup,
        "config": json_format.MessageToDict(
            services.views.parts(record)[1], preserving_proto_field_name=True
        ),
        "runtimeSpec": spec,
    }
    return {"info": json.dumps(info)}
