"""ListContainerStats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri.cri.stats_targets import runs
from zos_cri.cri.views import has_labels
from zos_cri.stats import messages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zos_cri._pb import cri_pb2 as pb
    from zos_cri.cri.services import Services
    from zos_cri.module.types import ContainerRecord


async def list_container_stats(services: Services, request: pb.ListContainerStatsRequest) -> bytes:
    """The numbers of the running containers that pass the filter, as last sampled."""
    stats = await found(services, request.filter)
    return b"".join(messages.field(messages.LIST_STATS, entry) for entry in stats)


async def found(services: Services, wanted: pb.ContainerStatsFilter) -> Iterator[bytes]:
    """The ContainerStats, encoded, that a filter lets through; made as they are taken."""
    sampler, targets = services.stats.sampler, services.stats.targets
    records = [r for r in services.containers if _passes(services, r, wanted)]
    await sampler.ready(record.meta.id for record in records)
    sampler.ask()
    return (
        sampler.container_stats(record.meta.id, targets.container_attributes(record))
        for record in records
    )


def _passes(services: Services, record: ContainerRecord, wanted: pb.ContainerStatsFilter) -> bool:
    return (
        runs(record)
        and record.meta.id.startswith(wanted.id)
        and record.meta.ns.startswith(wanted.pod_sandbox_id)
        and has_labels(services.views.parts(record)[1].labels, wanted.label_selector)
    )
