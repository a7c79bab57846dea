"""Records as NRI's messages: what plugins see of pods and containers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zos_cri._pb import nri_pb2 as pb
from zos_cri.cri.sandbox_parts import pins
from zos_cri.nri import limits, messages
from zos_cri.store.lifecycle import ContainerState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zos_cri._pb import cri_pb2
    from zos_cri.cri.views import Views
    from zos_cri.module.containers import Containers
    from zos_cri.module.types import ContainerRecord
    from zos_cri.oci.host import Spec
    from zos_cri.store.db import Record
    from zos_cri.store.model import SandboxMeta, SandboxStatus

STATES: Final[Mapping[ContainerState, pb.ContainerState.ValueType]] = {
    ContainerState.CREATED: pb.CONTAINER_CREATED,
    ContainerState.STARTING: pb.CONTAINER_CREATED,
    ContainerState.RUNNING: pb.CONTAINER_RUNNING,
    ContainerState.UNKNOWN: pb.CONTAINER_UNKNOWN,
    ContainerState.EXITED: pb.CONTAINER_STOPPED,
    ContainerState.REMOVING: pb.CONTAINER_STOPPED,
}
_KINDS: Final = {"net": "network"}  # of namespaces, where OCI has another name


class NriViews:
    """Makes NRI's messages of pods and containers."""

    def __init__(self, views: Views, containers: Containers) -> None:
        self._views = views
        self._containers = containers

    def pod(
        self, record: Record[SandboxMeta, SandboxStatus], ips: Sequence[str] | None = None
    ) -> pb.PodSandbox:
        """A pod.

        Args:
            ips: its addresses, where the record hasn't got them yet.
        """
        meta, status = record
        config = self._views.pod_config(record)
        init = self._containers.get(meta.id)
        pid = init.status.pid if init is not None else 0
        kinds = pins(meta)
        if status.network_released:
            kinds.clear()
        named = [
            pb.LinuxNamespace(type=_KINDS.get(kind, kind), path=path)
            for kind, path in kinds.items()
        ]
        if pid:
            named.append(pb.LinuxNamespace(type="pid", path=f"/proc/{pid}/ns/pid"))
        return pb.PodSandbox(
            id=meta.id,
            name=config.metadata.name,
            uid=config.metadata.uid,
            namespace=config.metadata.namespace,
            labels=config.labels,
            annotations=config.annotations,
            runtime_handler=meta.handler,
            linux=pb.LinuxPodSandbox(
                pod_overhead=limits.from_cri(config.linux.overhead),
                pod_resources=limits.from_cri(config.linux.resources),
                cgroup_parent=config.linux.cgroup_parent,
                cgroups_path=meta.cgroup,
                namespaces=named,
            ),
            pid=pid or status.pid,  # or of the sandbox that the pod's shim has made
            ips=status.ips if ips is None else ips,
        )

    def new(
        self, id_: str, pod: str, config: cri_pb2.ContainerConfig, image_id: str, spec: Spec
    ) -> pb.Container:
        """A container that is being made."""
        result = pb.Container(id=id_, pod_sandbox_id=pod, state=pb.CONTAINER_UNKNOWN)
        _describe(result, config, image_id, config.image.image, spec)
        return result

    def container(self, record: ContainerRecord, spec: Spec, *, pid: int = 0) -> pb.Container:
        """A container that is there.

        Args:
            pid: of its first process, where the record hasn't got it yet.
        """
        extra, config = self._views.parts(record)
        meta, status = record
        result = pb.Container(
            id=meta.id,
            pod_sandbox_id=meta.ns,
            state=STATES.get(status.state, pb.CONTAINER_UNKNOWN),
            pid=status.pid or pid,
            created_at=meta.created_at,
            started_at=status.started_at,
            finished_at=status.finished_at,
            exit_code=status.exit_code,
            status_reason=status.reason,
            status_message=status.message,
        )
        _describe(result, config, extra.image_id, extra.image_ref, spec)
        return result


def _describe(
    result: pb.Container, config: cri_pb2.ContainerConfig, image_id: str, image: str, spec: Spec
) -> None:
    result.name = config.metadata.name
    result.labels.update(config.labels)
    result.annotations.update(spec.get("annotations", {}))
    result.annotations.update(config.annotations)
    result.image.name = config.image.user_specified_image or image
    result.image.config_digest = image_id
    for device in config.CDI_devices:
        result.CDI_devices.add(name=device.name)
    context = config.linux.security_context
    if context.HasField("seccomp"):
        result.linux.seccomp_profile.profile_type = pb.SecurityProfile.ProfileType.ValueType(
            context.seccomp.profile_type
        )
        result.linux.seccomp_profile.localhost_ref = context.seccomp.localhost_ref
    messages.fill(result, spec)
