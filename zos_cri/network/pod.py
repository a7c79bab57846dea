"""What a network is told of a pod: identity, host ports, limits; checked before any plugin runs.

Names and labels are data. `CNI_ARGS` is a string of `key=value` pairs joined by `;` with no way to
quote, and plugins act on keys such as `IP`: a pod name with `;` or `=` in it would speak to the
plugin with our voice, so it is refused.
"""

from __future__ import annotations

import ipaddress
import math
import re
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zos_cri.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

# Conventions of cni.dev/docs/conventions, except the annotations: that name is containerd's.
CAP_PORT_MAPPINGS: Final = "portMappings"
CAP_BANDWIDTH: Final = "bandwidth"
CAP_DNS: Final = "dns"
CAP_IPS: Final = "ips"
CAP_IP_RANGES: Final = "ipRanges"
CAP_MAC: Final = "mac"
CAP_ALIASES: Final = "aliases"
CAP_CGROUP_PATH: Final = "cgroupPath"
CAP_ANNOTATIONS: Final = "io.kubernetes.cri.pod-annotations"

# The bandwidth plugin counts bursts in 32 bits; Kubernetes has no way to set one, so: the largest.
MAX_BURST: Final = (1 << 32) - 1
# Kubernetes refuses rates outside these as a user's mistake (bits a second).
_RATES: Final = (1_000, 10**15)
_ID: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,127}")
_MAC: Final = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_PROTOCOLS: Final = ("tcp", "udp", "sctp")


class PortMapping(msgspec.Struct, frozen=True):
    """A port of the host that leads to one of the pod. A `host_port` of 0 asks for nothing.

    Attributes:
        protocol: TCP, UDP or SCTP, in any case.
        host_ip: the host's address to listen on; "": all.
    """

    container_port: int
    host_port: int
    protocol: str = "tcp"
    host_ip: str = ""


class Bandwidth(msgspec.Struct, frozen=True):
    """Limits in bits a second, bursts in bits; a rate of 0 is no limit."""

    ingress_rate: int = 0
    egress_rate: int = 0
    ingress_burst: int = MAX_BURST
    egress_burst: int = MAX_BURST


class DnsConfig(msgspec.Struct, frozen=True):
    """A pod's resolver configuration, for plugins that serve names."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class PodNetwork(msgspec.Struct, frozen=True):
    """A pod, as its networks see it.

    Attributes:
        id: the sandbox's id, the plugins' CNI_CONTAINERID.
        netns: path of the pinned network namespace, "" when it is gone.
        ip_ranges: as host-local's `ranges`: for each address the subnets to take it from.
    """

    id: str
    name: str = ""
    namespace: str = ""
    uid: str = ""
    netns: str = ""
    port_mappings: tuple[PortMapping, ...] = ()
    annotations: dict[str, str] = {}
    bandwidth: Bandwidth | None = None
    dns: DnsConfig | None = None
    cgroup_parent: str = ""
    ips: tuple[str, ...] = ()
    ip_ranges: tuple[tuple[dict[str, str], ...], ...] = ()
    mac: str = ""
    aliases: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuses what would mislead a plugin.

        Raises:
            InvalidArgument: the message names the field.
        """
        if not _ID.fullmatch(self.id):
            raise InvalidArgument(f"pod id {self.id[:128]!r} can't be a CNI container id")
        for field in ("name", "namespace", "uid"):
            _check_arg(field, getattr(self, field))
        for index, mapping in enumerate(self.port_mappings):
            _check_mapping(mapping, f"port_mappings[{index}]")
        for index, ip in enumerate(self.ips):
            _check_ip(ip, f"ips[{index}]", prefix=True)
        if self.mac and not _MAC.fullmatch(self.mac):
            raise InvalidArgument(f"mac: {self.mac!r} isn't an Ethernet address")

    def args(self) -> str:
        """CNI_ARGS, with the keys that Kubernetes' plugins know."""
        pairs = {
            "IgnoreUnknown": "1",  # or plugins that don't know the others would refuse them
            "K8S_POD_NAMESPACE": self.namespace,
            "K8S_POD_NAME": self.name,
            "K8S_POD_INFRA_CONTAINER_ID": self.id,
            "K8S_POD_UID": self.uid,
        }
        return ";".join(f"{key}={value}" for key, value in pairs.items())

    def capabilities(self) -> dict[str, Any]:
        """Everything a plugin may have by declaring the capability, by its name."""
        found: dict[str, Any] = {
            CAP_PORT_MAPPINGS: [_mapping(each) for each in self.port_mappings if each.host_port],
            CAP_BANDWIDTH: _bandwidth(self.bandwidth),
            CAP_DNS: None if self.dns is None else msgspec.to_builtins(self.dns),
            CAP_IPS: list(self.ips),
            CAP_IP_RANGES: [list(subnets) for subnets in self.ip_ranges],
            CAP_MAC: self.mac,
            CAP_ALIASES: list(self.aliases),
            CAP_CGROUP_PATH: self.cgroup_parent,
        }
        # The annotations are given even when there are none: what is absent can't be relied on.
        return {key: value for key, value in found.items() if value} | {
            CAP_ANNOTATIONS: self.annotations
        }


def bandwidth_of(annotations: Mapping[str, str]) -> Bandwidth | None:
    """The limits that the annotations `kubernetes.io/{ingress,egress}-bandwidth` set.

    Raises:
        InvalidArgument: not a quantity, or unreasonably small or large.
    """
    ingress = _rate(annotations, "kubernetes.io/ingress-bandwidth")
    egress = _rate(annotations, "kubernetes.io/egress-bandwidth")
    if not ingress and not egress:
        return None
    return Bandwidth(ingress_rate=ingress, egress_rate=egress)


_QUANTITY: Final = re.compile(
    r"(?P<number>[+-]?[0-9]+(\.[0-9]*)?|[+-]?\.[0-9]+)"
    r"((?P<suffix>n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)|[eE](?P<exponent>[+-]?[0-9]{1,3}))?"
)
_SUFFIXES: Final = {
    **{suffix: Decimal(10) ** (3 * power) for power, suffix in enumerate("num", start=-3)},
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate("kMGTPE", start=1)},
    **{f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", start=1)},
}


def quantity(text: str) -> int:
    """The value of a Kubernetes quantity (`10M`, `1.5Gi`, `2e6`), rounded up as Kubernetes does.

    Raises:
        ValueError: it isn't one.
    """
    found = _QUANTITY.fullmatch(text) if len(text) <= 64 else None
    if found is None:
        raise ValueError(f"{text[:64]!r} isn't a quantity")
    value = Decimal(found["number"])
    if found["exponent"]:
        value *= Decimal(10) ** int(found["exponent"])
    return math.ceil(value * _SUFFIXES.get(found["suffix"], Decimal(1)))


def _rate(annotations: Mapping[str, str], key: str) -> int:
    text = annotations.get(key)
    if text is None:
        return 0
    try:
        value = quantity(text)
    except (ValueError, InvalidOperation) as error:
        raise InvalidArgument(f"annotation {key}: {error}") from error
    if not _RATES[0] <= value <= _RATES[1]:
        raise InvalidArgument(f"annotation {key}: {text} is not between 1k and 1P bits a second")
    return value


def _check_arg(field: str, value: str) -> None:
    if any(character in ";=" or not character.isprintable() for character in value):
        raise InvalidArgument(f"metadata.{field}: {value!r} has ';', '=' or a control character")


def _check_mapping(mapping: PortMapping, where: str) -> None:
    if mapping.host_port == 0:
        return
    for field in ("host_port", "container_port"):
        port = getattr(mapping, field)
        if not 0 < port < 65536:
            raise InvalidArgument(f"{where}.{field}: {port} isn't a port")
    if mapping.protocol.lower() not in _PROTOCOLS:
        raise InvalidArgument(f"{where}.protocol: {mapping.protocol!r} isn't TCP, UDP or SCTP")
    if mapping.host_ip:
        _check_ip(mapping.host_ip, f"{where}.host_ip")


def _check_ip(text: str, where: str, *, prefix: bool = False) -> None:
    try:
        ipaddress.ip_interface(text) if prefix else ipaddress.ip_address(text)
    except ValueError as error:
        raise InvalidArgument(f"{where}: {error}") from error


def _mapping(mapping: PortMapping) -> dict[str, Any]:
    found: dict[str, Any] = {
        "hostPort": mapping.host_port,
        "containerPort": mapping.container_port,
        "protocol": mapping.protocol.lower(),
    }
    return found | ({"hostIP": mapping.host_ip} if mapping.host_ip else {})


def _bandwidth(limits: Bandwidth | None) -> dict[str, int]:
    """Only the directions that are limited: a burst without a rate is refused by the plugin."""
    found: dict[str, int] = {}
    if limits is not None and limits.ingress_rate:
        found |= {"ingressRate": limits.ingress_rate, "ingressBurst": limits.ingress_burst}
    if limits is not None and limits.egress_rate:
        found |= {"egressRate": limits.egress_rate, "egressBurst": limits.egress_burst}
    return found
