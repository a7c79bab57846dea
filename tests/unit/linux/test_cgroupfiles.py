from __future__ import annotations

import os
import resource
import secrets
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.descriptors import open_descriptors
from zos_cri.errors import NotFound
from zos_cri.linux.cgroup import CgroupPaths, Cgroups
from zos_cri.linux.cgroupfiles import Budget, CgroupFiles, CgroupReader

if TYPE_CHECKING:
    from collections.abc import Iterator


def open_below(directory: Path) -> int:
    """Our own open files in a directory."""
    return sum(leads_to.startswith(str(directory)) for _, leads_to in open_descriptors())


@pytest.fixture
def v2(tmp_path: Path) -> CgroupPaths:
    """A cgroup of version 2 made of plain files."""
    for name, text in {
        "cpu.stat": "usage_usec 5\nuser_usec 3\nsystem_usec 2\n",
        "memory.stat": "anon 10\nfile 20\ninactive_file 4\n",
        "memory.current": "50\n",
        "memory.max": "max\n",
        "pids.current": "7\n",
        "cgroup.procs": "1\n2\n3\n",
        "cpu.pressure": "some avg10=1.00 avg60=0.00 avg300=0.00 total=9\n",
    }.items():
        (tmp_path / name).write_text(text)
    return CgroupPaths(
        path="/a", v1={}, v2=str(tmp_path), v2_controllers=frozenset({"memory", "pids"})
    )


def test_version_2(v2: CgroupPaths) -> None:
    reader = CgroupReader(v2, Budget(100))
    stats = reader.read()
    assert stats.cpu is not None
    assert stats.memory is not None
    assert (stats.cpu.usage_ns, stats.pids, reader.processes()) == (5000, 7, 3)
    assert (stats.memory.usage, stats.memory.working_set, stats.memory.limit) == (50, 46, None)
    assert stats.pressure["cpu"].some.total_ns == 9000
    reader.close()


def test_open_files_show_what_is_in_them_now(v2: CgroupPaths, tmp_path: Path) -> None:
    reader = CgroupReader(v2, Budget(100))
    reader.read()
    with (tmp_path / "pids.current").open("r+") as file:
        file.write("9\n")
    assert reader.read().pids == 9
    reader.close()


def test_files_are_kept_within_the_budget(v2: CgroupPaths, tmp_path: Path) -> None:
    budget = Budget(2)
    reader = CgroupReader(v2, budget)
    assert reader.read() == reader.read()
    assert open_below(tmp_path) == budget.used == 2
    reader.close()
    reader.close()
    assert open_below(tmp_path) == budget.used == 0


def test_none_is_kept_without_a_budget(v2: CgroupPaths, tmp_path: Path) -> None:
    reader = CgroupReader(v2, Budget(0))
    assert reader.read().pids == 7
    assert open_below(tmp_path) == 0


def test_missing_files_cost_nothing_of_the_budget(v2: CgroupPaths, tmp_path: Path) -> None:
    budget = Budget(100)
    files = CgroupFiles(str(tmp_path), budget)
    assert files.read("memory.peak") is None
    assert files.read("memory.peak") is None
    assert budget.used == 0


def test_a_file_longer_than_one_read(tmp_path: Path) -> None:
    (tmp_path / "memory.stat").write_text("x" * 40_000)
    files = CgroupFiles(str(tmp_path), Budget(1))
    assert files.read("memory.stat") == "x" * 40_000
    files.close()


def test_a_cgroup_that_is_gone(tmp_path: Path) -> None:
    gone = CgroupPaths(path="/a", v1={}, v2=str(tmp_path / "gone"))
    with pytest.raises(NotFound, match="/a"):
        CgroupReader(gone, Budget(10)).read()
    with pytest.raises(NotFound, match="/a"):
        CgroupReader(CgroupPaths(path="/a", v1={}, v2=None), Budget(10)).read()


def test_a_budget_leaves_descriptors_for_others() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert Budget.of_process(10).limit == min(10, soft // 4)
    if soft != resource.RLIM_INFINITY:
        assert Budget.of_process(1 << 40).limit == soft // 4


@pytest.fixture
def group() -> Iterator[str]:
    path = f"/zt{secrets.token_hex(4)}"
    cgroups = Cgroups()
    cgroups.create(path)
    yield path
    for directory in cgroups.paths(path).directories:
        if os.path.isdir(directory):
            os.rmdir(directory)


@pytest.mark.root
def test_processes_that_come_are_seen_at_once(group: str) -> None:
    where = Cgroups().paths(group)
    reader = CgroupReader(where, Budget(100))
    sleepers = []
    try:
        for count in (1, 2, 3):
            sleepers.append(subprocess.Popen(["sleep", "60"]))
            for directory in where.directories:
                Path(directory, "cgroup.procs").write_text(str(sleepers[-1].pid))
            assert (reader.processes(), reader.read().pids) == (count, count)
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()
        reader.close()


@pytest.mark.root
def test_the_kernels_own(group: str) -> None:
    cgroups = Cgroups()
    where = cgroups.paths(group)
    reader = CgroupReader(where, Budget(100))
    kept, anew = reader.read(), cgroups.stats(group)
    assert kept.memory is not None
    assert (kept.pids, kept.memory.limit) == (0, None)
    assert kept.cpu is not None
    assert anew.cpu is not None
    assert kept.cpu.usage_ns == anew.cpu.usage_ns
    assert set(kept.pressure) == set(anew.pressure)
    assert reader.processes() == 0
    for directory in where.directories:
        os.rmdir(directory)
    with pytest.raises(NotFound, match=group):  # though the files are open still
        reader.read()
    reader.close()
