"""ListPodSandboxMetrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri.cri.stats_targets import running_by_pod
from zos_cri.stats import messages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zos_cri._pb import cri_pb2 as pb
    from zos_cri.cri.services import Services


async def list_pod_sandbox_metrics(services: Services, _: pb.ListPodSandboxMetricsRequest) -> bytes:
    """The metrics of the ready pods and their running containers, as last sampled."""
    pods = await found(services)
    return b"".join(messages.field(messages.LIST_POD_METRICS, pod) for pod in pods)


async def found(services: Services) -> Iterator[bytes]:
    """The PodSandboxMetrics of the ready pods, encoded; made as they are taken."""
    sampler = services.stats.sampler
    await sampler.detailed()
    containers = running_by_pod(services.containers)
    await sampler.ready(c.meta.id for several in containers.values() for c in several)
    pods = (
        sampler.pod_metrics(pod.meta.id, [c.meta.id for c in containers.get(pod.meta.id, ())])
        for pod in list(services.sandboxes.table)
    )
    return (pod for pod in pods if pod)
