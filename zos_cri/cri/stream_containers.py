"""StreamContainers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri.cri.batches import batches
from zos_cri.cri.list_containers import found

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from zos_cri._pb import cri_pb2 as pb
    from zos_cri.cri.services import Services


async def stream_containers(
    services: Services, request: pb.StreamContainersRequest
) -> AsyncGenerator[bytes, None]:
    """The containers that pass the filter, in answers under 1 MiB."""
    records = found(services, request.filter)
    async for answer in batches(map(services.views.containers.get, records)):
        yield answer
