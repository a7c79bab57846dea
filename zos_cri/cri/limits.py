"""Changes of containers' limits: UpdateContainerResources', and those that NRI plugins want."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from zos_cri._pb import cri_pb2 as pb
from zos_cri._pb import nri_pb2
from zos_cri.errors import FailedPrecondition
from zos_cri.linux import blocking
from zos_cri.linux.oomscore import set_oom_score_adj
from zos_cri.nri import limits
from zos_cri.nri.adjust import Facts
from zos_cri.oci import resources

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zos_cri.cri.views import Views
    from zos_cri.linux.cgroup import Cgroups
    from zos_cri.module.containers import Containers
    from zos_cri.module.types import ContainerRecord
    from zos_cri.oci.container import HandlerSettings
    from zos_cri.oci.host import HostFacts

RESCORE_TIMEOUT: Final = 10.0  # seconds; one that is written to takes microseconds
NOTHING: Final = pb.LinuxContainerResources()


class Limits:
    """Changes the limits of CRI's containers."""

    def __init__(
        self,
        *,
        containers: Containers,
        views: Views,
        cgroups: Cgroups,
        handlers: Mapping[str, HandlerSettings],
        host: HostFacts,
    ) -> None:
        self._containers = containers
        self._views = views
        self._cgroups = cgroups
        self._handlers = handlers
        self._host = host

    async def update(
        self,
        record: ContainerRecord,
        linux: pb.LinuxContainerResources,
        more: nri_pb2.LinuxResources | None = None,
    ) -> None:
        """Changes the limits of a created or running container; what isn't given stays.

        Args:
            more: what plugins want on top of it.

        Raises:
            NotFound: no such container.
            FailedPrecondition: it has ended, or `more` has what can't be changed afterwards.
            InvalidArgument: a value is out of range.
            Error: the runtime refused; nothing is changed then.
        """
        meta = record.meta
        if more is not None:
            _check(more)

        async def rescore(spec: dict[str, Any]) -> None:
            """No runtime's update does it: the processes that run are given it one by one."""
            pids = partial(self._cgroups.pids, meta.cgroup)
            value = spec["process"]["oomScoreAdj"]
            await blocking.call(set_oom_score_adj, pids, value, timeout=RESCORE_TIMEOUT)

        def change(spec: dict[str, Any]) -> dict[str, Any]:
            merged = resources.merge_update(spec, linux, self._host)
            if more is not None:
                handler = self._handlers[meta.handler]
                facts = Facts(handler=handler, host=self._host)
                limits.apply(merged["linux"]["resources"], more, facts)
            return merged

        def reported() -> bytes:
            present = self._views.resources(self._containers.find(meta.id))
            merged = resources.merge_reported(present, linux)
            if more is not None:
                merged = resources.merge_reported(merged, limits.to_cri(more))
            return merged.SerializeToString()

        also = rescore if linux.oom_score_adj else None
        await self._containers.update(meta.id, change, reported, also)


def _check(given: nri_pb2.LinuxResources) -> None:
    if given.HasField("rdt_class"):
        raise FailedPrecondition("linux.resources.rdt_class: is chosen when a container is made")
    if given.devices:
        raise FailedPrecondition("linux.resources.devices: are chosen when a container is made")
