"""StreamPodSandboxMetrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri.cri.batches import as_fields, batches
from zos_cri.cri.list_pod_sandbox_metrics import found

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from zos_cri._pb import cri_pb2 as pb
    from zos_cri.cri.services import Services


async def stream_pod_sandbox_metrics(
    services: Services, _: pb.StreamPodSandboxMetricsRequest
) -> AsyncGenerator[bytes, None]:
    """The metrics of the ready pods, in answers under 1 MiB."""
    async for answer in batches(as_fields(await found(services))):
        yield answer
