"""ListPodSandboxStats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri.cri.pod_sandbox_stats import encoded
from zos_cri.cri.stats_targets import running_by_pod
from zos_cri.cri.views import has_labels
from zos_cri.stats import messages
from zos_cri.store.lifecycle import SandboxState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zos_cri._pb import cri_pb2 as pb
    from zos_cri.cri.services import Services
    from zos_cri.cri.stats_targets import SandboxRecord


async def list_pod_sandbox_stats(
    services: Services, request: pb.ListPodSandboxStatsRequest
) -> bytes:
    """The numbers of the ready pods that pass the filter, as last sampled."""
    stats = await found(services, request.filter)
    return b"".join(messages.field(messages.LIST_STATS, entry) for entry in stats)


async def found(services: Services, wanted: pb.PodSandboxStatsFilter) -> Iterator[bytes]:
    """The PodSandboxStats, encoded, that a filter lets through; made as they are taken."""
    sampler = services.stats.sampler
    pods = [r for r in services.sandboxes.table if _passes(services, r, wanted)]
    containers = running_by_pod(services.containers)
    await sampler.ready(c.meta.id for pod in pods for c in containers.get(pod.meta.id, ()))
    sampler.ask()
    return (encoded(services, pod, containers.get(pod.meta.id, ())) for pod in pods)


def _passes(services: Services, record: SandboxRecord, wanted: pb.PodSandboxStatsFilter) -> bool:
    return (
        record.status.state is SandboxState.READY
        and record.meta.id.startswith(wanted.id)
        and has_labels(services.views.config(record.meta).labels, wanted.label_selector)
    )
