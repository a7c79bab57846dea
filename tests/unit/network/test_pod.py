"""What plugins are told of a pod, and what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zos_cri.errors import InvalidArgument
from zos_cri.network.pod import (
    MAX_BURST,
    Bandwidth,
    DnsConfig,
    PodNetwork,
    PortMapping,
    bandwidth_of,
    quantity,
)

POD = PodNetwork(id="a1", name="nginx", namespace="default", uid="u-1")


def changed(**fields: Any) -> PodNetwork:
    return msgspec.structs.replace(POD, **fields)


def test_args() -> None:
    assert POD.args() == (
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=nginx;"
        "K8S_POD_INFRA_CONTAINER_ID=a1;K8S_POD_UID=u-1"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": ""}, "pod id ''"),
        ({"id": "-a"}, "pod id '-a'"),
        ({"id": "../a"}, "pod id"),
        ({"id": "a" * 129}, "pod id"),
        ({"name": "a;IP=10.0.0.66"}, "metadata.name"),
        ({"namespace": "a=b"}, "metadata.namespace"),
        ({"uid": "a\nb"}, "metadata.uid"),
        ({"uid": "a\0"}, "metadata.uid"),
        ({"port_mappings": (PortMapping(80, 65536),)}, r"port_mappings\[0\].host_port: 65536"),
        ({"port_mappings": (PortMapping(80, -1),)}, r"port_mappings\[0\].host_port: -1"),
        ({"port_mappings": (PortMapping(0, 80),)}, r"port_mappings\[0\].container_port: 0"),
        ({"port_mappings": (PortMapping(80, 80, "icmp"),)}, r"\[0\].protocol: 'icmp'"),
        ({"port_mappings": (PortMapping(80, 80, "TCP", "x"),)}, r"\[0\].host_ip: 'x'"),
        ({"port_mappings": (PortMapping(1, 1), PortMapping(1, 99999))}, r"port_mappings\[1\]"),
        ({"ips": ("10.0.0.1/99",)}, r"ips\[0\]"),
        ({"mac": "zz:00:00:00:00:00"}, "mac"),
    ],
)
def test_refused(fields: Any, message: Any) -> None:
    with pytest.raises(InvalidArgument, match=message):
        changed(**fields).check()


@given(st.text(max_size=20))
def test_no_name_speaks_to_a_plugin(name: Any) -> None:
    pod = changed(name=name)
    try:
        pod.check()
    except InvalidArgument:
        return
    pairs = [pair.split("=") for pair in pod.args().split(";")]
    assert ["K8S_POD_NAME", name] in pairs
    assert [len(pair) for pair in pairs] == [2] * 5


def test_what_is_fine() -> None:
    changed(
        name="",
        ips=("10.0.0.1", "fd00::1/64"),
        mac="02:00:00:00:00:01",
        port_mappings=(PortMapping(0, 0, "what?"), PortMapping(53, 53, "UDP", "::1")),
    ).check()


class TestCapabilities:
    def test_nothing_but_the_annotations(self) -> None:
        assert POD.capabilities() == {"io.kubernetes.cri.pod-annotations": {}}

    def test_everything(self) -> None:
        pod = changed(
            port_mappings=(
                PortMapping(80, 8080, "TCP"),
                PortMapping(53, 0, "UDP"),
                PortMapping(9, 9, "SCTP", "10.0.0.1"),
            ),
            annotations={"a": "b;c=d"},
            bandwidth=Bandwidth(ingress_rate=1000),
            dns=DnsConfig(servers=("10.0.0.1",), searches=("x",)),
            cgroup_parent="/kubepods/x",
            ips=("10.0.0.4",),
            ip_ranges=(({"subnet": "10.0.0.0/24"},),),
            mac="02:00:00:00:00:01",
            aliases=("web",),
        )
        assert pod.capabilities() == {
            "portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": 9, "containerPort": 9, "protocol": "sctp", "hostIP": "10.0.0.1"},
            ],
            "io.kubernetes.cri.pod-annotations": {"a": "b;c=d"},
            "bandwidth": {"ingressRate": 1000, "ingressBurst": MAX_BURST},
            "dns": {"servers": ("10.0.0.1",), "searches": ("x",), "options": ()},
            "cgroupPath": "/kubepods/x",
            "ips": ["10.0.0.4"],
            "ipRanges": [[{"subnet": "10.0.0.0/24"}]],
            "mac": "02:00:00:00:00:01",
            "aliases": ["web"],
        }

    def test_no_port_but_zero(self) -> None:
        pod = changed(port_mappings=(PortMapping(80, 0),))
        assert "portMappings" not in pod.capabilities()


class TestBandwidth:
    IN, OUT = "kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"

    def test_of_annotations(self) -> None:
        assert bandwidth_of({}) is None
        assert bandwidth_of({self.IN: "10M"}) == Bandwidth(ingress_rate=10_000_000)
        assert bandwidth_of({self.IN: "1k", self.OUT: "1P"}) == Bandwidth(
            ingress_rate=1000, egress_rate=10**15
        )

    @pytest.mark.parametrize("text", ["999", "2P", "x", "", "-10M", "0", "1e999", "1" * 65])
    def test_refused(self, text: Any) -> None:
        with pytest.raises(InvalidArgument, match=r"annotation kubernetes.io/egress-bandwidth"):
            bandwidth_of({self.OUT: text})

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("0", 0),
            ("12", 12),
            ("1.5k", 1500),
            ("1Ki", 1024),
            (".5Mi", 524288),
            ("1E", 10**18),
            ("1E3", 1000),
            ("2e6", 2_000_000),
            ("1001m", 2),
            ("1n", 1),
            ("3u", 1),
            ("1Ei", 1 << 60),
            ("+5", 5),
        ],
    )
    def test_quantities(self, text: Any, value: Any) -> None:
        assert quantity(text) == value
