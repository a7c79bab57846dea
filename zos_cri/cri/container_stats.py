"""ContainerStats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri.stats import messages

if TYPE_CHECKING:
    from zos_cri._pb import cri_pb2 as pb
    from zos_cri.cri.services import Services


async def container_stats(services: Services, request: pb.ContainerStatsRequest) -> bytes:
    """A container's numbers, a second old at most; of one that doesn't run its disk usage alone.

    Raises:
        NotFound: there is none.
    """
    record = services.creation.container(request.container_id)
    await services.stats.sampler.refresh(record.meta.id)
    attributes = services.stats.targets.container_attributes(record)
    stats = services.stats.sampler.container_stats(record.meta.id, attributes)
    return messages.field(messages.LIST_STATS, stats)
