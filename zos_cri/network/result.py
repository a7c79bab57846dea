"""What plugins answer to ADD: results of CNI 0.1.0 to 1.1.0, in one form.

Source of the rules: the CNI specification, section 5 ("Result Types") of 1.1.0, and its
predecessors: 0.3 and 0.4 have a `version` in each address, 0.1 and 0.2 one address each of `ip4`
and `ip6`. A pod's addresses are those of the interface that the runtime asked for (`eth0`), of the
first network; further interfaces are reported, but are not the pod's.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zos_cri.network.conf import VERSIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

PREFERENCES: Final = ("ipv4", "ipv6", "cni")


class Address(msgspec.Struct, frozen=True):
    """An address of an interface: `address` as `10.0.0.2/24`, `gateway` "" where there is none."""

    address: str
    gateway: str = ""

    @property
    def ip(self) -> str:
        return self.address.partition("/")[0]


class Interface(msgspec.Struct, frozen=True):
    """An interface that plugins made or changed; `sandbox` is "" for one on the host."""

    name: str
    mac: str = ""
    sandbox: str = ""
    mtu: int = 0
    addresses: tuple[Address, ...] = ()


class Route(msgspec.Struct, frozen=True):
    """A route: `dst` as `10.0.0.0/8`, `gw` "" where the network's gateway serves."""

    dst: str
    gw: str = ""


class Dns(msgspec.Struct, frozen=True):
    """What the network says of name servers."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Result(msgspec.Struct, frozen=True):
    """A pod's networks, attached.

    Attributes:
        ips: the pod's addresses without their prefix length, the primary one first.
        interfaces: of all networks, in their order.
        raw: a JSON array with the result of each network, as its last plugin gave it.
    """

    ips: tuple[str, ...]
    interfaces: tuple[Interface, ...]
    routes: tuple[Route, ...]
    dns: Dns
    raw: bytes

    def info(self) -> dict[str, Any]:
        """The result in the form in which `crictl inspectp` users know it (`cniResult`)."""
        return {
            "Interfaces": {
                interface.name: {
                    "IPConfigs": [
                        {"IP": address.ip, "Gateway": address.gateway}
                        for address in interface.addresses
                    ]
                    or None,
                    "Mac": interface.mac,
                    "Sandbox": interface.sandbox,
                }
                for interface in self.interfaces
            },
            "DNS": [msgspec.to_builtins(self.dns)],
            "Routes": [msgspec.to_builtins(route) for route in self.routes],
        }


class BadResult(ValueError):
    """A result breaks the specification; the message names the field."""


class _Family(msgspec.Struct):
    """`ip4` and `ip6` of 0.1.0 and 0.2.0."""

    ip: str
    gateway: str | None = None
    routes: list[_Route] | None = None


class _Route(msgspec.Struct):
    dst: str
    gw: str | None = None


class _Ip(msgspec.Struct):
    address: str
    gateway: str | None = None
    interface: int | None = None


class _Interface(msgspec.Struct):
    name: str
    mac: str | None = None
    sandbox: str | None = None
    mtu: int | None = None


class _Dns(msgspec.Struct):
    nameservers: list[str] | None = None
    domain: str | None = None
    search: list[str] | None = None
    options: list[str] | None = None


class _Wire(msgspec.Struct):
    """Everything of any version; what a plugin adds of its own is passed over."""

    cniVersion: str = ""  # noqa: N815 - the specification's name
    interfaces: list[_Interface] | None = None
    ips: list[_Ip] | None = None
    routes: list[_Route] | None = None
    dns: _Dns | None = None
    ip4: _Family | None = None
    ip6: _Family | None = None


class NetworkResult(msgspec.Struct, frozen=True):
    """One network's result.

    Attributes:
        ifname: the interface that was asked for.
        interfaces: with their addresses; the one asked for is always among them.
    """

    ifname: str
    interfaces: tuple[Interface, ...]
    routes: tuple[Route, ...]
    dns: Dns
    raw: bytes

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Of the interface that was asked for."""
        return _find(self.interfaces, self.ifname).addresses


def parse(data: bytes, *, ifname: str) -> NetworkResult:
    """One network's result from what its last plugin printed.

    Raises:
        BadResult: it breaks the specification.
    """
    try:
        wire = msgspec.json.decode(data, type=_Wire)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadResult(str(error)) from error
    if wire.cniVersion and wire.cniVersion not in VERSIONS:
        raise BadResult(f"cniVersion: {wire.cniVersion!r} is unknown")
    ips, routes = list(wire.ips or ()), list(wire.routes or ())
    for family in (wire.ip4, wire.ip6):
        if family is not None:
            ips.append(_Ip(address=family.ip, gateway=family.gateway))
            routes += family.routes or ()
    dns = wire.dns or _Dns()
    return NetworkResult(
        ifname=ifname,
        interfaces=_interfaces(wire.interfaces or (), ips, ifname),
        routes=tuple(Route(dst=route.dst, gw=route.gw or "") for route in routes),
        dns=Dns(
            nameservers=tuple(dns.nameservers or ()),
            domain=dns.domain or "",
            search=tuple(dns.search or ()),
            options=tuple(dns.options or ()),
        ),
        raw=data.strip(),
    )


def merge(networks: Sequence[NetworkResult], *, preference: str = "ipv4") -> Result:
    """A pod's result of its networks' (at least one).

    Args:
        preference: which address is primary: the first of that family, or `cni`: the first.
    """
    ips = list(dict.fromkeys(address.ip for address in networks[0].addresses))
    version = {"ipv4": 4, "ipv6": 6}.get(preference)
    primary = [ip for ip in ips if ipaddress.ip_address(ip).version == version][:1] or ips[:1]
    return Result(
        ips=tuple(primary + [ip for ip in ips if ip not in primary]),
        interfaces=tuple(each for network in networks for each in network.interfaces),
        routes=tuple(route for network in networks for route in network.routes),
        dns=_merge_dns([network.dns for network in networks]),
        raw=b"[" + b",".join(network.raw for network in networks) + b"]",
    )


def _merge_dns(parts: Sequence[Dns]) -> Dns:
    return Dns(
        nameservers=tuple(dict.fromkeys(each for part in parts for each in part.nameservers)),
        domain=next((part.domain for part in parts if part.domain), ""),
        search=tuple(dict.fromkeys(each for part in parts for each in part.search)),
        options=tuple(dict.fromkeys(each for part in parts for each in part.options)),
    )


def _interfaces(
    wires: Sequence[_Interface], ips: Sequence[_Ip], ifname: str
) -> tuple[Interface, ...]:
    """The interfaces, each with its addresses; those that name no interface go to `ifname`."""
    bare = [
        Interface(
            name=wire.name,
            mac=wire.mac or "",
            sandbox=wire.sandbox or "",
            mtu=wire.mtu or 0,
        )
        for wire in wires
    ]
    if not any(interface.name == ifname for interface in bare):
        bare.append(Interface(name=ifname))
    default = bare.index(_find(bare, ifname))
    addresses: dict[int, list[Address]] = {}
    for position, ip in enumerate(ips):
        index = default if ip.interface is None else ip.interface
        if ip.interface is not None and not 0 <= index < len(wires):
            raise BadResult(
                f"ips[{position}].interface: {index}, but there are {len(wires)} interfaces"
            )
        addresses.setdefault(index, []).append(_address(ip, f"ips[{position}]"))
    return tuple(
        msgspec.structs.replace(interface, addresses=tuple(addresses.get(index, ())))
        for index, interface in enumerate(bare)
    )


def _find(interfaces: Sequence[Interface], ifname: str) -> Interface:
    """The one of that name: in the sandbox, where one of the host has the same name."""
    named = [interface for interface in interfaces if interface.name == ifname]
    return next((interface for interface in named if interface.sandbox), named[0])


def _address(ip: _Ip, where: str) -> Address:
    try:
        interface = ipaddress.ip_interface(ip.address)
        gateway = str(ipaddress.ip_address(ip.gateway)) if ip.gateway else ""
    except ValueError as error:
        raise BadResult(f"{where}: {error}") from error
    return Address(address=interface.with_prefixlen, gateway=gateway)
