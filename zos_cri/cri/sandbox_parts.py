"""What a pod sandbox's configuration comes to (its name, its namespaces, its network), and whom its
making is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from zos_cri._pb import cri_pb2 as pb
from zos_cri.cri import userns
from zos_cri.cri.pods import hostname
from zos_cri.errors import InvalidArgument
from zos_cri.linux import namespaces
from zos_cri.network.pod import DnsConfig, PodNetwork, PortMapping, bandwidth_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zos_cri.store.model import SandboxMeta

NAMESPACE_TIMEOUT: Final = 10.0  # under a millisecond; seconds where network namespaces pile up


class PodInit(Protocol):
    """Makes the init container of a pod that shares its pid namespace."""

    async def start(self, meta: SandboxMeta, config: pb.PodSandboxConfig) -> None: ...


class PodPlugins(Protocol):
    """Who is told of pods: see `cri.nri.Nri`."""

    async def run_pod(self, meta: SandboxMeta, ips: Sequence[str]) -> None: ...
    async def stop_pod(self, meta: SandboxMeta) -> None: ...
    async def remove_pod(self, meta: SandboxMeta) -> None: ...


def pins(meta: SandboxMeta) -> dict[str, str]:
    """The namespaces that a sandbox has of its own: kind → where it is pinned."""
    kinds = {"user": meta.userns, "net": meta.netns, "ipc": meta.ipcns, "uts": meta.utsns}
    return {kind: path for kind, path in kinds.items() if path}


async def pin(
    meta: SandboxMeta, config: pb.PodSandboxConfig, parameters: Mapping[str, str]
) -> None:
    """Makes a sandbox's namespaces; where it has a user namespace, that one owns the others."""
    paths = pins(meta)
    name = hostname(config) if meta.utsns else None
    mappings = userns.of_pod(config)
    if mappings is not None:
        await namespaces.pin_user(
            paths,
            uid_mappings=mappings.uids,
            gid_mappings=mappings.gids,
            hostname=name,
            sysctls=parameters,
            timeout=NAMESPACE_TIMEOUT,
        )
    elif paths:
        await namespaces.pin(paths, hostname=name, sysctls=parameters, timeout=NAMESPACE_TIMEOUT)


def sandbox_name(metadata: pb.PodSandboxMetadata) -> str:
    """What makes a pod sandbox the same as another one.

    Raises:
        InvalidArgument: a part of it is missing.
    """
    for field in ("name", "namespace", "uid"):
        if not getattr(metadata, field):
            raise InvalidArgument(f"config.metadata.{field}: is empty")
    return f"{metadata.name}_{metadata.namespace}_{metadata.uid}_{metadata.attempt}"


def pod_network(
    meta: SandboxMeta, config: pb.PodSandboxConfig, *, netns: str | None = None
) -> PodNetwork:
    """A pod as CNI is told of it; `netns` is "" where the namespace is gone already.

    Raises:
        InvalidArgument: an annotation of Kubernetes' is wrong.
    """
    return PodNetwork(
        id=meta.id,
        name=config.metadata.name,
        namespace=config.metadata.namespace,
        uid=config.metadata.uid,
        netns=meta.netns if netns is None else netns,
        port_mappings=tuple(
            PortMapping(
                container_port=mapping.container_port,
                host_port=mapping.host_port,
                protocol=_protocol(f"port_mappings[{index}].protocol", mapping.protocol),
                host_ip=mapping.host_ip,
            )
            for index, mapping in enumerate(config.port_mappings)
        ),
        annotations=dict(config.annotations),
        bandwidth=bandwidth_of(config.annotations),
        dns=_dns(config.dns_config),
        cgroup_parent=meta.cgroup,
        aliases=tuple(dict.fromkeys(filter(None, (config.metadata.name, config.hostname)))),
    )


def _dns(given: pb.DNSConfig) -> DnsConfig | None:
    if not (given.servers or given.searches or given.options):
        return None
    return DnsConfig(tuple(given.servers), tuple(given.searches), tuple(given.options))


def _protocol(field: str, number: int) -> str:
    for name, known in pb.Protocol.items():
        if number == known:
            return name.lower()
    raise InvalidArgument(f"{field}: {number} is no protocol")
