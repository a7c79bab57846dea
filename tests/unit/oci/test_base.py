from __future__ import annotations

from typing import Any

import pytest

from zos_cri.errors import InvalidArgument
from zos_cri.oci import base
from zos_cri.oci.host import RLIM_INFINITY, HostFacts

HOST = HostFacts()


def targets(mounts: list[dict[str, Any]]) -> list[str]:
    return [mount["destination"] for mount in mounts]


def bind(target: str) -> dict[str, Any]:
    return {"destination": target, "type": "bind", "source": "/src", "options": ["rbind"]}


def test_given_mounts_come_after_the_defaults_the_deeper_the_later() -> None:
    defaults = base.default_mounts(HOST)
    merged = base.merge_mounts(defaults, [bind("/a/b/c"), bind("/a"), bind("/a/b")])
    assert targets(merged) == [*targets(defaults), "/a", "/a/b", "/a/b/c"]


def test_equally_deep_mounts_keep_their_order() -> None:
    merged = base.merge_mounts([], [bind("/z"), bind("/a")])
    assert targets(merged) == ["/z", "/a"]


def test_a_given_dev_replaces_all_of_ours_below_it() -> None:
    merged = base.merge_mounts(base.default_mounts(HOST, shm=True), [bind("/dev")])
    assert targets(merged) == ["/proc", "/sys", "/sys/fs/cgroup", "/dev"]


def test_a_mount_beside_a_default_does_not_replace_it() -> None:
    merged = base.merge_mounts(base.default_mounts(HOST), [bind("/device")])
    assert "/dev" in targets(merged)


def test_the_cgroup_mount_keeps_the_superblocks_options_without_a_namespace() -> None:
    host = HostFacts(cgroup_mount_options=("nsdelegate",))
    shared = base.default_mounts(host)[-1]["options"]
    assert "nsdelegate" in shared
    assert "nsdelegate" not in base.default_mounts(host, cgroup_namespace=True)[-1]["options"]


def test_sys_is_the_hosts_where_it_cannot_be_mounted() -> None:
    sys = next(
        mount
        for mount in base.default_mounts(HOST, host_sys=True)
        if mount["destination"] == "/sys"
    )
    assert (sys["type"], sys["source"]) == ("bind", "/sys")
    assert "rro" in sys["options"]


def test_each_cpus_throttle_counters_are_masked() -> None:
    paths = base.masked_paths(HostFacts(cpus=2))
    assert paths[-2:] == [
        "/sys/devices/system/cpu/cpu0/thermal_throttle",
        "/sys/devices/system/cpu/cpu1/thermal_throttle",
    ]
    assert "/proc/kcore" in paths


def test_device_rules_begin_with_nothing() -> None:
    node = base.DeviceNode(path="/dev/x", type="c", major=10, minor=1)
    fifo = base.DeviceNode(path="/dev/p", type="p")
    assert base.device_rules([(node, "rw"), (fifo, "rwm")], all_allowed=False) == [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 10, "minor": 1, "access": "rw"},
    ]
    assert base.device_rules([(node, "r")], all_allowed=True) == [{"allow": True, "access": "rwm"}]


def test_rlimits_are_no_higher_than_the_host_lets_us() -> None:
    limit = base.Rlimit(type="RLIMIT_NOFILE", soft=RLIM_INFINITY, hard=RLIM_INFINITY)
    free = base.rlimits("rlimits", [limit], HOST)
    assert free == [{"type": "RLIMIT_NOFILE", "soft": RLIM_INFINITY, "hard": RLIM_INFINITY}]
    bound = HostFacts(rlimits_raisable=False, rlimits={"RLIMIT_NOFILE": 4096})
    assert base.rlimits("rlimits", [limit], bound) == [
        {"type": "RLIMIT_NOFILE", "soft": 4096, "hard": 4096}
    ]


@pytest.mark.parametrize(
    "limits",
    [
        [base.Rlimit(type="NOFILE", soft=1, hard=1)],
        [base.Rlimit(type="RLIMIT_CORE", soft=2, hard=1)],
        [base.Rlimit(type="RLIMIT_CORE", soft=-1, hard=1)],
        [base.Rlimit(type="RLIMIT_CORE", soft=0, hard=2**64)],
        [base.Rlimit(type="RLIMIT_CORE", soft=0, hard=0)] * 2,
    ],
)
def test_bad_rlimits(limits: list[base.Rlimit]) -> None:
    with pytest.raises(InvalidArgument, match=r"^rlimits\[[01]\]"):
        base.rlimits("rlimits", limits, HOST)


def test_oom_scores_are_taken_up_to_what_we_may_set() -> None:
    assert base.oom_score_adj("f", -998, HOST) == -998
    assert base.oom_score_adj("f", -998, HostFacts(oom_score_adj_min=0)) == 0
    assert base.oom_score_adj("f", 500, HostFacts(oom_score_adj_min=0)) == 500


@pytest.mark.parametrize("wanted", [-1001, 1001])
def test_oom_scores_out_of_range(wanted: int) -> None:
    with pytest.raises(InvalidArgument, match="not between -1000 and 1000"):
        base.oom_score_adj("linux.resources.oom_score_adj", wanted, HOST)


def test_namespaces_are_new_joined_or_the_hosts() -> None:
    assert base.namespaces({"pid": "", "network": "/n", "ipc": None}) == [
        {"type": "pid"},
        {"type": "network", "path": "/n"},
    ]
