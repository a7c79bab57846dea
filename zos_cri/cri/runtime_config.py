"""RuntimeConfig."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from zos_cri.cri.services import Services


async def runtime_config(
    services: Services, _: pb.RuntimeConfigRequest
) -> pb.RuntimeConfigResponse:
    """The cgroup driver that the kubelet must use too; it doesn't change while we run."""
    handler = services.config.handlers[services.config.default_handler]
    driver = pb.CgroupDriver.SYSTEMD if handler.systemd_cgroup else pb.CgroupDriver.CGROUPFS
    return pb.RuntimeConfigResponse(linux=pb.LinuxRuntimeConfiguration(cgroup_driver=driver))
