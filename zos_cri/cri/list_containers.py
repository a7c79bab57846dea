"""ListContainers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri.cri.views import container_state, has_labels, listed

if TYPE_CHECKING:
    from zos_cri._pb import cri_pb2 as pb
    from zos_cri.cri.services import Services
    from zos_cri.module.types import ContainerRecord


async def list_containers(services: Services, request: pb.ListContainersRequest) -> bytes:
    """The containers that pass the filter, from memory."""
    return services.views.containers.join(found(services, request.filter))


def found(services: Services, wanted: pb.ContainerFilter) -> list[ContainerRecord]:
    """The containers that a filter lets through."""
    if not wanted.ByteSize():
        return [record for record in services.containers if listed(record)]
    return [record for record in services.containers if passes(services, record, wanted)]


def passes(services: Services, record: ContainerRecord, wanted: pb.ContainerFilter) -> bool:
    """Whether CRI knows of a container and it has all that a filter asks for."""
    return (
        listed(record)
        and record.meta.id.startswith(wanted.id)
        and record.meta.ns.startswith(wanted.pod_sandbox_id)
        and (not wanted.HasField("state") or wanted.state.state == container_state(record))
        and has_labels(services.views.parts(record)[1].labels, wanted.label_selector)
    )
