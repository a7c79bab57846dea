"""The real modules and the fakes fit the Protocols (mypy checks it), and the fakes behave."""

from __future__ import annotations

import signal

import pytest

from tests.fakes.kernel import FakeCgroups, FakeMounts, FakeNamespaces, FakeProcesses
from zos_cri.errors import AlreadyExists, DeadlineExceeded, NotFound
from zos_cri.linux import api, mount, namespaces, spawn
from zos_cri.linux.cgrouplimits import Limits
from zos_cri.linux.mount import Mount
from zos_cri.linux.namespaces import IdMap
from zos_cri.linux.spawn import Completed


def test_the_real_ones_are_the_modules(tmp_path):
    kernel = api.Kernel(cgroup_root=str(tmp_path))
    real: list[object] = [kernel.mounts, kernel.namespaces, kernel.processes]
    assert real == [mount, namespaces, spawn]
    assert kernel.cgroups.mode == "v1"


def test_mounts():
    fake = FakeMounts()
    mounts: api.Mounts = fake
    shm = Mount(type="tmpfs", source="shm")
    fake.fail("mount", OSError("full"))
    with pytest.raises(OSError, match="full"):
        mounts.mount(shm, "/a")
    mounts.mount(shm, "/a")
    mounts.mount(shm, "/a/b")
    mounts.mount(shm, "/ab")
    mounts.set_propagation("/a/b", "rshared")
    assert [m.target for m in mounts.mounts_below("/a")] == ["/a", "/a/b"]
    assert mounts.mount_of("/a/b/c").shared is not None
    assert mounts.mount_of("/x").target == "/"
    mounts.unmount("/gone")
    mounts.unmount("/a/b")
    mounts.unmount_tree("/a")
    mounts.make_private_dir("/p")
    assert [target for target, _ in fake.mounted] == ["/ab"]
    assert fake.private_dirs == {"/p"}
    assert fake.count("unmount") == 2


async def test_namespaces():
    fake = FakeNamespaces()
    pins: api.Namespaces = fake
    await pins.pin({"net": "/n", "uts": "/u"}, hostname="h", timeout=1)
    with pytest.raises(AlreadyExists):
        await pins.pin({"net": "/n"}, timeout=1)
    ids = [IdMap(0, 1, 2)]
    await pins.pin_user({"user": "/us"}, uid_mappings=ids, gid_mappings=ids, timeout=1)
    assert pins.kind_of("/us") == "user"
    assert fake.pins["/us"].uid_mappings == tuple(ids)
    assert pins.inode("/n") != pins.inode("/u")
    assert await pins.in_network("/n", divmod, 7, 2, timeout=1) == (3, 1)
    with pytest.raises(NotFound):
        await pins.in_network("/u", int, timeout=1)
    await pins.unpin("/n")
    await pins.unpin("/n")
    assert not pins.is_pinned("/n")
    with pytest.raises(NotFound):
        pins.inode("/n")


async def test_cgroups():
    fake = FakeCgroups(mode="v1")
    groups: api.Cgroups = fake
    groups.create("/a/b")
    assert groups.exists("/a")
    fake.groups["/a/b"] = {3, 1}
    assert groups.pids("/a") == [1, 3]
    with pytest.raises(DeadlineExceeded):
        await groups.remove("/a", timeout=1)
    groups.apply("/a", Limits(pids_limit=1))
    assert fake.limits["/a"] == [Limits(pids_limit=1)]
    assert groups.stats("/a").timestamp_ns == 1
    assert groups.oom_kills("/a") == 0
    assert groups.paths("/a").of("memory") == "/fake/cgroup/a"
    await groups.remove("/a", timeout=1, kill=True)
    assert not groups.exists("/a/b")
    for use in (groups.stats, lambda path: groups.apply(path, Limits())):
        with pytest.raises(NotFound):
            use("/a")


async def test_processes():
    fake = FakeProcesses()
    processes: api.Processes = fake
    with pytest.raises(FileNotFoundError):
        await processes.run(["x"], timeout=1)
    fake.answer("x", b"out", returncode=3)
    assert (await processes.run(["x", "y"], cwd="/c", env={"A": "b"}, timeout=1)).returncode == 3
    assert (fake.ran[-1].argv, fake.ran[-1].cwd, fake.ran[-1].env) == (("x", "y"), "/c", {"A": "b"})

    async def later(ran):
        return Completed(ran.argv, 0, ran.stdin, b"")

    fake.answer("z", call=later)
    assert (await processes.run(["z"], stdin=b"in", timeout=1)).stdout == b"in"
    fake.answer("w", call=lambda ran: Completed(ran.argv, 7, b"", b""))
    assert (await processes.run(["w"], timeout=1)).returncode == 7

    child = await processes.start(["daemon"])
    with pytest.raises(DeadlineExceeded):
        await child.wait(1)
    child.kill(signal.SIGTERM)
    child.kill(signal.SIGTERM)
    assert await child.wait() == -signal.SIGTERM
    child.release()

    pid = fake.begin(start_time=5)
    assert processes.open_pid(pid, 6) is None
    assert processes.start_time(pid) == 5
    held = processes.open_pid(pid, 5)
    assert held is not None
    assert not await held.wait(1)
    held.send_signal(signal.SIGUSR1)
    held.send_signal(signal.SIGKILL)
    assert await held.wait(1)
    with pytest.raises(ProcessLookupError):
        held.send_signal(0)
    with pytest.raises(ProcessLookupError):
        processes.start_time(pid)
    held.close()
