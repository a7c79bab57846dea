from __future__ import annotations

import errno

import pytest

from zos_cri.errors import FailedPrecondition, InvalidArgument
from zos_cri.linux import cgrouplimits
from zos_cri.linux.cgrouplimits import CgroupError, Limits, Write, carry_out, cpu_weight, plan

V1 = {name: f"/v1/{name}" for name in ("cpu", "cpuset", "memory", "pids", "hugetlb")}
ALL = frozenset({"cpu", "cpuset", "memory", "pids", "hugetlb", "io"})


def v1(limits: Limits) -> list[tuple[str, str]]:
    return [(w.name, w.value) for w in plan("/p", V1, None, on=frozenset(), limits=limits)]


def v2(limits: Limits, where: str = "/v2") -> list[tuple[str, str]]:
    return [(w.name, w.value) for w in plan("/p", {}, where, on=ALL, limits=limits)]


@pytest.mark.parametrize(
    ("shares", "weight"),
    [
        (0, 1),
        (2, 1),
        (3, 2),
        (102, 17),
        (1024, 100),
        (2048, 174),
        (262144, 10000),
        (1 << 20, 10000),
    ],
)
def test_shares_become_a_weight(shares, weight):
    assert cpu_weight(shares) == weight


def test_weights_rise_with_shares_and_stay_in_range():
    weights = [cpu_weight(shares) for shares in range(2, 262145, 97)]
    assert weights == sorted(weights)
    assert 1 <= min(weights) <= max(weights) <= 10000


def test_nothing_to_set():
    assert v1(Limits()) == v2(Limits()) == []
    assert plan("/p", {}, None, on=frozenset(), limits=Limits()) == []


def test_version_1():
    limits = Limits(
        cpu_shares=512,
        cpu_quota_us=50,
        cpu_period_us=100,
        cpuset_cpus="0-1",
        cpuset_mems="0",
        memory_limit=10,
        memory_swap_limit=20,
        pids_limit=0,
        hugepage_limits={"2MB": 4},
    )
    assert v1(limits) == [
        ("cpu.shares", "512"),
        ("cpu.cfs_period_us", "100"),
        ("cpu.cfs_quota_us", "50"),
        ("cpuset.cpus", "0-1"),
        ("cpuset.mems", "0"),
        ("memory.limit_in_bytes", "10"),
        ("memory.memsw.limit_in_bytes", "20"),
        ("pids.max", "max"),
        ("hugetlb.2MB.limit_in_bytes", "4"),
    ]


def test_version_2():
    limits = Limits(
        cpu_shares=1024,
        cpu_quota_us=50,
        cpuset_cpus="0-1",
        memory_limit=10,
        memory_swap_limit=25,
        pids_limit=7,
        hugepage_limits={"2MB": 4},
        unified={"memory.high": "9", "io.weight": "default 10"},
    )
    assert v2(limits) == [
        ("cpu.weight", "100"),
        ("cpu.max", "50 100000"),
        ("cpuset.cpus", "0-1"),
        ("memory.max", "10"),
        ("memory.swap.max", "15"),
        ("pids.max", "7"),
        ("hugetlb.2MB.max", "4"),
        ("memory.high", "9"),
        ("io.weight", "default 10"),
    ]


def test_quota_and_period_of_version_2_by_themselves(tmp_path):
    (tmp_path / "cpu.max").write_text("300 1000\n")
    where = str(tmp_path)
    assert v2(Limits(cpu_quota_us=-1), where) == [("cpu.max", "max 1000")]
    assert v2(Limits(cpu_period_us=500), where) == [("cpu.max", "300 500")]
    assert v1(Limits(cpu_quota_us=-1)) == [("cpu.cfs_quota_us", "-1")]


def test_no_limit_of_memory():
    assert v1(Limits(memory_limit=-1)) == [
        ("memory.memsw.limit_in_bytes", "-1"),
        ("memory.limit_in_bytes", "-1"),
    ]
    assert v2(Limits(memory_limit=-1)) == [("memory.max", "max"), ("memory.swap.max", "max")]
    assert v2(Limits(memory_limit=5, memory_swap_limit=0)) == [("memory.max", "5")]


@pytest.mark.parametrize(
    ("now", "first"),
    [("100", "memory.memsw.limit_in_bytes"), ("1000", "memory.limit_in_bytes")],
)
def test_the_order_of_memory_and_swap_on_version_1(tmp_path, now, first):
    (tmp_path / "memory.memsw.limit_in_bytes").write_text(f"{now}\n")
    limits = Limits(memory_limit=500, memory_swap_limit=600)
    writes = plan("/p", {"memory": str(tmp_path)}, None, on=frozenset(), limits=limits)
    assert writes[0].name == first
    assert len(writes) == 2


def test_swap_on_version_2_needs_memory(tmp_path):
    (tmp_path / "memory.max").write_text("100\n")
    assert v2(Limits(memory_swap_limit=150), str(tmp_path)) == [("memory.swap.max", "50")]
    with pytest.raises(InvalidArgument, match="needs a memory limit"):
        v2(Limits(memory_swap_limit=150))
    with pytest.raises(InvalidArgument, match="150 is less than the memory limit 200"):
        v2(Limits(memory_limit=200, memory_swap_limit=150))


def test_a_missing_controller_is_named():
    with pytest.raises(FailedPrecondition, match="cgroup /p: this host has no pids controller"):
        plan("/p", {}, "/v2", on=frozenset({"cpu"}), limits=Limits(pids_limit=1))


@pytest.mark.parametrize("name", ["cgroup.procs", "../x.y", "memory", "a/b.c"])
def test_a_unified_name_that_is_none(name):
    with pytest.raises(InvalidArgument, match="isn't a limit's name"):
        v2(Limits(unified={name: "1"}))


def test_unified_needs_version_2():
    with pytest.raises(FailedPrecondition, match=r"memory\.high needs cgroup version 2"):
        v1(Limits(unified={"memory.high": "1"}))


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.EINVAL, InvalidArgument, r"^w=1: no$"),
        (errno.ERANGE, InvalidArgument, r"^w=1: no$"),
        (errno.ENOENT, FailedPrecondition, "the kernel lacks it"),
        (errno.EBUSY, FailedPrecondition, "more is in use now"),
        (errno.EACCES, CgroupError, r"^w=1: no$"),
    ],
)
def test_refusals(monkeypatch, number, kind, message):
    def refuse(_path, _text):
        raise OSError(number, "no")

    monkeypatch.setattr(cgrouplimits, "write_file", refuse)
    with pytest.raises(kind, match=message):
        carry_out([Write("/d", "f", "1", "w")])


def test_a_period_is_tried_again_after_its_quota(monkeypatch):
    tried = []

    def write(path, text):
        tried.append((path, text))
        if path.endswith("period_us") and len(tried) == 1:
            raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(cgrouplimits, "write_file", write)
    writes = plan("/p", V1, None, on=frozenset(), limits=Limits(cpu_quota_us=1, cpu_period_us=2))
    carry_out(writes)
    assert [text for _, text in tried] == ["2", "1", "2"]

    def never(path, _text):
        if path.endswith("period_us"):
            raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(cgrouplimits, "write_file", never)
    with pytest.raises(InvalidArgument, match=r"cpu\.cfs_period_us=2: no"):
        carry_out(writes)


def test_writing_makes_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        cgrouplimits.write_file(str(tmp_path / "f"), "1")
    assert not (tmp_path / "f").exists()
