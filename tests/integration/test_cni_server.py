"""What a server makes of its networks: several for a pod, their STATUS, their GC."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes.cni import FakeCni
from tests.integration.server import UPSTREAM, Server, serving
from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go]

SECOND = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "eth1", "sandbox": "/run/x", "mac": "02:00:00:00:00:02"}],
    "ips": [{"address": "10.10.0.2/24", "interface": 0}, {"address": "fd00::2/64", "interface": 0}],
}
DUAL = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "eth0", "sandbox": "/run/x", "mac": "02:00:00:00:00:01"}],
    "ips": [
        {"address": "fd00:9::2/64", "interface": 0},
        {"address": "10.9.0.2/24", "interface": 0},
    ],
}


@pytest.fixture
def cni(tmp_path: Path) -> FakeCni:
    """Two networks of CNI 1.1, whose plugins write down what they are asked."""
    fake = FakeCni(tmp_path)
    fake.plugin("one", ADD={"result": DUAL})
    fake.plugin("two", ADD={"result": SECOND})
    wanted = {"dns": True, "aliases": True, "io.kubernetes.cri.pod-annotations": True}
    one = {"type": "one", "capabilities": wanted}
    fake.network("one", one, cniVersion="1.1.0", file="10-one.conflist")
    fake.network("two", "two", cniVersion="1.1.0", file="20-two.conflist")
    return fake


@pytest.fixture
def node(cni: FakeCni) -> Iterator[Server]:
    settings = f'bin_dirs = ["{cni.bin}"]\nmax_conf_num = 0\nip_preference = "ipv6"'
    with serving(UPSTREAM, cni_settings=settings) as started:
        for path in cni.conf.iterdir():
            path.rename(started.conf_dir / path.name)
        cni.conf = started.conf_dir
        yield started
        started.remove_pods()
        assert started.leftovers() == []


def condition(cri: Any) -> Any:
    conditions = cri.Status(pb.StatusRequest()).status.conditions
    return next(each for each in conditions if each.type == "NetworkReady")


def test_a_pod_of_two_networks(node: Server, cni: FakeCni) -> None:
    with node.cri() as cri:
        pod = node.run_pod(
            cri,
            "web",
            host_network=False,
            hostname="front",
            annotations={"a": "b"},
            dns_config=pb.DNSConfig(servers=["10.0.0.1"], searches=["c.d"]),
        )
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
        answer = cri.PodSandboxStatus(request)
        # The first network's alone: the kubelet takes all of them for the pod's own.
        network = answer.status.network
        assert (network.ip, [each.ip for each in network.additional_ips]) == (
            *("fd00:9::2", ["10.9.0.2"]),
        )
        interfaces = json.loads(answer.info["info"])["cniResult"]["Interfaces"]
        assert [each["IP"] for each in interfaces["eth1"]["IPConfigs"]] == ["10.10.0.2", "fd00::2"]
        assert [each["IP"] for each in interfaces["eth0"]["IPConfigs"]] == ["fd00:9::2", "10.9.0.2"]
        one, two = cni.calls("ADD")
        assert (one.plugin, one.env["CNI_IFNAME"]) == ("one", "eth0")
        assert (two.plugin, two.env["CNI_IFNAME"]) == ("two", "eth1")
        assert one.request["runtimeConfig"] == {
            "dns": {"servers": ["10.0.0.1"], "searches": ["c.d"], "options": []},
            "aliases": ["web", "front"],
            "io.kubernetes.cri.pod-annotations": {"a": "b"},
        }
        assert "runtimeConfig" not in two.request
    node.remove_pods()
    assert cni.said("DEL") == ["DEL two", "DEL one"]


def test_plugins_are_asked_whether_they_are_ready_and_what_they_hold(
    node: Server, cni: FakeCni
) -> None:
    with node.cri() as cri:
        pod = node.run_pod(cri, host_network=False)
        assert condition(cri).status
    complaint = {"exit": 1, "result": {"cniVersion": "1.1.0", "code": 50, "msg": "no route yet"}}
    cni.plugin("two", ADD={"result": SECOND}, STATUS=complaint)
    before = len(cni.calls("GC"))
    node.restart()
    with node.cri() as cri:
        deadline = time.monotonic() + 20
        while condition(cri).status or len(cni.calls("GC")) < before + 2:
            assert time.monotonic() < deadline, (condition(cri), cni.said())
            time.sleep(0.05)
        told = condition(cri)
        assert told.reason == "NetworkPluginNotReady"
        assert "no route yet" in told.message
        assert "two" in told.message
        one, two = cni.calls("GC")[-2:]
        for call, name in ((one, "eth0"), (two, "eth1")):
            valid = call.request["cni.dev/valid-attachments"]
            assert valid == [{"containerID": pod, "ifname": name}]
        # Its own pods go on, whatever the network says.
        cri.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
