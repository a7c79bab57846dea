from __future__ import annotations

import pytest
from google.protobuf import json_format

from zos_cri._pb import cri_pb2
from zos_cri._pb import nri_pb2 as pb
from zos_cri.errors import InvalidArgument
from zos_cri.nri import limits
from zos_cri.nri.adjust import Facts
from zos_cri.oci.container import HandlerSettings
from zos_cri.oci.host import HostFacts

V1 = HostFacts(cgroup_mode="v1")
V2 = HostFacts()


def resources(**fields):
    return json_format.ParseDict(fields, pb.LinuxResources())


def applied(present=None, host=V1, **fields):
    target = present or {}
    limits.apply(target, resources(**fields), Facts(host=host, handler=HandlerSettings()))
    return target


def value(number):
    return {"value": str(number)}


def test_every_limit():
    found = applied(
        memory={
            "limit": value(100),
            "reservation": value(50),
            "swap": value(200),
            "kernel": value(7),
            "kernelTcp": value(8),
            "swappiness": value(9),
            "disableOomKiller": {"value": True},
            "useHierarchy": {"value": True},
        },
        cpu={
            "shares": value(512),
            "quota": value(5000),
            "period": value(10000),
            "realtimeRuntime": value(1),
            "realtimePeriod": value(2),
            "cpus": "0-1",
            "mems": "0",
        },
        hugepageLimits=[{"pageSize": "2MB", "limit": "1"}],
        pids={"limit": "5"},
    )
    assert found == {
        "memory": {
            "limit": 100,
            "swap": 200,
            "reservation": 50,
            "kernel": 7,
            "kernelTCP": 8,
            "swappiness": 9,
            "disableOOMKiller": True,
            "useHierarchy": True,
        },
        "cpu": {
            "period": 10000,
            "quota": 5000,
            "shares": 512,
            "cpus": "0-1",
            "mems": "0",
            "realtimeRuntime": 1,
            "realtimePeriod": 2,
        },
        "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
        "pids": {"limit": 5},
    }


def test_what_is_there_stays():
    present = {"cpu": {"shares": 2}, "hugepageLimits": [{"pageSize": "1GB", "limit": 3}]}
    found = applied(present, cpu={"quota": value(5000)}, hugepageLimits=[{"pageSize": "2MB"}])
    assert found["cpu"] == {"shares": 2, "quota": 5000}
    assert len(found["hugepageLimits"]) == 2


def test_a_memory_limit_alone_is_that_of_swap_too():
    assert applied(memory={"limit": value(100)})["memory"] == {"limit": 100, "swap": 100}


def test_unified():
    assert applied(host=V2, unified={"memory.high": "1"}) == {"unified": {"memory.high": "1"}}


@pytest.mark.parametrize(("given", "limit"), [(-1, -1), (0, -1), (7, 7)])
def test_pids(given, limit):
    assert applied(pids={"limit": str(given)}) == {"pids": {"limit": limit}}


@pytest.mark.parametrize(
    ("fields", "host", "message"),
    [
        ({"unified": {"memory.high": "1"}}, V1, "linux.resources.unified: this host has cgroup v1"),
        ({"memory": {"kernel": value(1)}}, V2, "linux.resources.memory.kernel: is for cgroup v1"),
        ({"cpu": {"realtimePeriod": value(1)}}, V2, "cpu.realtime_period: is for cgroup v1"),
        ({"cpu": {"shares": value(1)}}, V1, "linux.resources.cpu_shares: 1 is not between"),
        ({"cpu": {"shares": value(2**64 - 1)}}, V1, "linux.resources: out of range"),
        ({"memory": {"limit": value(-2)}}, V1, "memory_limit_in_bytes: -2 is negative"),
        ({"pids": {"limit": "-2"}}, V1, "linux.resources.pids.limit: -2 is negative"),
    ],
)
def test_what_is_wrong_is_named(fields, host, message):
    with pytest.raises(InvalidArgument, match=message):
        applied(host=host, **fields)


def test_there_and_back():
    given = cri_pb2.LinuxContainerResources(
        cpu_period=1000,
        cpu_quota=2000,
        cpu_shares=3,
        memory_limit_in_bytes=4,
        memory_swap_limit_in_bytes=5,
        cpuset_cpus="0",
        cpuset_mems="1",
        hugepage_limits=[cri_pb2.HugepageLimit(page_size="2MB", limit=6)],
        unified={"a.b": "c"},
    )
    assert limits.to_cri(limits.from_cri(given)) == given


def test_nothing_is_nothing():
    assert not limits.from_cri(cri_pb2.LinuxContainerResources()).memory.HasField("limit")
    assert limits.to_cri(pb.LinuxResources()) == cri_pb2.LinuxContainerResources()
