"""UpdateRuntimeConfig."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from zos_cri.cri.services import Services


async def update_runtime_config(
    services: Services, request: pb.UpdateRuntimeConfigRequest
) -> pb.UpdateRuntimeConfigResponse:
    """Takes the node's pod CIDR, from which the CNI template, where there is one, is filled in.

    Raises:
        InvalidArgument: it is no list of networks.
    """
    cidr = request.runtime_config.network_config.pod_cidr
    if cidr:
        await services.network.set_pod_cidr(cidr)
    return pb.UpdateRuntimeConfigResponse()
