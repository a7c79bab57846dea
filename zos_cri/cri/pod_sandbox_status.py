"""PodSandboxStatus."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import json_format

from zos_cri._pb import cri_pb2 as pb
from zos_cri.errors import Error
from zos_cri.shim.handler import SHIM
from zos_cri.store.lifecycle import SandboxState

if TYPE_CHECKING:
    from zos_cri.cri.services import Services
    from zos_cri.store.db import Record
    from zos_cri.store.model import SandboxMeta, SandboxStatus


CONTAINERS_STATUSES: Final = 3  # the field's number, in cri.proto


async def pod_sandbox_status(services: Services, request: pb.PodSandboxStatusRequest) -> bytes:
    """A pod as it is, from memory; only what its shim says of a sandbox of its own is asked for.

    Raises:
        NotFound: there is none.
    """
    record = services.sandboxes.find(request.pod_sandbox_id)
    # Both are for a kubelet that takes events: it then asks for no container by itself.
    containers = services.events.container_statuses(record.meta.id, CONTAINERS_STATUSES)
    rest = pb.PodSandboxStatusResponse(
        info=await _info(services, record) if request.verbose else {},
        timestamp=services.events.timestamp(),
    )
    return services.views.sandbox_statuses.get(record) + containers + rest.SerializeToString()


async def _info(services: Services, record: Record[SandboxMeta, SandboxStatus]) -> dict[str, str]:
    meta = record.meta
    init = services.containers.get(meta.id)
    info: dict[str, Any] = {
        "pid": init.status.pid if init is not None else record.status.pid,
        "processStatus": record.status.state.value,
        "netNamespaceClosed": record.status.network_released,
        "runtimeHandler": meta.handler,
        "sandboxer": meta.sandboxer,
        "shim": meta.group,
        "namespaces": {"net": meta.netns, "ipc": meta.ipcns, "uts": meta.utsns},
        "config": json_format.MessageToDict(
            services.views.pod_config(record), preserving_proto_field_name=True
        ),
    }
    if meta.netns and not record.status.network_released:
        with contextlib.suppress(Error):  # a record that can't be read is no reason to say nothing
            result = await services.network.result(meta.id)
            # All interfaces; the status itself has the addresses of the first network alone.
            info["cniResult"] = result.info() if result is not None else None
    told: dict[str, str] = {}
    if meta.sandboxer == SHIM and record.status.state is SandboxState.READY:
        info["sandbox"], told = await services.sandboxes.by_shims.info(meta.id)
    return {**told, "info": json.dumps(info)}
