"""What concerns the node: readiness, collection of strays, the pod CIDR. `cni.py` too."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.network.over_fakes import FAIL, POD, changed
from zos_cri.errors import (
    FailedPrecondition,
    InvalidArgument,
    Unavailable,
)
from zos_cri.network import cni
from zos_cri.network.cni import GENERATED, Network
from zos_cri.network.plugin import PluginFailed

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.network.over_fakes import Net


class TestStatus:
    def test_configured(self, net: Net) -> None:
        assert net.cni.status() == cni.NetworkStatus(True)

    def test_not_configured(self, net: Net) -> None:
        (net.conf / "10-net.conflist").unlink()
        status = net.cni.status()
        assert (status.ready, status.reason) == (False, "NetworkPluginNotReady")
        expected = f"cni plugin not initialized: no network configuration in {net.conf}"
        assert status.message == expected
        net.network("net", "a")
        assert net.cni.status().ready

    def test_a_plugin_is_missing(self, net: Net) -> None:
        net.network("net", "a", "c")
        assert "network net: CNI plugin c: no such program" in net.cni.status().message
        net.plugin("c")
        assert net.cni.status().ready

    async def test_what_plugins_say(self, net: Net) -> None:
        net.network("net", "a", "b", cniVersion="1.1.0")
        full = {"exit": 1, "result": {"code": 50, "msg": "no addresses left"}}
        net.plugin("b", STATUS=[full, {}])
        assert net.cni.status().ready
        status = await net.cni.status_plugins()
        assert "CNI plugin b: STATUS failed" in status.message
        assert "code 50: no addresses left" in net.cni.status().message
        assert (await net.cni.status_plugins()).ready
        assert net.cni.status().ready
        assert net.calls("STATUS")[0].request == {
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "a",
        }

    async def test_a_complaint_of_another_configuration_is_forgotten(self, net: Net) -> None:
        net.network("net", "a", cniVersion="1.1.0")
        net.plugin("a", STATUS=FAIL)
        assert not (await net.cni.status_plugins()).ready
        net.network("net", "a", cniVersion="1.1.0", other=1, disableGC=True)
        assert net.cni.status().ready

    async def test_only_those_of_1_1_are_asked(self, net: Net) -> None:
        net.plugin("a", STATUS=FAIL)
        assert (await net.cni.status_plugins()).ready
        assert net.calls() == []
        (net.conf / "10-net.conflist").unlink()
        assert not (await net.cni.status_plugins()).ready

    async def test_a_hanging_plugin_does_not_hold_it_up(self, net: Net) -> None:
        net.network("net", "a", cniVersion="1.1.0")
        net.plugin("a", STATUS={"hang": True}, ADD={"hang": True})
        tasks = [
            asyncio.create_task(net.cni.watch_plugins()),
            asyncio.create_task(net.cni.add(POD)),
        ]
        async with asyncio.timeout(20):
            while len(net.calls()) < 2:
                await asyncio.sleep(0.005)
        begun = time.perf_counter()
        assert net.cni.status().ready
        assert time.perf_counter() - begun < 0.1
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def test_watching(self, net: Net) -> None:
        net.network("net", "a", cniVersion="1.1.0")
        net.plugin("a", STATUS=[FAIL, {}])
        watching = asyncio.create_task(net.cni.watch_plugins(interval=0.01))
        async with asyncio.timeout(20):
            while net.cni.status().ready:
                await asyncio.sleep(0.001)
            while not net.cni.status().ready:
                await asyncio.sleep(0.001)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


class TestCollection:
    async def fill(self, net: Net, **keys: Any) -> None:
        net.network("net", "a", "b", **{"cniVersion": "1.1.0", **keys})
        for name in ("p1", "p2", "p3"):
            await net.cni.add(changed(id=name))

    async def test_strays_go_and_plugins_are_told_the_others(self, net: Net) -> None:
        await self.fill(net)
        await net.cni.gc(lambda: ["p1", "p3", "unrecorded"])
        assert [call.env["CNI_CONTAINERID"] for call in net.calls("DEL")] == ["p2", "p2"]
        assert net.recorded == ["p1", "p3"]
        assert net.said("GC") == ["GC a", "GC b"]
        for call in net.calls("GC"):
            assert call.request["cni.dev/valid-attachments"] == [
                {"containerID": each, "ifname": "eth0"} for each in ("p1", "p3", "unrecorded")
            ]
            assert "CNI_CONTAINERID" not in call.env

    async def test_what_could_not_be_deleted_is_not_collected(self, net: Net) -> None:
        net.plugin("b", DEL=FAIL)
        await self.fill(net)
        with pytest.raises(PluginFailed, match="DEL failed"):
            await net.cni.gc(lambda: ["p1"])
        ids = [e["containerID"] for e in net.calls("GC")[0].request["cni.dev/attachments"]]
        assert ids == ["p1", "p2", "p3"]

    async def test_one_plugins_failure_does_not_stop_the_others(self, net: Net) -> None:
        net.plugin("a", GC=FAIL)
        await self.fill(net)
        with pytest.raises(PluginFailed, match="CNI plugin a: GC failed"):
            await net.cni.gc(lambda: ["p1", "p2", "p3"])
        assert net.said("GC") == ["GC a", "GC b"]

    @pytest.mark.parametrize("keys", [{"disableGC": True}, {"cniVersion": "1.0.0"}])
    async def test_not_where_it_must_not(self, net: Net, keys: dict[str, Any]) -> None:
        await self.fill(net, **keys)
        await net.cni.gc(list)
        assert net.calls("GC") == []
        assert net.recorded == []

    async def test_without_a_configuration_records_serve(self, net: Net) -> None:
        await self.fill(net)
        (net.conf / "10-net.conflist").unlink()
        await net.cni.gc(lambda: ["p1"])
        assert net.recorded == ["p1"]

    async def test_a_pod_made_meanwhile_is_no_stray(self, net: Net) -> None:
        """The ids are asked for after the records were listed."""
        await self.fill(net)
        order: list[str] = []
        records = net.cni._records
        real = records.ids

        def listed() -> list[str]:
            order.append("records")
            return real()

        def valid() -> list[str]:
            order.append("ids")
            return ["p1", "p2", "p3"]

        records.ids = listed  # type: ignore[method-assign]
        await net.cni.gc(valid)
        assert order[:2] == ["records", "ids"]
        assert net.calls("DEL") == []

    async def test_never_beside_another_operation(
        self, net: Net, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cni, "GC_WAIT", 0.05)
        net.network("net", "a", "b", cniVersion="1.1.0")
        net.plugin("a", ADD={"hang": True})
        adding = asyncio.create_task(net.cni.add(POD))
        await net.called("ADD a")
        with pytest.raises(Unavailable, match="no quiet moment"):
            await net.cni.gc(lambda: ["p1"])
        assert net.calls("GC") == []
        adding.cancel()
        await asyncio.gather(adding, return_exceptions=True)


class TestPodCidr:
    TEMPLATE = (
        '{"cniVersion":"1.0.0","name":"made","plugins":[{"type":"a","ipam":'
        '{"subnet":"{{.PodCIDR}}"}}]}'
    )

    @pytest.fixture
    def bare(self, net: Net, tmp_path: Path) -> Network:
        (net.conf / "10-net.conflist").unlink()
        (tmp_path / "template").write_text(self.TEMPLATE)
        return net.over(conf_template=tmp_path / "template")

    async def test_written_once(self, net: Net, bare: Network) -> None:
        await bare.set_pod_cidr("10.7.0.0/24,fd00::/64")
        made = json.loads((net.conf / GENERATED).read_text())
        assert made["plugins"][0]["ipam"]["subnet"] == "10.7.0.0/24"
        assert bare.status().ready
        await bare.set_pod_cidr("10.8.0.0/24")
        assert "10.7.0.0" in (net.conf / GENERATED).read_text()
        assert [path.name for path in net.conf.iterdir()] == [GENERATED]

    async def test_where_it_is_not_wanted(self, net: Net, bare: Network) -> None:
        await bare.set_pod_cidr("")
        await net.cni.set_pod_cidr("10.7.0.0/24")
        (net.conf / "20-x.conflist").write_text("{")
        await bare.set_pod_cidr("10.7.0.0/24")
        assert [path.name for path in net.conf.iterdir()] == ["20-x.conflist"]

    async def test_refused(self, net: Net, bare: Network, tmp_path: Path) -> None:
        with pytest.raises(InvalidArgument, match=r"network_config.pod_cidr"):
            await bare.set_pod_cidr("nonsense")
        for text, message in (
            ("{{nope}}", "isn't known here"),
            ('{"name":"x"}', r"template, rendered for 10.7.0.0/24: plugins: missing"),
        ):
            (tmp_path / "template").write_text(text)
            with pytest.raises(FailedPrecondition, match=message):
                await bare.set_pod_cidr("10.7.0.0/24")
        (tmp_path / "template").unlink()
        with pytest.raises(FailedPrecondition, match="No such file"):
            await bare.set_pod_cidr("10.7.0.0/24")
        assert list(net.conf.iterdir()) == []
