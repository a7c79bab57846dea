"""GetContainerEvents."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from zos_cri._pb import cri_pb2 as pb
    from zos_cri.cri.services import Services


async def get_container_events(
    services: Services, _: pb.GetEventsRequest
) -> AsyncGenerator[bytes | None, None]:
    """Pods' and containers' changes from now on, each with the pod's status and its containers'.

    One that reads too slowly loses the oldest events; it gets those that are left, and
    RESOURCE_EXHAUSTED with how many are missing. The stream's headers are sent as soon as nothing
    is missed any more.

    Raises:
        ResourceExhausted: events were lost, or there are too many subscribers.
    """
    with services.events.subscribe() as subscription:
        yield None
        async for event in subscription.events():
            yield event
