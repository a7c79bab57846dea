"""Results of all versions, and which addresses are the pod's."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zos_cri.network.result import Address, BadResult, Dns, Route, merge, parse


def result(*ips: Any, interfaces: Any = None, ifname: str = "eth0", **keys: Any) -> Any:
    document = {"cniVersion": "1.0.0", "interfaces": interfaces or [], "ips": list(ips)} | keys
    return parse(json.dumps(document).encode(), ifname=ifname)


HOST, POD, OTHER = (
    {"name": "cni0", "mac": "aa"},
    {"name": "eth0", "sandbox": "/run/x", "mac": "bb", "mtu": 1400},
    {"name": "net1", "sandbox": "/run/x"},
)


class TestVersions:
    def test_1_1(self) -> None:
        found = result(
            {"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 1},
            interfaces=[HOST, POD],
            routes=[{"dst": "0.0.0.0/0", "mtu": 1}, {"dst": "10.1.0.0/16", "gw": "10.0.0.9"}],
            dns={"nameservers": ["10.0.0.1"], "domain": "x", "search": ["y"], "options": ["z"]},
            cniVersion="1.1.0",
        )
        assert found.addresses == (Address("10.0.0.2/24", "10.0.0.1"),)
        assert [(i.name, i.mac, i.mtu) for i in found.interfaces] == [
            ("cni0", "aa", 0),
            ("eth0", "bb", 1400),
        ]
        assert found.routes == (Route("0.0.0.0/0"), Route("10.1.0.0/16", "10.0.0.9"))
        assert found.dns == Dns(("10.0.0.1",), "x", ("y",), ("z",))

    def test_0_3_and_0_4_with_their_version_field(self) -> None:
        found = result(
            {"version": "4", "address": "10.0.0.2/24", "interface": 0},
            interfaces=[POD],
            cniVersion="0.4.0",
        )
        assert found.addresses == (Address("10.0.0.2/24"),)

    def test_0_1_and_0_2(self) -> None:
        found = parse(
            b'{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24","gateway":"10.0.0.1",'
            b'"routes":[{"dst":"0.0.0.0/0"}]},"ip6":{"ip":"fd00::2/64"},"dns":{}}',
            ifname="eth0",
        )
        assert merge([found]).ips == ("10.0.0.2", "fd00::2")
        assert found.routes == (Route("0.0.0.0/0"),)

    def test_nulls_stand_for_nothing(self) -> None:
        found = parse(
            b'{"interfaces":null,"ips":null,"routes":null,"dns":{"search":null}}', ifname="eth0"
        )
        assert (found.addresses, found.routes, found.dns) == ((), (), Dns())


class TestWhose:
    def test_only_the_asked_interface_counts(self) -> None:
        found = result(
            {"address": "10.0.0.1/24", "interface": 0},
            {"address": "10.5.0.2/24", "interface": 2},
            {"address": "10.0.0.2/24", "interface": 1},
            interfaces=[HOST, POD, OTHER],
        )
        assert merge([found]).ips == ("10.0.0.2",)
        assert [i.addresses[0].ip for i in found.interfaces] == [
            "10.0.0.1",
            "10.0.0.2",
            "10.5.0.2",
        ]

    def test_without_an_interface_they_are_the_pods(self) -> None:
        assert merge([result({"address": "10.0.0.2/24"})]).ips == ("10.0.0.2",)
        found = result({"address": "10.0.0.2/24"}, interfaces=[HOST])
        assert merge([found]).ips == ("10.0.0.2",)

    def test_a_host_interface_of_the_same_name(self) -> None:
        found = result(
            {"address": "10.0.0.1/24", "interface": 0},
            {"address": "10.0.0.2/24", "interface": 1},
            interfaces=[{"name": "eth0"}, POD],
        )
        assert merge([found]).ips == ("10.0.0.2",)

    def test_of_several_networks_the_firsts(self) -> None:
        first = result({"address": "10.0.0.2/24", "interface": 0}, interfaces=[POD])
        second = result({"address": "10.7.0.2/24"}, ifname="eth1", dns={"nameservers": ["1.1.1.1"]})
        found = merge([first, second])
        assert found.ips == ("10.0.0.2",)
        assert [i.name for i in found.interfaces] == ["eth0", "eth1"]
        assert found.dns.nameservers == ("1.1.1.1",)
        assert [len(each["ips"]) for each in json.loads(found.raw)] == [1, 1]

    @pytest.mark.parametrize(
        ("preference", "ips"),
        [
            ("ipv4", ("10.0.0.2", "fd00::2", "10.0.0.3")),
            ("ipv6", ("fd00::2", "10.0.0.2", "10.0.0.3")),
            ("cni", ("fd00::2", "10.0.0.2", "10.0.0.3")),
        ],
    )
    def test_the_primary_one(self, preference: Any, ips: Any) -> None:
        both = result(
            {"address": "fd00::2/64"},
            {"address": "10.0.0.2/24"},
            {"address": "10.0.0.3/24"},
            {"address": "10.0.0.2/16"},
        )
        assert merge([both], preference=preference).ips == ips

    def test_one_family_only(self) -> None:
        found = merge([result({"address": "fd00::2/64"})], preference="ipv4")
        assert found.ips == ("fd00::2",)
        assert merge([result()]).ips == ()


class TestRefused:
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "truncated"),
            (b"null", "Expected `object`"),
            (b"[]", "Expected `object`"),
            (b'{"ips":3}', r"\$.ips"),
            (b'{"ips":[{}]}', "address"),
            (b'{"cniVersion":"7.0.0"}', "cniVersion: '7.0.0' is unknown"),
            (b'{"ips":[{"address":"10.0.0.300/24"}]}', r"ips\[0\]"),
            (b'{"ips":[{"address":"10.0.0.3/24","gateway":"x"}]}', r"ips\[0\]: 'x'"),
            (b'{"ips":[{"address":"10.0.0.3/24","interface":0}]}', r"ips\[0\].interface: 0"),
            (b'{"ips":[{"address":"10.0.0.3/24","interface":-1}]}', r"interface: -1"),
        ],
    )
    def test_with_the_field(self, data: Any, message: Any) -> None:
        with pytest.raises(BadResult, match=message):
            parse(data, ifname="eth0")

    @given(st.binary(max_size=100))
    def test_nothing_else_is_raised(self, data: bytes) -> None:
        with contextlib.suppress(BadResult):
            parse(b"{" + data, ifname="eth0")


def test_info_has_the_form_that_people_know() -> None:
    found = merge([result({"address": "10.0.0.2/24", "gateway": "10.0.0.1"}, interfaces=[HOST])])
    info = json.loads(json.dumps(found.info()))
    assert info["Interfaces"]["eth0"]["IPConfigs"] == [{"IP": "10.0.0.2", "Gateway": "10.0.0.1"}]
    assert info["Interfaces"]["cni0"] == {"IPConfigs": None, "Mac": "aa", "Sandbox": ""}
