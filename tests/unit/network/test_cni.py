"""Networks of pods, over plugins that do as they are told (and as they are not)."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.network.over_fakes import FAIL, HOST, POD, changed
from zos_cri.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from zos_cri.network.cni import NotReady
from zos_cri.network.plugin import BadReply, PluginFailed, PluginMissing, PluginTimeout
from zos_cri.network.pod import PodNetwork, PortMapping

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.network.over_fakes import Net


class TestAdd:
    async def test_what_the_plugins_see(self, net: Net) -> None:
        net.network("net", "a", {"type": "b", "capabilities": {"portMappings": True}})
        pod = changed(port_mappings=(PortMapping(80, 8080, "TCP"),))
        result = await net.cni.add(pod)
        assert result.ips == ("10.9.0.2",)
        first, second = net.calls()
        for seen in (first, second):
            assert {k: v for k, v in seen.env.items() if k != "PATH"} == {
                "CNI_COMMAND": "ADD",
                "CNI_CONTAINERID": "p1",
                "CNI_NETNS": HOST,
                "CNI_IFNAME": "eth0",
                "CNI_ARGS": pod.args(),
                "CNI_PATH": str(net.bin),
            }
        assert first.request == {"cniVersion": "1.0.0", "name": "net", "type": "a"}
        assert second.request["prevResult"]["ips"][0]["address"] == "10.9.0.2/24"
        assert second.request["runtimeConfig"]["portMappings"][0]["hostPort"] == 8080

    async def test_twice(self, net: Net) -> None:
        await net.cni.add(POD)
        with pytest.raises(AlreadyExists, match="p1 is attached to network net by eth0 already"):
            await net.over().add(POD)
        assert net.said() == ["ADD a", "ADD b"]

    async def test_refused_before_anything_is_run(self, net: Net) -> None:
        with pytest.raises(InvalidArgument):
            await net.cni.add(changed(name="a;b"))
        for netns in ("", "/absent", "/etc/hostname", "/proc/self/ns/ipc"):
            with pytest.raises(FailedPrecondition, match="is not a network namespace"):
                await net.cni.add(changed(netns=netns))
        (net.conf / "10-net.conflist").unlink()
        with pytest.raises(NotReady, match="no network configuration in"):
            await net.cni.add(POD)
        (net.conf / "10-net.conflist").write_text("{")
        with pytest.raises(NotReady, match=r"10-net.conflist: not a JSON object"):
            await net.cni.add(POD)
        assert net.calls() == []
        assert net.recorded == []

    async def test_several_networks(self, net: Net) -> None:
        net.network("second", "b")
        both = net.over(max_conf_num=0)
        result = await both.add(POD)
        assert result.ips == ("10.9.0.2",)
        await both.delete(POD)
        assert net.said() == ["ADD a", "ADD b", "ADD b", "DEL b", "DEL b", "DEL a"]
        assert [call.env["CNI_IFNAME"] for call in net.calls()] == [
            "eth0",
            "eth0",
            "eth1",
            "eth1",
            "eth0",
            "eth0",
        ]

    async def test_the_highest_version_that_all_plugins_know(self, net: Net) -> None:
        net.network("net", "a", "b", cniVersions=["0.4.0", "1.1.0"])
        net.plugin("b", VERSION={"result": {"supportedVersions": ["0.4.0", "1.0.0"]}})
        await net.cni.add(POD)
        assert {call.request["cniVersion"] for call in net.calls("ADD")} == {"1.0.0"}
        await net.cni.add(changed(id="p2"))
        assert net.said("VERSION") == ["VERSION a", "VERSION b"]

    async def test_plugins_that_do_not_know_their_versions(self, net: Net) -> None:
        net.network("net", "a", "b", cniVersions=["0.4.0", "1.1.0"])
        net.plugin("b", VERSION={"exit": 1})
        await net.cni.add(POD)
        assert {call.request["cniVersion"] for call in net.calls("ADD")} == {"1.1.0"}


class TestFailedAdd:
    @pytest.mark.parametrize(
        ("step", "error"),
        [
            (FAIL, PluginFailed),
            ({"exit": 2}, PluginFailed),
            ({"kill": 9}, PluginFailed),
            ({"stdout": "nonsense"}, BadReply),
            ({"result": {"cniVersion": "1.0.0"}}, BadReply),
            ({"hang": True}, PluginTimeout),
            ({"flood": 2 << 20}, BadReply),
        ],
    )
    async def test_it_is_taken_back(
        self, net: Net, step: dict[str, Any], error: type[Exception]
    ) -> None:
        net.plugin("b", ADD=step)
        hasty = net.over(plugin_timeout=1.0) if "hang" in step else net.cni
        with pytest.raises(error, match="network net: "):
            await hasty.add(POD)
        assert net.said() == ["ADD a", "ADD b", "DEL b", "DEL a"]
        assert net.recorded == []
        # What `a` had made is told them: without it some don't know what to remove.
        assert all("prevResult" in call.request for call in net.calls("DEL"))

    async def test_only_what_was_begun(self, net: Net) -> None:
        net.plugin("a", ADD=FAIL)
        with pytest.raises(PluginFailed):
            await net.cni.add(POD)
        assert net.said() == ["ADD a", "DEL a"]
        assert "prevResult" not in net.calls("DEL")[0].request

    async def test_a_missing_program(self, net: Net) -> None:
        net.network("net", "a", "nope")
        with pytest.raises(PluginMissing, match="CNI plugin nope: no such program in"):
            await net.cni.add(POD)
        # Its DEL can't be run either: the record stays, for when it is there again.
        assert net.recorded == ["p1"]
        net.plugin("nope")
        await net.cni.delete(POD)
        assert net.said() == ["ADD a", "DEL nope", "DEL a"]
        assert net.recorded == []

    async def test_the_second_network_takes_the_first_with_it(self, net: Net) -> None:
        net.plugin("c", ADD=FAIL)
        net.network("second", "c")
        with pytest.raises(PluginFailed, match="network second: CNI plugin c"):
            await net.over(max_conf_num=2).add(POD)
        assert net.said() == ["ADD a", "ADD b", "ADD c", "DEL c", "DEL b", "DEL a"]
        assert net.recorded == []

    async def test_when_that_fails_too_the_record_stays(self, net: Net) -> None:
        net.plugin("b", ADD=FAIL, DEL=[FAIL, {}])
        with pytest.raises(PluginFailed, match="ADD failed"):
            await net.cni.add(POD)
        (left,) = await net.cni.pending()
        assert (left.container_id, left.network, left.ifname, left.complete) == (
            "p1",
            "net",
            "eth0",
            False,
        )
        await net.over().delete(POD)
        assert net.said("DEL") == ["DEL b", "DEL b", "DEL a"]

    async def test_trying_again_takes_off_what_is_left_first(self, net: Net) -> None:
        net.plugin("b", ADD=[FAIL, {}], DEL=[FAIL, {}])
        with pytest.raises(PluginFailed):
            await net.cni.add(POD)
        await net.cni.add(POD)
        assert net.said() == ["ADD a", "ADD b", "DEL b", "DEL b", "DEL a", "ADD a", "ADD b"]

    async def test_a_caller_who_goes_away(self, net: Net) -> None:
        net.plugin("b", ADD={"hang": True})
        adding = asyncio.create_task(net.cni.add(POD))
        await net.called("ADD a", "ADD b")
        adding.cancel()
        await net.called("ADD a", "ADD b", "DEL b")
        adding.cancel()  # and insists
        with pytest.raises(asyncio.CancelledError):
            await adding
        assert net.said("DEL") == ["DEL b", "DEL a"]
        assert net.recorded == []

    async def test_the_whole_has_a_deadline(self, net: Net) -> None:
        net.plugin("a", ADD={"sleep": 0.8})
        net.plugin("b", ADD={"hang": True})
        with pytest.raises(PluginTimeout, match="CNI plugin b: ADD failed"):
            await net.over(add_timeout=1.5).add(POD)
        assert net.recorded == []


class TestDelete:
    async def test_in_reverse_with_the_last_result(self, net: Net) -> None:
        answer = {"cniVersion": "1.0.0", "ips": [{"address": "10.1.1.1/8"}], "own": [1]}
        net.plugin("b", ADD={"result": answer})
        await net.cni.add(POD)
        await net.cni.delete(POD)
        assert net.said("DEL") == ["DEL b", "DEL a"]
        for call in net.calls("DEL"):
            assert call.request["prevResult"] == answer
            assert call.env["CNI_NETNS"] == HOST
            assert call.env["CNI_ARGS"] == POD.args()
        assert net.recorded == []

    async def test_again_and_of_what_never_was(self, net: Net) -> None:
        await net.cni.add(POD)
        for _ in range(3):
            await net.cni.delete(POD)
        await net.cni.delete(changed(id="other"))
        assert len(net.calls("DEL")) == 2

    async def test_with_the_configuration_of_then(self, net: Net) -> None:
        net.network("net", {"type": "a", "x": 1}, {"type": "b", "capabilities": {"mac": True}})
        await net.cni.add(changed(mac="02:00:00:00:00:01"))
        net.network("net", "c")
        await net.over().delete(PodNetwork(id="p1", netns=HOST))
        (net.conf / "10-net.conflist").unlink()
        b, a = net.calls("DEL")
        assert a.request["x"] == 1
        assert b.request["runtimeConfig"] == {"mac": "02:00:00:00:00:01"}
        assert b.env["CNI_ARGS"] == POD.args()

    @pytest.mark.parametrize("netns", ["", "/absent"])
    async def test_without_the_namespace(self, net: Net, tmp_path: Path, netns: str) -> None:
        await net.cni.add(POD)
        record = tmp_path / "records" / "p1" / "net@eth0.json"
        record.write_text(record.read_text().replace(HOST, "/gone/too"))
        await net.cni.delete(changed(netns=netns))
        assert [call.env["CNI_NETNS"] for call in net.calls("DEL")] == ["", ""]

    async def test_a_failure_is_raised_and_can_be_tried_again(self, net: Net) -> None:
        net.plugin("a", DEL=[FAIL, FAIL, {}])
        await net.cni.add(POD)
        for _ in range(2):
            with pytest.raises(PluginFailed, match=r"CNI plugin a: DEL failed after .*code 11: no"):
                await net.cni.delete(POD)
            assert net.recorded == ["p1"]
        await net.cni.delete(POD)
        assert net.recorded == []
        assert net.said("DEL") == ["DEL b", "DEL a"] * 3

    async def test_one_network_does_not_keep_the_other(self, net: Net) -> None:
        net.plugin("c", DEL=[FAIL, {}])
        net.network("second", "c")
        both = net.over(max_conf_num=2)
        await both.add(POD)
        with pytest.raises(PluginFailed, match="network second"):
            await both.delete(POD)
        assert net.said("DEL") == ["DEL c", "DEL b", "DEL a"]
        await both.delete(POD)
        assert net.recorded == []

    async def test_old_plugins_that_need_a_namespace(self, net: Net) -> None:
        gone = {"exit": 1, "result": {"code": 3, "msg": "stat : no such file or directory"}}
        net.plugin("b", DEL=gone)
        await net.cni.add(POD)
        with pytest.raises(PluginFailed):  # there it is: then it is an error
            await net.cni.delete(POD)
        record = net.directory / "records" / "p1" / "net@eth0.json"
        record.write_text(record.read_text().replace(HOST, "/gone"))
        await net.cni.delete(changed(netns=""))
        assert net.said("DEL") == ["DEL b", "DEL b", "DEL a"]
        assert net.recorded == []

    async def test_other_errors_count_without_a_namespace_too(self, net: Net) -> None:
        net.plugin("b", DEL=FAIL)
        await net.cni.add(POD)
        record = net.directory / "records" / "p1" / "net@eth0.json"
        record.write_text(record.read_text().replace(HOST, "/gone"))
        with pytest.raises(PluginFailed):
            await net.cni.delete(changed(netns=""))
        assert net.recorded == ["p1"]

    async def test_no_result_before_0_4_0(self, net: Net) -> None:
        net.network("net", "a", "b", cniVersion="0.3.1")
        await net.cni.add(POD)
        await net.cni.delete(POD)
        assert not any("prevResult" in call.request for call in net.calls("DEL"))

    async def test_a_damaged_record(self, net: Net) -> None:
        await net.cni.add(POD)
        (net.directory / "records" / "p1" / "net@eth0.json").write_text("")
        await net.cni.delete(POD)
        assert net.said("DEL") == ["DEL b", "DEL a"]
        assert net.recorded == []

    async def test_a_damaged_record_of_no_network(self, net: Net) -> None:
        await net.cni.add(POD)
        (net.directory / "records" / "p1" / "net@eth0.json").write_text("")
        net.network("other", "a", file="10-net.conflist")
        with pytest.raises(DataLoss, match=r"damaged: .*; and network net isn't configured"):
            await net.cni.delete(POD)
        await net.cni.forget("p1")
        assert net.recorded == []

    async def test_a_record_of_a_later_release(self, net: Net) -> None:
        await net.cni.add(POD)
        (net.directory / "records" / "p1" / "net@eth0.json").write_text('{"format":2}')
        with pytest.raises(FailedPrecondition, match="written in format 2, known is 1"):
            await net.cni.delete(POD)
        assert net.recorded == ["p1"]


class TestKilled:
    """The server dies at any instant: the record is there before the plugin, and says enough."""

    @pytest.mark.parametrize("at", ["ADD a", "ADD b"])
    async def test_during_add(self, net: Net, at: str) -> None:
        net.plugin(at[-1], ADD={"hang": True})
        adding = asyncio.create_task(net.cni.add(POD))
        await net.called(*["ADD a", "ADD b"][: 1 if at == "ADD a" else 2])
        (left,) = await net.over().pending()
        assert not left.complete
        assert await net.over().result("p1") is None
        await net.over().delete(PodNetwork(id="p1"))
        expected = ["DEL a"] if at == "ADD a" else ["DEL b", "DEL a"]
        assert net.said("DEL") == expected
        adding.cancel()
        await asyncio.gather(adding, return_exceptions=True)

    async def test_the_result_survives(self, net: Net) -> None:
        result = await net.cni.add(POD)
        again = net.over()
        assert await again.result("p1") == result
        assert await again.result("other") is None
        (record,) = await again.pending()
        assert (record.complete, record.netns) == (True, HOST)

    async def test_a_result_that_makes_no_sense_any_more(self, net: Net) -> None:
        await net.cni.add(POD)
        record = net.directory / "records" / "p1" / "net@eth0.json"
        record.write_text(record.read_text().replace("10.9.0.2/24", "10.9.0.2/99"))
        with pytest.raises(DataLoss, match="CNI record of pod p1: "):
            await net.cni.result("p1")


class TestConcurrency:
    async def test_pods_do_not_wait_for_each_other(self, net: Net) -> None:
        net.plugin("a", ADD=[{"hang": True}, {}])
        stuck = asyncio.create_task(net.cni.add(POD))
        await net.called("ADD a")
        async with asyncio.timeout(20):
            await asyncio.gather(*(net.cni.add(changed(id=f"q{i}")) for i in range(4)))
            await net.cni.delete(changed(id="q0"))
        assert not stuck.done()
        stuck.cancel()
        await asyncio.gather(stuck, return_exceptions=True)
        assert net.recorded == ["q1", "q2", "q3"]

    async def test_one_pods_operations_follow_each_other(self, net: Net, tmp_path: Path) -> None:
        go = tmp_path / "go"
        net.plugin("a", ADD={"wait_for": str(go)})
        adding = asyncio.create_task(net.cni.add(POD))
        await net.called("ADD a")
        deleting = asyncio.create_task(net.cni.delete(POD))
        again = asyncio.create_task(net.cni.add(POD))
        go.touch()
        await asyncio.gather(adding, deleting, again)
        assert net.said() == ["ADD a", "ADD b", "DEL b", "DEL a", "ADD a", "ADD b"]


class TestCheck:
    async def test_asks_all_with_the_result(self, net: Net) -> None:
        result = await net.cni.add(POD)
        await net.cni.check(POD)
        assert net.said("CHECK") == ["CHECK a", "CHECK b"]
        for call in net.calls("CHECK"):
            assert [call.request["prevResult"]] == json.loads(result.raw)

    async def test_what_is_wrong(self, net: Net) -> None:
        net.plugin("a", CHECK=FAIL)
        await net.cni.add(POD)
        with pytest.raises(PluginFailed, match="CNI plugin a: CHECK failed"):
            await net.cni.check(POD)

    @pytest.mark.parametrize("keys", [{"disableCheck": True}, {"cniVersion": "0.3.1"}])
    async def test_not_where_it_must_not(self, net: Net, keys: dict[str, Any]) -> None:
        net.network("net", "a", "b", **keys)
        await net.cni.add(POD)
        await net.cni.check(POD)
        assert net.calls("CHECK") == []

    async def test_of_none(self, net: Net) -> None:
        with pytest.raises(NotFound, match="pod p1 is not attached"):
            await net.cni.check(POD)


def test_constructor_refuses(net: Net) -> None:
    with pytest.raises(InvalidArgument, match="ip_preference"):
        net.over(ip_preference="v4")
    with pytest.raises(InvalidArgument, match="ifname_prefix"):
        net.over(ifname_prefix="a/b")
