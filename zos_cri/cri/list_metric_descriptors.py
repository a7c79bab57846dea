"""ListMetricDescriptors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri._pb import cri_pb2 as pb
from zos_cri.stats import descriptors

if TYPE_CHECKING:
    from zos_cri.cri.services import Services


async def list_metric_descriptors(
    _: Services, __: pb.ListMetricDescriptorsRequest
) -> pb.ListMetricDescriptorsResponse:
    """The metrics that ListPodSandboxMetrics has; they never change."""
    return pb.ListMetricDescriptorsResponse(descriptors=descriptors.messages())
