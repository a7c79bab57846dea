from __future__ import annotations

from typing import Any

import pytest

from zos_cri._pb import cri_pb2
from zos_cri.errors import InvalidArgument
from zos_cri.oci import resources
from zos_cri.oci.host import HostFacts

HOST = HostFacts()
Limits = cri_pb2.LinuxContainerResources


def test_all_of_them() -> None:
    given = Limits(
        cpu_period=100_000,
        cpu_quota=50_000,
        cpu_shares=512,
        memory_limit_in_bytes=64 << 20,
        memory_swap_limit_in_bytes=96 << 20,
        cpuset_cpus="0-3,8",
        cpuset_mems="0",
        hugepage_limits=[cri_pb2.HugepageLimit(page_size="2MB", limit=4 << 20)],
        unified={"memory.high": "1", "io.weight": "default 100"},
    )
    assert resources.linux_resources(given, HOST) == {
        "cpu": {"period": 100_000, "quota": 50_000, "shares": 512, "cpus": "0-3,8", "mems": "0"},
        "memory": {"limit": 64 << 20, "swap": 96 << 20},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}],
        "unified": {"io.weight": "default 100", "memory.high": "1"},
    }


def test_what_is_not_specified_is_not_there() -> None:
    assert resources.linux_resources(Limits(), HOST) == {}


def test_no_swap_unless_asked_for() -> None:
    given = Limits(memory_limit_in_bytes=1 << 30)
    assert resources.linux_resources(given, HOST)["memory"]["swap"] == 1 << 30
    without = HostFacts(swap_accounting=False)
    assert resources.linux_resources(given, without)["memory"] == {"limit": 1 << 30}
    unlimited = Limits(memory_limit_in_bytes=1 << 30, memory_swap_limit_in_bytes=-1)
    assert resources.linux_resources(unlimited, HOST)["memory"]["swap"] == -1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cpu_period", 999),
        ("cpu_period", 1_000_001),
        ("cpu_period", -1),
        ("cpu_quota", 999),
        ("cpu_quota", -2),
        ("cpu_shares", 1),
        ("cpu_shares", -5),
        ("cpu_shares", 262_145),
        ("memory_limit_in_bytes", -2),
        ("memory_swap_limit_in_bytes", -2),
        ("memory_swap_limit_in_bytes", 1),
        ("cpuset_cpus", "0-"),
        ("cpuset_cpus", "all"),
        ("cpuset_mems", "0 1"),
        ("unified", {"../memory.max": "1"}),
        ("unified", {"memory": "1"}),
        ("unified", {"memory.max": "\0"}),
        ("hugepage_limits", [cri_pb2.HugepageLimit(page_size="huge")]),
        ("hugepage_limits", [cri_pb2.HugepageLimit(page_size="0MB")]),
    ],
)
def test_out_of_range(field: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=rf"^linux\.resources\.{field}"):
        resources.linux_resources(Limits(**{field: value}), HOST)


def test_swap_is_memory_and_swap_together() -> None:
    given = Limits(memory_limit_in_bytes=100, memory_swap_limit_in_bytes=99)
    with pytest.raises(InvalidArgument, match="memory and swap together"):
        resources.linux_resources(given, HOST)


def test_unified_is_for_v2_and_has_a_bound() -> None:
    with pytest.raises(InvalidArgument, match="unified is for v2"):
        resources.linux_resources(Limits(unified={"a.b": ""}), HostFacts(cgroup_mode="hybrid"))
    many = Limits(unified={f"a.{index}": "" for index in range(200)})
    with pytest.raises(InvalidArgument, match="more than 128 keys"):
        resources.linux_resources(many, HOST)


@pytest.mark.parametrize(
    ("given", "name"),
    [("2MB", "2MB"), ("2Mi", "2MB"), ("2048KB", "2MB"), ("1GiB", "1GB"), ("64K", "64KB")],
)
def test_page_sizes_as_the_files_are_named(given: str, name: str) -> None:
    limits = Limits(hugepage_limits=[cri_pb2.HugepageLimit(page_size=given, limit=7)])
    made = resources.linux_resources(limits, HOST)["hugepageLimits"]
    assert made == [{"pageSize": name, "limit": 7}]


def test_huge_pages_that_nothing_could_limit() -> None:
    limits = Limits(hugepage_limits=[cri_pb2.HugepageLimit(page_size="2MB", limit=7)])
    without = HostFacts(hugetlb=False)
    assert resources.linux_resources(limits, without) == {}
    with pytest.raises(InvalidArgument, match="no hugetlb"):
        resources.linux_resources(limits, without, tolerate_missing_hugetlb=False)
    other = HostFacts(hugepage_sizes=frozenset({"64KB", "1GB"}))
    with pytest.raises(InvalidArgument, match="no huge pages of 2MB, but 1GB, 64KB"):
        resources.linux_resources(limits, other)


SPEC = {
    "process": {"oomScoreAdj": 0},
    "linux": {
        "resources": {
            "devices": [{"allow": False}],
            "cpu": {"period": 100_000, "quota": 50_000},
            "memory": {"limit": 100, "swap": 100},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 1}, {"pageSize": "1GB", "limit": 2}],
        }
    },
}


def test_an_update_leaves_what_it_does_not_specify() -> None:
    update = Limits(
        cpu_quota=70_000,
        memory_limit_in_bytes=200,
        hugepage_limits=[cri_pb2.HugepageLimit(page_size="1GB", limit=3)],
        oom_score_adj=300,
    )
    merged = resources.merge_update(SPEC, update, HOST)
    assert merged["linux"]["resources"] == {
        "devices": [{"allow": False}],
        "cpu": {"period": 100_000, "quota": 70_000},
        "memory": {"limit": 200, "swap": 200},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 1}, {"pageSize": "1GB", "limit": 3}],
    }
    assert merged["process"]["oomScoreAdj"] == 300
    assert SPEC["linux"]["resources"]["memory"] == {"limit": 100, "swap": 100}  # type: ignore[index]


def test_an_update_names_its_own_field() -> None:
    with pytest.raises(InvalidArgument, match=r"^linux\.cpu_shares: "):
        resources.merge_update(SPEC, Limits(cpu_shares=1), HOST)
    with pytest.raises(InvalidArgument, match=r"^linux\.oom_score_adj: "):
        resources.merge_update(SPEC, Limits(oom_score_adj=2000), HOST)


def test_an_empty_update_is_none() -> None:
    assert resources.merge_update(SPEC, Limits(), HOST) == SPEC


def test_what_is_reported_after_an_update() -> None:
    old = Limits(
        cpu_shares=2,
        cpu_quota=5,
        unified={"a.b": "1", "c.d": "2"},
        hugepage_limits=[cri_pb2.HugepageLimit(page_size="2MB", limit=1)],
    )
    update = Limits(
        cpu_shares=3,
        unified={"c.d": "3"},
        hugepage_limits=[cri_pb2.HugepageLimit(page_size="2MB", limit=9)],
    )
    assert resources.merge_reported(old, update) == Limits(
        cpu_shares=3,
        cpu_quota=5,
        unified={"a.b": "1", "c.d": "3"},
        hugepage_limits=[cri_pb2.HugepageLimit(page_size="2MB", limit=9)],
    )
    assert old.cpu_shares == 2


@pytest.mark.parametrize(
    ("parent", "systemd", "expected"),
    [
        ("", False, "/zos-cri/c1"),
        ("", True, "system.slice:zos-cri:c1"),
        ("/kubepods/pod1", False, "/kubepods/pod1/c1"),
        ("kubepods/pod1", False, "/kubepods/pod1/c1"),
        ("/", False, "/c1"),
        ("/kubepods.slice/kubepods-pod1.slice", True, "kubepods-pod1.slice:zos-cri:c1"),
        ("kubepods-pod1.slice", True, "kubepods-pod1.slice:zos-cri:c1"),
        # What the path looks like is no matter: the handler's driver decides.
        ("/kubepods.slice", False, "/kubepods.slice/c1"),
    ],
)
def test_cgroup_paths(parent: str, systemd: bool, expected: str) -> None:
    assert resources.cgroups_path("p", parent, "c1", systemd=systemd) == expected


@pytest.mark.parametrize(
    ("parent", "systemd"),
    [("/a/../..", False), ("../a", True), ("/kubepods/pod1", True), ("/a:b.slice", True)],
)
def test_parents_that_are_none(parent: str, systemd: bool) -> None:
    with pytest.raises(InvalidArgument, match=r"^linux\.cgroup_parent: "):
        resources.cgroups_path("linux.cgroup_parent", parent, "c1", systemd=systemd)
