"""StreamContainerStats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri.cri.batches import as_fields, batches
from zos_cri.cri.list_container_stats import found

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from zos_cri._pb import cri_pb2 as pb
    from zos_cri.cri.services import Services


async def stream_container_stats(
    services: Services, request: pb.StreamContainerStatsRequest
) -> AsyncGenerator[bytes, None]:
    """The numbers of the running containers that pass the filter, in answers under 1 MiB."""
    async for answer in batches(as_fields(await found(services, request.filter))):
        yield answer
