"""PodSandboxStats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri.cri.stats_targets import runs
from zos_cri.stats import messages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zos_cri._pb import cri_pb2 as pb
    from zos_cri.cri.services import Services
    from zos_cri.cri.stats_targets import SandboxRecord
    from zos_cri.module.types import ContainerRecord


async def pod_sandbox_stats(services: Services, request: pb.PodSandboxStatsRequest) -> bytes:
    """A pod's numbers and its running containers', as last sampled.

    Raises:
        NotFound: there is none.
    """
    record = services.sandboxes.find(request.pod_sandbox_id)
    containers = [r for r in services.containers if runs(r) and r.meta.ns == record.meta.id]
    await services.stats.sampler.ready(container.meta.id for container in containers)
    await services.stats.told.measured(record.meta.id)
    services.stats.sampler.ask()
    return messages.field(messages.LIST_STATS, encoded(services, record, containers))


def encoded(
    services: Services, record: SandboxRecord, containers: Sequence[ContainerRecord]
) -> bytes:
    """A PodSandboxStats of a pod and these containers of it."""
    targets = services.stats.targets
    return services.stats.sampler.pod_stats(
        record.meta.id,
        targets.pod_attributes(record),
        [(c.meta.id, targets.container_attributes(c)) for c in containers],
    )
