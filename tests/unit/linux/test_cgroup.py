from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import uuid
from pathlib import Path

import pytest

from zos_cri.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound
from zos_cri.linux import cgroup, cgrouplimits, cgroupstats, spawn
from zos_cri.linux.cgroup import Cgroups
from zos_cri.linux.cgrouplimits import CgroupError, Limits
from zos_cri.linux.pidfd import readable

SYS = "/sys/fs/cgroup"
UNIFIED = SYS if os.path.exists(f"{SYS}/cgroup.controllers") else f"{SYS}/unified"

root = pytest.mark.root
needs_v1 = pytest.mark.skipif(
    not os.path.isdir(f"{SYS}/memory/"), reason="the host has no cgroup version 1"
)


@pytest.fixture(params=["host", "v2"])
def groups(request):
    """The host's cgroups, and a version 2 tree of our own (controllers as the host gives them)."""
    if request.param == "host":
        yield Cgroups(SYS)
        return
    if not os.path.exists(f"{UNIFIED}/cgroup.controllers"):
        pytest.skip("the host has no cgroup version 2")
    own = f"{UNIFIED}/zos-test-{uuid.uuid4().hex[:12]}"
    os.mkdir(own)
    yield Cgroups(own)
    os.rmdir(own)


@pytest.fixture
async def path(groups):
    name = f"/zos-test-{uuid.uuid4().hex[:12]}"
    yield name
    await groups.remove(name, timeout=10, kill=True)
    assert not groups.exists(name)


@pytest.fixture
async def sleepers(groups):
    """Starts processes inside a cgroup."""
    started = []

    async def start(path: str, command: str = "sleep 60") -> spawn.Process:
        joins = "".join(
            f"echo $$ > {directory}/cgroup.procs && "
            for directory in groups.paths(path).directories
        )
        read_end, write_end = os.pipe()
        process = await spawn.start(
            ["sh", "-c", f"{joins} echo in && exec {command} > /dev/null"],
            stdout=write_end,
        )
        started.append(process)
        os.close(write_end)
        assert await readable(read_end, 10)
        assert os.read(read_end, 10) == b"in\n", "it could not join the cgroup"
        os.close(read_end)
        return process

    yield start
    for process in started:
        process.kill()
        await process.wait(10)


# paths and modes


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "a",
        "a/b",
        "/a/../b",
        "/..",
        "/./a",
        "//a",
        "/a//b",
        "/a/",
        "/a\n",
        "/a\0",
        "/" + "x" * 5000,
    ],
)
def test_bad_paths_are_refused(tmp_path, bad):
    groups = Cgroups(str(tmp_path))
    for use in (groups.paths, groups.exists, groups.create, groups.pids, groups.stats):
        with pytest.raises(InvalidArgument, match="cgroup"):
            use(bad)


async def test_the_root_is_never_removed_or_killed(tmp_path):
    groups = Cgroups(str(tmp_path))
    with pytest.raises(InvalidArgument, match="can't be removed"):
        await groups.remove("/", timeout=1)
    with pytest.raises(InvalidArgument, match="nobody wants"):
        await groups.kill_all("/", timeout=1)


def hierarchy(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "cgroup.procs").touch()


def test_version_2(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    groups = Cgroups(f"{tmp_path}/")
    assert groups.mode == "v2"
    assert groups.controllers == {"cpu", "memory", "pids"}
    where = groups.paths("/a/b")
    assert where.directories == (f"{tmp_path}/a/b",)
    assert where.of("memory") == f"{tmp_path}/a/b"
    assert where.of("io") is None
    assert groups.paths("/").v2 == str(tmp_path)


def test_version_1_with_hierarchies_mounted_together(tmp_path):
    for name in ("cpu,cpuacct", "memory", "systemd"):
        hierarchy(tmp_path / name)
    (tmp_path / "cpu").symlink_to("cpu,cpuacct")
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").touch()
    groups = Cgroups(str(tmp_path))
    assert groups.mode == "v1"
    assert groups.controllers == {"cpu", "cpuacct", "memory"}
    where = groups.paths("/a")
    assert where.v2 is None
    assert where.of("cpu") == where.of("cpuacct") == f"{tmp_path}/cpu,cpuacct/a"
    assert sorted(where.directories) == [
        f"{tmp_path}/cpu,cpuacct/a",
        f"{tmp_path}/memory/a",
        f"{tmp_path}/systemd/a",
    ]


def test_hybrid(tmp_path):
    hierarchy(tmp_path / "memory")
    hierarchy(tmp_path / "unified")
    (tmp_path / "unified" / "cgroup.controllers").write_text("hugetlb\n")
    groups = Cgroups(str(tmp_path))
    assert groups.mode == "hybrid"
    where = groups.paths("/a")
    assert where.of("memory") == f"{tmp_path}/memory/a"
    assert where.of("hugetlb") == where.v2 == f"{tmp_path}/unified/a"


def test_a_host_without_cgroups(tmp_path):
    groups = Cgroups(str(tmp_path / "gone"))
    assert (groups.mode, groups.controllers) == ("v1", frozenset())
    with pytest.raises(NotFound, match="cgroup /a: not there"):
        groups.stats("/a")
    with pytest.raises(NotFound, match="cgroup /a: not there"):
        groups.apply("/a", Limits())
    assert groups.pids("/a") == []
    assert groups.oom_kills("/a") == 0


# making


def v2_tree(tmp_path, *, below: str = "") -> Cgroups:
    (tmp_path / "cgroup.controllers").write_text("cpu io memory\n")
    (tmp_path / "cgroup.subtree_control").write_text(below)
    return Cgroups(str(tmp_path))


def test_creating_turns_on_the_controllers_above(tmp_path):
    groups = v2_tree(tmp_path, below="memory\n")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "cgroup.controllers").write_text("memory cpu\n")
    (tmp_path / "a" / "cgroup.subtree_control").touch()
    groups.create("/a/b")
    assert (tmp_path / "cgroup.subtree_control").read_text().startswith("+cpu +io")
    assert (tmp_path / "a" / "cgroup.subtree_control").read_text() == "+cpu +memory"
    assert (tmp_path / "a" / "b").is_dir()


def test_a_controller_that_cannot_be_turned_on_is_told_and_no_error(tmp_path, monkeypatch, caplog):
    groups = v2_tree(tmp_path)
    written = []

    def write(path, text):
        if "+cpu" in text:
            raise OSError(22, "Invalid argument", path)
        written.append(text)

    monkeypatch.setattr(cgroup, "write_file", write)
    groups.create("/a")
    assert written == ["+io", "+memory"]
    [record] = caplog.records
    assert record.__dict__["fields"]["controller"] == "cpu"


def test_a_new_cpuset_gets_its_parents(tmp_path):
    hierarchy(tmp_path / "cpuset")
    (tmp_path / "cpuset" / "cpuset.cpus").write_text("0-3\n")
    (tmp_path / "cpuset" / "cpuset.mems").write_text("\n")
    child = tmp_path / "cpuset" / "a"
    child.mkdir()
    (child / "cpuset.cpus").touch()
    (child / "cpuset.mems").touch()
    Cgroups(str(tmp_path)).create("/a")
    assert (child / "cpuset.cpus").read_text() == "0-3"
    assert (child / "cpuset.mems").read_text() == ""


def test_a_failed_creation_leaves_nothing(tmp_path):
    hierarchy(tmp_path / "cpu")
    hierarchy(tmp_path / "memory")
    (tmp_path / "memory" / "a").touch()  # no directory can be made below it
    with pytest.raises(CgroupError, match="memory/a/b: can't be made: Not a directory"):
        Cgroups(str(tmp_path)).create("/a/b")
    assert not (tmp_path / "cpu" / "a").exists()


@root
async def test_create_exists_remove(groups, path):
    assert not groups.exists(path)
    groups.create(f"{path}/pod/box")
    groups.create(f"{path}/pod/box")
    assert groups.exists(f"{path}/pod/box")
    assert all(map(os.path.isdir, groups.paths(f"{path}/pod/box").directories))
    await groups.remove(path, timeout=5)
    assert not groups.exists(path)
    await groups.remove(path, timeout=5)


# processes


@root
async def test_pids_are_found_below_too(groups, path, sleepers):
    groups.create(f"{path}/a")
    groups.create(f"{path}/b/c")
    one, two = await sleepers(f"{path}/b/c"), await sleepers(f"{path}/a")
    assert groups.pids(path) == sorted([one.pid, two.pid])
    assert groups.pids(f"{path}/a") == [two.pid]
    assert groups.pids(f"{path}/gone") == []


@root
async def test_removal_kills_nobody_unasked_and_names_who_is_inside(groups, path, sleepers):
    groups.create(path)
    process = await sleepers(path)
    with pytest.raises(DeadlineExceeded) as caught:
        await groups.remove(path, timeout=0.1)
    assert str(caught.value) == (
        f"cgroup {path}: can't be removed within 0.1 s, pids {process.pid} (sleep, S) in it"
    )
    assert process.returncode is None


@root
async def test_removal_waits_for_an_end(groups, path, sleepers):
    groups.create(f"{path}/a")
    process = await sleepers(f"{path}/a")
    removal = asyncio.create_task(groups.remove(path, timeout=10))
    await asyncio.sleep(0.02)
    assert not removal.done()
    process.kill()
    await removal
    assert not groups.exists(path)


@root
async def test_killing_takes_everybody_below(groups, path, sleepers):
    for below in ("/a/b", "/c"):
        groups.create(path + below)
    processes = [await sleepers(path + below) for below in ("/a/b", "/a/b", "/c")]
    # SIGTERM is ignored and children come and go: it must end all the same
    processes.append(
        await sleepers(f"{path}/c", "sh -c 'trap : TERM; while :; do sleep 0.01; done'")
    )
    await groups.kill_all(path, timeout=10)
    assert groups.pids(path) == []
    for process in processes:
        assert await process.wait(5) == -signal.SIGKILL
    await groups.kill_all(path, timeout=10)


@root
async def test_removal_with_kill(groups, path, sleepers):
    groups.create(f"{path}/a")
    process = await sleepers(f"{path}/a")
    await groups.remove(path, timeout=10, kill=True)
    assert await process.wait(5) == -signal.SIGKILL


@root
@needs_v1
async def test_frozen_processes_are_killed(sleepers, path, groups):
    if groups.mode == "v2":
        pytest.skip("version 1 only")
    groups.create(path)
    process = await sleepers(path)
    freezer = Path(groups.paths(path).v1["freezer"])
    (freezer / "freezer.state").write_text("FROZEN")
    await groups.kill_all(path, timeout=10)
    assert await process.wait(5) == -signal.SIGKILL


@root
async def test_killing_without_the_kernels_help(monkeypatch, sleepers, path, groups):
    real = cgrouplimits.write_file

    def old_kernel(name, text):
        if name.endswith("cgroup.kill"):
            raise OSError(2, "No such file or directory", name)
        real(name, text)

    monkeypatch.setattr("zos_cri.linux.cgroup.write_file", old_kernel)
    monkeypatch.setattr(cgroup, "_has_kill", lambda _directory: False)
    groups.create(path)
    process = await sleepers(path)
    await groups.kill_all(path, timeout=10)
    assert await process.wait(5) == -signal.SIGKILL


@root
async def test_who_does_not_die_is_named(groups, path, sleepers, monkeypatch):
    groups.create(path)
    await sleepers(path)
    with monkeypatch.context() as patch:
        patch.setattr(Cgroups, "_kill_once", lambda _self, _where: None)
        with pytest.raises(DeadlineExceeded, match=r"not empty 0\.05 s after SIGKILL, pids \d+"):
            await groups.kill_all(path, timeout=0.05)


def test_many_pids_are_shortened():
    text = cgroup._describe([os.getpid(), *range(2**22 + 1, 2**22 + 12)])
    assert f"{os.getpid()} (" in text
    assert text.endswith(" and 4 more in it")
    assert "(gone)" in text
    assert cgroup._describe([]) == "though no process is in it"


def test_a_process_outside_our_pid_namespace_is_left_out(tmp_path):
    (tmp_path / "cgroup.controllers").touch()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "cgroup.procs").write_text("0\n12\n0\n7\n")
    assert Cgroups(str(tmp_path)).pids("/a") == [7, 12]


def test_other_failures_of_rmdir_are_told(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()

    def refuse(path):
        raise PermissionError(1, "no", path)

    monkeypatch.setattr(os, "rmdir", refuse)
    with pytest.raises(PermissionError):
        cgroup._remove_tree(str(tmp_path / "a"))


# reading


@root
async def test_real_stats(groups, path, sleepers):
    groups.create(f"{path}/a")
    block = "sh -c 'x=$(head -c 8000000 /dev/zero | tr \"\\\\0\" x); sleep 60'"
    process = await sleepers(f"{path}/a", block)
    here = groups.paths(path)
    deadline = asyncio.get_running_loop().time() + 10
    while True:
        found = groups.stats(path)
        assert found.cpu is not None
        enough = found.cpu.usage_ns > 1_000_000
        if found.memory is not None:
            enough = enough and found.memory.rss > 8_000_000
        if enough or asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(0.01)
    assert enough
    if here.of("memory"):
        assert found.memory is not None
        assert found.memory.usage >= found.memory.working_set > 8_000_000
        assert found.memory.page_faults > 1000
        assert found.memory.limit is None
    else:
        assert found.memory is None
    if here.of("pids"):
        assert found.pids is not None
        assert found.pids >= 1
        assert found.pids_limit is None
    if here.v2:
        assert set(found.pressure) == {"cpu", "memory", "io"}
        assert found.pressure["cpu"].some.avg10 >= 0
    assert found.oom_kills == 0
    process.kill()


@root
@needs_v1
async def test_limits_and_an_oom_kill_on_version_1(path, groups, sleepers):
    if "memory" not in groups.paths(path).v1:
        pytest.skip("version 1 only")
    groups.create(f"{path}/a")
    groups.apply(
        path,
        Limits(
            cpu_shares=512,
            cpu_quota_us=50_000,
            cpu_period_us=200_000,
            memory_limit=32 << 20,
            memory_swap_limit=48 << 20,
            pids_limit=50,
        ),
    )
    groups.apply(f"{path}/a", Limits(cpuset_cpus="0", cpuset_mems="0"))
    leaf = groups.paths(f"{path}/a").v1["cpuset"]
    assert cgroupstats.read_text(leaf, "cpuset.cpus") == "0\n"
    found = groups.stats(path)
    assert found.memory is not None
    assert (found.memory.limit, found.memory.swap_limit) == (32 << 20, 16 << 20)
    assert found.pids_limit == 50
    groups.apply(path, Limits(memory_limit=64 << 20, memory_swap_limit=64 << 20))  # raised
    groups.apply(path, Limits(memory_limit=16 << 20, memory_swap_limit=16 << 20))  # lowered
    cpu = Path(groups.paths(path).v1["cpu"])
    assert (cpu / "cpu.shares").read_text() == "512\n"
    assert (cpu / "cpu.cfs_quota_us").read_text() == "50000\n"
    groups.apply(f"{path}/a", Limits(cpu_quota_us=25_000, cpu_period_us=100_000))
    # a third of the time with the old period: only once the quota is written does it fit
    groups.apply(f"{path}/a", Limits(cpu_quota_us=5_000, cpu_period_us=50_000))
    with pytest.raises(InvalidArgument, match=r"cpu.cfs_quota_us=90000: Invalid argument"):
        groups.apply(f"{path}/a", Limits(cpu_quota_us=90_000))
    process = await sleepers(f"{path}/a", "head -c 64m /dev/zero | tail")
    await process.wait(30)
    assert groups.oom_kills(path) == groups.stats(path).oom_kills >= 1
    await groups.kill_all(path, timeout=10)
    groups.apply(path, Limits(memory_limit=-1, cpu_quota_us=-1, pids_limit=-1))
    found = groups.stats(path)
    assert found.memory is not None
    assert (found.memory.limit, found.memory.swap_limit, found.pids_limit) == (None, None, None)


@root
async def test_what_the_host_cannot_limit(groups, path):
    if groups.mode == "v2" and "memory" in groups.controllers:
        pytest.skip("the host's version 2 tree has the memory controller")
    groups.create(path)
    with pytest.raises(FailedPrecondition, match=r"no such_x controller|needs cgroup version 2"):
        groups.apply(path, Limits(unified={"memory.high": "1"}))


def test_what_is_left_of_oom_kills_where_a_scope_is_gone(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("memory\n")
    scope = tmp_path / "a.slice/b.slice/c.scope"
    scope.mkdir(parents=True)
    for directory, kills in ((scope, 1), (scope.parent, 3), (scope.parents[1], 4)):
        (directory / "memory.events").write_text(f"oom 9\noom_kill {kills}\n")
    groups = Cgroups(str(tmp_path))
    path = "/a.slice/b.slice/c.scope"
    found = groups.oom_counts(path)
    assert found.pop("") >= 0
    assert found == {path: 1, "/a.slice/b.slice": 3, "/a.slice": 4}
    shutil.rmtree(scope)
    assert set(groups.oom_counts(path)) == {"/a.slice/b.slice", "/a.slice", ""}
    assert groups.oom_counts("/a.slice") == {"/a.slice": 4}
    assert groups.oom_counts("/gone") == {}


def test_reading_is_the_controllers_own_version(tmp_path):
    """Hybrid with the memory controller in version 2: its files are read there."""
    hierarchy(tmp_path / "cpu,cpuacct" / "a")
    (tmp_path / "cpu,cpuacct" / "cgroup.procs").touch()
    hierarchy(tmp_path / "unified" / "a")
    (tmp_path / "unified" / "cgroup.controllers").write_text("memory hugetlb io pids\n")
    (tmp_path / "cpu,cpuacct" / "a" / "cpuacct.usage").write_text("77\n")
    v2 = tmp_path / "unified" / "a"
    (v2 / "memory.current").write_text("4096\n")
    (v2 / "memory.events").write_text("oom_kill 3\n")
    (v2 / "pids.current").write_text("5\n")
    (v2 / "pids.max").write_text("max\n")
    (v2 / "io.stat").write_text("8:0 rbytes=1 wbytes=2 rios=3 wios=4\n")
    found = Cgroups(str(tmp_path)).stats("/a")
    assert found.cpu is not None
    assert found.cpu.usage_ns == 77
    assert found.memory is not None
    assert found.memory.usage == 4096
    assert (found.oom_kills, found.pids, found.pids_limit) == (3, 5, None)
    assert found.io is not None
    assert found.io[0].read_bytes == 1
    assert found.hugetlb == ()


def test_hugetlb_of_version_1(tmp_path):
    hierarchy(tmp_path / "hugetlb" / "a")
    (tmp_path / "hugetlb" / "cgroup.procs").touch()
    (tmp_path / "hugetlb" / "a" / "hugetlb.2MB.usage_in_bytes").write_text("2097152\n")
    found = Cgroups(str(tmp_path)).stats("/a")
    assert [(h.page_size, h.usage) for h in found.hugetlb] == [("2MB", 2097152)]
    assert (found.cpu, found.memory, found.io, found.pids) == (None, None, None, None)


def test_suppressed_errors_are_only_the_expected(tmp_path):
    with contextlib.suppress(OSError):
        cgroup._try_write(None, "x", "y")
    cgroup._try_write(str(tmp_path / "gone"), "freezer.state", "THAWED")
