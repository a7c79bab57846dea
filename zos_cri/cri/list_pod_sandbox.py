"""ListPodSandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri.cri.views import has_labels, sandbox_state
from zos_cri.store.lifecycle import SandboxState

if TYPE_CHECKING:
    from zos_cri._pb import cri_pb2 as pb
    from zos_cri.cri.services import Services
    from zos_cri.cri.stats_targets import SandboxRecord


async def list_pod_sandbox(services: Services, request: pb.ListPodSandboxRequest) -> bytes:
    """The pods that pass the filter, from memory; one that is being made isn't there yet."""
    return services.views.sandboxes.join(found(services, request.filter))


def found(services: Services, wanted: pb.PodSandboxFilter) -> list[SandboxRecord]:
    """The pods that a filter lets through."""
    table = services.sandboxes.table
    if not wanted.ByteSize():
        return [record for record in table if record.status.state is not SandboxState.CREATING]
    return [record for record in table if _passes(services, record, wanted)]


def _passes(services: Services, record: SandboxRecord, wanted: pb.PodSandboxFilter) -> bool:
    return (
        record.status.state is not SandboxState.CREATING
        and record.meta.id.startswith(wanted.id)
        and (not wanted.HasField("state") or wanted.state.state == sandbox_state(record.status))
        and has_labels(services.views.config(record.meta).labels, wanted.label_selector)
    )
