"""Several plugins' changes as one: what the next one sees, what is left of all, and conflicts."""

from __future__ import annotations

import pytest
from google.protobuf import json_format

from zos_cri._pb import nri_pb2 as pb
from zos_cri.errors import FailedPrecondition
from zos_cri.nri.merge import Creation, Updates
from zos_cri.nri.owners import Conflict

ID = "c1"


def adjustment(**fields) -> pb.ContainerAdjustment:
    return json_format.ParseDict(fields, pb.ContainerAdjustment())


def limits(**fields) -> pb.LinuxResources:
    return json_format.ParseDict(fields, pb.LinuxResources())


def as_dict(message):
    return json_format.MessageToDict(message)


def creation(**fields) -> Creation:
    container = json_format.ParseDict({"id": ID, **fields}, pb.Container())
    return Creation(pb.CreateContainerRequest(container=container))


def apply(result, *adjustments):
    """As the plugins a, b, c."""
    for plugin, fields in zip("abc", adjustments, strict=False):
        result.apply(pb.CreateContainerResponse(adjust=adjustment(**fields)), plugin)


# Each: a value of a field, what two plugins can't both set, and its name in the error.
FIELDS = [
    ({"annotations": {"k": "1"}}, "Annotations k"),
    ({"mounts": [{"destination": "/m"}]}, "Mounts /m"),
    ({"env": [{"key": "K", "value": "1"}]}, "Env K"),
    ({"args": ["x"]}, "Args"),
    ({"rlimits": [{"type": "RLIMIT_CORE"}]}, "Rlimits RLIMIT_CORE"),
    ({"CDIDevices": [{"name": "v/c=d"}]}, "CdiDevices v/c=d"),
    ({"linux": {"devices": [{"path": "/dev/x"}]}}, "Devices /dev/x"),
    ({"linux": {"cgroupsPath": "/x"}}, "CgroupsPath"),
    ({"linux": {"oomScoreAdj": {"value": "7"}}}, "OomScoreAdj"),
    ({"linux": {"ioPriority": {"priority": 1}}}, "IoPriority"),
    ({"linux": {"seccompPolicy": {"defaultAction": "x"}}}, "SeccompPolicy"),
    ({"linux": {"namespaces": [{"type": "pid"}]}}, "Namespace pid"),
    ({"linux": {"sysctl": {"net.x": "1"}}}, "Sysctl net.x"),
    ({"linux": {"netDevices": {"eth1": {"name": "x"}}}}, "LinuxNetDevices eth1"),
    ({"linux": {"scheduler": {"nice": 1}}}, "LinuxSched"),
    ({"linux": {"rdt": {"closId": {"value": "x"}}}}, "RdtClosID"),
    ({"linux": {"rdt": {"schemata": {"value": ["x"]}}}}, "RdtSchemata"),
    ({"linux": {"rdt": {"enableMonitoring": {"value": True}}}}, "RdtEnableMonitoring"),
    ({"linux": {"memoryPolicy": {"nodes": "0"}}}, "MemoryPolicy"),
]
LIMITS = [
    ({"memory": {"limit": {"value": "1"}}}, "MemLimit"),
    ({"memory": {"reservation": {"value": "1"}}}, "MemReservation"),
    ({"memory": {"swap": {"value": "1"}}}, "MemSwapLimit"),
    ({"memory": {"kernel": {"value": "1"}}}, "MemKernelLimit"),
    ({"memory": {"kernelTcp": {"value": "1"}}}, "MemTCPLimit"),
    ({"memory": {"swappiness": {"value": "1"}}}, "MemSwappiness"),
    ({"memory": {"disableOomKiller": {"value": True}}}, "MemDisableOomKiller"),
    ({"memory": {"useHierarchy": {"value": True}}}, "MemUseHierarchy"),
    ({"cpu": {"shares": {"value": "1"}}}, "CPUShares"),
    ({"cpu": {"quota": {"value": "1"}}}, "CPUQuota"),
    ({"cpu": {"period": {"value": "1"}}}, "CPUPeriod"),
    ({"cpu": {"realtimeRuntime": {"value": "1"}}}, "CPURealtimeRuntime"),
    ({"cpu": {"realtimePeriod": {"value": "1"}}}, "CPURealtimePeriod"),
    ({"cpu": {"cpus": "0"}}, "CPUSetCPUs"),
    ({"cpu": {"mems": "0"}}, "CPUSetMems"),
    ({"pids": {"limit": "1"}}, "PidsLimit"),
    ({"hugepageLimits": [{"pageSize": "2MB", "limit": "1"}]}, "HugepageLimits 2MB"),
    ({"blockioClass": {"value": "x"}}, "BlockioClass"),
    ({"rdtClass": {"value": "x"}}, "RdtClass"),
    ({"unified": {"memory.high": "1"}}, "CgroupsUnified memory.high"),
]
ALL = FIELDS + [({"linux": {"resources": fields}}, name) for fields, name in LIMITS]


@pytest.mark.parametrize(("fields", "name"), ALL, ids=[name for _, name in ALL])
class TestEveryField:
    def test_one_plugins_is_taken_and_is_seen_by_the_next(self, fields, name):
        result = creation()
        apply(result, fields)
        assert as_dict(result.adjust) == fields
        seen = as_dict(result.request.container)
        hidden = "CDIDevices" in fields or "memoryPolicy" in fields.get("linux", {})
        assert (seen != {"id": ID}) != hidden

    def test_two_of_them_are_a_conflict(self, fields, name):
        with pytest.raises(Conflict, match=f'NRI plugins "b" and "a" both set {name}$'):
            apply(creation(), fields, fields)


def test_the_test_has_every_field_that_there_is():
    named = {name.split()[0] for _, name in ALL}
    assert set(pb.Field.keys()) - named == {"None", "OciHooks"}


REMOVABLE = [
    ({"annotations": {"k": "2", "-k": ""}}, {"annotations": {"k": "1"}}),
    (
        {"mounts": [{"destination": "-/m"}, {"destination": "/m", "type": "2"}]},
        {"mounts": [{"destination": "/m"}]},
    ),
    ({"env": [{"key": "-K"}, {"key": "K", "value": "2"}]}, {"env": [{"key": "K", "value": "1"}]}),
    (
        {"linux": {"devices": [{"path": "-/dev/x"}, {"path": "/dev/x", "type": "b"}]}},
        {"linux": {"devices": [{"path": "/dev/x"}]}},
    ),
    ({"linux": {"sysctl": {"-s": "", "s": "2"}}}, {"linux": {"sysctl": {"s": "1"}}}),
    (
        {"linux": {"netDevices": {"-e": {}, "e": {"name": "2"}}}},
        {"linux": {"netDevices": {"e": {"name": "1"}}}},
    ),
]


@pytest.mark.parametrize(("second", "first"), REMOVABLE)
def test_who_takes_it_away_first_may_set_it(second, first):
    result = creation()
    apply(result, first, second)
    text = str(result.adjust)
    assert "2" in text or '"b"' in text
    assert '"1"' not in text
    with pytest.raises(Conflict):
        apply_third(result, first)


def apply_third(result, fields):
    result.apply(pb.CreateContainerResponse(adjust=adjustment(**fields)), "c")


def test_a_removal_alone_is_kept_for_the_container():
    result = creation(env=["A=1", "B=2"], mounts=[{"destination": "/m"}], annotations={"k": "v"})
    apply(
        result,
        {"env": [{"key": "-A"}], "mounts": [{"destination": "-/m"}], "annotations": {"-k": ""}},
    )
    assert as_dict(result.request.container) == {"id": ID, "env": ["B=2"]}
    assert as_dict(result.adjust) == {
        "env": [{"key": "-A"}],
        "mounts": [{"destination": "-/m"}],
        "annotations": {"-k": ""},
    }


def test_what_another_has_set_can_be_taken_away_for_good():
    result = creation()
    apply(result, {"env": [{"key": "A", "value": "1"}]}, {"env": [{"key": "-A"}]})
    assert as_dict(result.adjust) == {"env": [{"key": "-A"}]}
    assert list(result.request.container.env) == []


def test_arguments_are_replaced_after_an_empty_one():
    result = creation(args=["old"])
    apply(result, {"args": ["x", "y"]}, {"args": ["", "z"]})
    assert list(result.adjust.args) == ["z"] == list(result.request.container.args)


def test_hooks_add_up_in_order():
    hook = {"poststart": [{"path": "/one"}]}
    result = creation()
    apply(result, {"hooks": hook}, {"hooks": {"poststart": [{"path": "/two"}]}})
    assert [h.path for h in result.adjust.hooks.poststart] == ["/one", "/two"]
    assert [h.path for h in result.request.container.hooks.poststart] == ["/one", "/two"]
    assert result.owners.message().owners[ID].simple[pb.OciHooks] == "a,b"


def test_rdt_is_taken_away_and_set_anew():
    result = creation(linux={"rdt": {"closId": {"value": "old"}}})
    apply(
        result,
        {"linux": {"rdt": {"closId": {"value": "one"}}}},
        {"linux": {"rdt": {"remove": True, "schemata": {"value": ["L3:0=f"]}}}},
    )
    assert as_dict(result.adjust.linux.rdt) == {"remove": True, "schemata": {"value": ["L3:0=f"]}}
    assert as_dict(result.request.container.linux.rdt) == {"schemata": {"value": ["L3:0=f"]}}


def test_device_rules_add_up():
    rule = {"allow": True, "type": "c", "access": "r"}
    result = creation()
    apply(result, *[{"linux": {"resources": {"devices": [rule]}}}] * 2)
    assert len(result.adjust.linux.resources.devices) == 2


# ---- updates


def update(id_="other", *, ignore=False, **fields):
    given = pb.ContainerUpdate(container_id=id_, ignore_failure=ignore)
    given.linux.resources.CopyFrom(limits(**fields))
    return given


SHARES = {"cpu": {"shares": {"value": "100"}}}


def test_updates_of_others_add_up():
    result = creation()
    for plugin, fields in (("a", SHARES), ("b", {"pids": {"limit": "5"}})):
        result.apply(pb.CreateContainerResponse(update=[update(**fields)]), plugin)
    (found,) = result.updates.others()
    assert as_dict(found.linux.resources) == {**SHARES, "pids": {"limit": "5"}}


def test_the_container_that_is_made_is_not_updated():
    with pytest.raises(FailedPrecondition, match='"a" updates container c1 while it is being made'):
        creation().apply(pb.CreateContainerResponse(update=[update(ID, **SHARES)]), "a")


def test_an_update_that_may_fail_is_left_out_as_a_whole():
    updates = Updates()
    updates.add([update(**SHARES)], "a")
    updates.add([update(ignore=True, pids={"limit": "5"}, **SHARES)], "b")
    updates.add([update(pids={"limit": "6"})], "c")
    (found,) = updates.others()
    assert as_dict(found.linux.resources) == {**SHARES, "pids": {"limit": "6"}}
    assert not found.ignore_failure
    with pytest.raises(Conflict, match="CPUShares"):
        updates.add([update(**SHARES)], "d")


def test_it_may_fail_only_where_all_say_so():
    updates = Updates()
    updates.add([update(ignore=True, **SHARES)], "a")
    assert updates.others()[0].ignore_failure
    updates.add([update(pids={"limit": "5"})], "b")
    assert not updates.others()[0].ignore_failure


def test_the_requested_update_is_changed_and_seen_by_the_next():
    request = pb.UpdateContainerRequest(
        container=pb.Container(id=ID), linux_resources=limits(pids={"limit": "9"}, **SHARES)
    )
    updates = Updates(request=request)
    assert updates.requested() is None
    updates.add([update(ID, cpu={"shares": {"value": "7"}}), update(**SHARES)], "a")
    wanted = {"cpu": {"shares": {"value": "7"}}, "pids": {"limit": "9"}}
    assert as_dict(request.linux_resources) == wanted
    assert as_dict(updates.requested()) == wanted
    assert [each.container_id for each in updates.others()] == ["other"]


def test_evictions_are_collected():
    result = creation()
    result.apply(pb.CreateContainerResponse(evict=[pb.ContainerEviction(container_id="x")]), "a")
    assert [each.container_id for each in result.evict] == ["x"]
