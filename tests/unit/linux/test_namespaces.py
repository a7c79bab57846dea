from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from zos_cri.errors import (
    AlreadyExists,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from zos_cri.linux import blocking, mount, namespaces, spawn, syscalls
from zos_cri.linux.namespaces import IdMap, NamespaceError

root = pytest.mark.root
MAPS: dict[str, Any] = {
    "uid_mappings": [IdMap(0, 100_000, 65_536)],
    "gid_mappings": [IdMap(0, 200_000, 65_536)],
}


@pytest.fixture
def pins(tmp_path):
    """A directory for pins, on a mount of its own; afterwards nothing of it is left."""
    base = tmp_path / "pins"
    mount.make_private_dir(str(base))
    yield base
    mount.unmount_tree(str(base), lazy=True)


def at(base, *kinds: str) -> dict[str, str]:
    return {kind: str(base / "pod" / kind) for kind in kinds}


def nothing_below(base) -> bool:
    return [m.target for m in mount.mounts_below(str(base))] == [str(base)] and not list(
        base.iterdir()
    )


async def inside(paths: dict[str, str], *argv: str) -> str:
    """What a command says that runs in pinned namespaces."""
    enter = [f"--{kind}={path}" for kind, path in paths.items()]
    done = await spawn.run(["nsenter", *enter, *argv], timeout=20)
    assert done.returncode == 0, done.failure()
    return done.stdout.decode()


# pure


@pytest.mark.parametrize(
    ("name", "path", "kind"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward", "net"),
        ("net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding", "net"),
        ("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding", "net"),
        ("kernel.shm_rmid_forced", "kernel/shm_rmid_forced", "ipc"),
        ("kernel.msgmax", "kernel/msgmax", "ipc"),
        ("kernel.sem", "kernel/sem", "ipc"),
        ("fs.mqueue.msg_max", "fs/mqueue/msg_max", "ipc"),
        ("kernel.domainname", "kernel/domainname", "uts"),
        ("kernel.panic", "kernel/panic", None),
        ("vm.swappiness", "vm/swappiness", None),
        ("fs.mqueuex.y", "fs/mqueuex/y", None),
    ],
)
def test_sysctls_have_a_file_and_a_namespace(name, path, kind):
    assert namespaces.sysctl_path(name) == f"/proc/sys/{path}"
    assert namespaces.sysctl_kind(name) == kind


@pytest.mark.parametrize("name", ["", "net", "net..x", "net/../../x", "net.a/b.../..", "net.x\0"])
def test_what_is_no_sysctl(name):
    with pytest.raises(InvalidArgument, match="not a sysctl's name"):
        namespaces.sysctl_path(name)


@pytest.mark.parametrize(
    ("kinds", "setup", "message"),
    [
        (("pid",), {}, "'pid' can't be pinned"),
        (("net",), {"hostname": "x"}, "hostname: the pod has no uts"),
        (("uts",), {"hostname": "x" * 65}, "1 to 64 bytes"),
        (("uts",), {"hostname": ""}, "1 to 64 bytes"),
        (("uts",), {"sysctls": {"vm.swappiness": "1"}}, "belongs to no namespace"),
        (("uts",), {"sysctls": {"net.ipv4.ip_forward": "1"}}, "has no net namespace"),
    ],
)
async def test_what_cannot_be_had_is_refused_before_anything_is_made(
    tmp_path, kinds, setup, message
):
    with pytest.raises(InvalidArgument, match=message):
        await namespaces.pin(at(tmp_path, *kinds), timeout=5, **setup)
    with pytest.raises(InvalidArgument, match=message):
        await namespaces.pin_user(at(tmp_path, "user", *kinds), **MAPS, timeout=5, **setup)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "mappings",
    [[], [IdMap(0, 0, 0)], [IdMap(-1, 0, 1)], [IdMap(0, 2**32 - 1, 1)], [IdMap(0, 0, 1)] * 341],
)
async def test_mappings_are_checked(tmp_path, mappings):
    with pytest.raises(InvalidArgument, match=r"^gid_mappings"):
        await namespaces.pin_user(
            at(tmp_path, "user"),
            uid_mappings=[IdMap(0, 0, 1)],
            gid_mappings=mappings,
            timeout=5,
        )


async def test_a_user_pin_needs_its_path(tmp_path):
    with pytest.raises(InvalidArgument, match="without a path"):
        await namespaces.pin_user(at(tmp_path, "net"), **MAPS, timeout=5)


def test_what_is_not_pinned(tmp_path):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    assert namespaces.kind_of(str(tmp_path / "file")) is None
    assert namespaces.kind_of(str(tmp_path / "fifo")) is None
    assert namespaces.kind_of(str(tmp_path / "gone")) is None
    assert namespaces.kind_of(str(tmp_path / "file" / "x")) is None
    assert not namespaces.is_pinned(str(tmp_path))
    with pytest.raises(NotFound, match="no namespace is pinned"):
        namespaces.inode(str(tmp_path / "file"))


def test_a_refused_question_is_an_error(monkeypatch):
    def refuse(*_args):
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr("fcntl.ioctl", refuse)
    with pytest.raises(PermissionError):
        namespaces.kind_of("/proc/self/ns/net")


def test_our_own_namespaces_have_kinds():
    for kind in namespaces.KINDS:
        assert namespaces.kind_of(f"/proc/self/ns/{kind}") == kind
    link = os.readlink("/proc/self/ns/net")
    assert f"net:[{namespaces.inode('/proc/self/ns/net')}]" == link


# on the kernel


@root
async def test_pinned_namespaces_are_new_and_set_up(pins):
    ours = {kind: namespaces.inode(f"/proc/self/ns/{kind}") for kind in ("net", "ipc", "uts")}
    paths = at(pins, "net", "ipc", "uts")
    await namespaces.pin(
        paths,
        hostname="pod-1",
        sysctls={
            "net.ipv4.ip_unprivileged_port_start": "0",
            "kernel.shm_rmid_forced": "1",
            "fs.mqueue.msg_max": "12",
            "kernel.domainname": "cluster.local",
        },
        timeout=10,
    )
    for kind, path in paths.items():
        assert namespaces.kind_of(path) == kind
        assert namespaces.inode(path) != ours[kind]
        info = mount.mount_of(path)
        assert (info.target, info.type, info.unbindable) == (path, "nsfs", True)
        assert namespaces.inode(f"/proc/self/ns/{kind}") == ours[kind]  # we stayed where we were
    said = await inside(
        paths,
        "sh",
        "-c",
        "cat /proc/sys/kernel/hostname /proc/sys/net/ipv4/ip_unprivileged_port_start "
        "/proc/sys/kernel/shm_rmid_forced /proc/sys/fs/mqueue/msg_max /proc/sys/kernel/domainname",
    )
    assert said.split() == ["pod-1", "0", "1", "12", "cluster.local"]
    for path in paths.values():
        await namespaces.unpin(path)
        await namespaces.unpin(path)
    os.rmdir(pins / "pod")
    assert nothing_below(pins)


@root
async def test_a_pins_file_is_read_only_and_its_directories_are_made(tmp_path, monkeypatch):
    modes = []
    real = syscalls.mount

    def note(source, target, fstype, flags, data=None):
        modes.append(stat.S_IMODE(os.stat(target).st_mode))
        real(source, target, fstype, flags, data)

    monkeypatch.setattr(syscalls, "mount", note)
    path = tmp_path / "a" / "b" / "uts"
    await namespaces.pin({"uts": str(path)}, timeout=10)
    await namespaces.unpin(str(path))
    assert modes[0] == 0o444
    assert not path.exists()


@root
async def test_lo_is_up_and_sockets_stay_inside(pins):
    paths = at(pins, "net")
    await namespaces.pin(paths, timeout=10)

    def listen():
        server = socket.create_server(("127.0.0.1", 0))
        return server, threading.get_native_id()

    server, thread = await namespaces.in_network(paths["net"], listen, timeout=10)
    port = server.getsockname()[1]
    with server:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)  # ours, not the pod's

        def talk():
            with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                return client.getpeername()[1]

        assert await namespaces.in_network(paths["net"], talk, timeout=10) == port
    deadline = time.monotonic() + 5
    while os.path.exists(f"/proc/self/task/{thread}") and time.monotonic() < deadline:
        await asyncio.sleep(0.005)
    assert not os.path.exists(f"/proc/self/task/{thread}")


@root
async def test_entering_what_is_not_there(pins):
    with pytest.raises(NotFound, match="no net namespace is pinned at /gone"):
        await namespaces.in_network("/gone", int, timeout=5)
    (pins / "file").touch()
    with pytest.raises(NotFound, match="no net namespace"):
        await namespaces.in_network(str(pins / "file"), int, timeout=5)
    await namespaces.pin(at(pins, "uts"), timeout=10)
    with pytest.raises(NotFound, match="no net namespace"):
        await namespaces.in_network(str(pins / "pod" / "uts"), int, timeout=5)


@root
async def test_a_path_in_use_is_refused_and_left_alone(pins):
    paths = at(pins, "ipc", "uts")
    await namespaces.pin({"uts": paths["uts"]}, timeout=10)
    before = namespaces.inode(paths["uts"])
    with pytest.raises(AlreadyExists, match=f"at {paths['uts']}: the file is there already"):
        await namespaces.pin(paths, timeout=10)
    assert namespaces.inode(paths["uts"]) == before
    assert not namespaces.is_pinned(paths["ipc"])  # the one that was pinned first is undone


@root
@pytest.mark.parametrize(
    ("sysctls", "message"),
    [
        ({"net.ipv4.no_such": "1"}, "net.ipv4.no_such: this kernel doesn't have it"),
        ({"kernel.shm_rmid_forced": "lots"}, "kernel.shm_rmid_forced='lots': Invalid argument"),
    ],
)
async def test_a_bad_sysctl_is_named_and_nothing_is_left(pins, sysctls, message):
    with pytest.raises(InvalidArgument, match=message):
        await namespaces.pin(at(pins, "net", "ipc"), sysctls=sysctls, timeout=10)
    assert nothing_below(pins)


@root
async def test_a_failed_mount_leaves_nothing(pins, monkeypatch):
    real = syscalls.mount

    def fail(source, target, fstype, flags, data=None):
        if flags & syscalls.MS_UNBINDABLE and target.endswith("/uts"):
            raise OSError(errno.ENOMEM, "no memory", target)
        real(source, target, fstype, flags, data)

    monkeypatch.setattr(syscalls, "mount", fail)
    paths = at(pins, "ipc", "uts")
    with pytest.raises(NamespaceError, match=f"pin namespaces .*{paths['uts']}: no memory"):
        await namespaces.pin(paths, timeout=10)
    assert nothing_below(pins)


@root
async def test_the_limit_on_namespaces_is_explained(pins, monkeypatch):
    def refuse(_flags):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(syscalls, "unshare", refuse)
    with pytest.raises(ResourceExhausted, match=r"no space \(a limit in /proc/sys/user/max_"):
        await namespaces.pin(at(pins, "net"), timeout=10)


@root
@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_a_pin_that_nobody_waits_for_undoes_itself(pins, monkeypatch, how):
    entered, release = threading.Event(), threading.Event()
    real = syscalls.unshare

    def slow(flags):
        entered.set()
        release.wait(10)
        real(flags)

    monkeypatch.setattr(syscalls, "unshare", slow)
    paths = at(pins, "ipc", "uts")
    task = asyncio.create_task(namespaces.pin(paths, timeout=0.1 if how == "timeout" else 60))
    await blocking.call(entered.wait, 10)
    if how == "cancel":
        task.cancel()
    with pytest.raises(DeadlineExceeded if how == "timeout" else asyncio.CancelledError):
        await task
    release.set()
    deadline = time.monotonic() + 10
    while blocking.left_behind() and time.monotonic() < deadline:
        await asyncio.sleep(0.005)
    assert nothing_below(pins)


@root
async def test_a_pin_whose_result_came_too_late_is_undone_by_the_waiter(pins):
    made = namespaces._Pins()
    (pins / "pod").mkdir()
    made.bind("/proc/self/ns/uts", str(pins / "pod" / "uts"))
    made.finish()
    made.give_up()
    os.rmdir(pins / "pod")
    assert nothing_below(pins)


@root
async def test_unpin_takes_stacked_pins_and_names_what_it_cannot(pins, monkeypatch):
    path = at(pins, "uts")["uts"]
    await namespaces.pin({"uts": path}, timeout=10)
    syscalls.mount("/proc/self/ns/uts", path, None, syscalls.MS_BIND)
    held = os.open(path, os.O_RDONLY)
    await namespaces.unpin(path)  # taken down all the same
    os.close(held)
    os.rmdir(pins / "pod")
    assert nothing_below(pins)

    def refuse(target, _flags):
        raise OSError(errno.EPERM, "no", target)

    monkeypatch.setattr(syscalls, "umount2", refuse)
    with pytest.raises(PermissionError):
        await namespaces.unpin(path)


@root
async def test_a_bind_of_the_directory_above_keeps_no_pin(pins, tmp_path):
    await namespaces.pin(at(pins, "uts"), timeout=10)
    copy = tmp_path / "copy"
    copy.mkdir()
    mount.mount(mount.Mount(type="none", source=str(pins), options=("rbind",)), str(copy))
    try:
        assert [m.target for m in mount.mounts_below(str(copy))] == [str(copy)]
    finally:
        mount.unmount_tree(str(copy))


@root
async def test_many_at_once(pins):
    async def one(number: int) -> int:
        path = str(pins / str(number) / "uts")
        await namespaces.pin({"uts": path}, hostname=f"pod-{number}", timeout=20)
        return namespaces.inode(path)

    inodes = await asyncio.gather(*(one(number) for number in range(30)))
    assert len(set(inodes)) == 30
    for number in (0, 29):
        uts = {"uts": str(pins / str(number) / "uts")}
        assert (await inside(uts, "hostname")).strip() == f"pod-{number}"


# user namespaces


@root
async def test_a_user_namespace_and_what_it_owns(pins):
    paths = at(pins, "user", "net", "ipc", "uts")
    await namespaces.pin_user(
        paths,
        **MAPS,
        hostname="pod-u",
        sysctls={
            "kernel.shm_rmid_forced": "1",
            "net.ipv4.ip_unprivileged_port_start": "7",
            "kernel.domainname": "d",
        },
        timeout=20,
    )
    assert [namespaces.kind_of(path) for path in paths.values()] == list(paths)
    said = await inside(
        paths,
        "sh",
        "-c",
        "cat /proc/self/uid_map /proc/self/gid_map; hostname; id -u; "
        "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start; "
        "ip link set lo down; ip link show lo",  # it is root over its network
    )
    lines = said.split("\n")
    assert [line.split() for line in lines[:2]] == [
        ["0", "100000", "65536"],
        ["0", "200000", "65536"],
    ]
    assert lines[2:6] == ["pod-u", "0", "1", "7"]
    assert "state DOWN" in lines[6]
    for path in paths.values():
        await namespaces.unpin(path)
    os.rmdir(pins / "pod")
    assert nothing_below(pins)


@root
async def test_a_failed_user_namespace_leaves_nothing(pins):
    overlapping = [IdMap(0, 1000, 10), IdMap(5, 2000, 10)]
    with pytest.raises(InvalidArgument, match="uid_map: refused: Invalid argument"):
        await namespaces.pin_user(
            at(pins, "user", "uts"),
            uid_mappings=overlapping,
            gid_mappings=overlapping,
            timeout=20,
        )
    with pytest.raises(InvalidArgument, match="this kernel doesn't have it"):
        await namespaces.pin_user(
            at(pins, "user", "net"), **MAPS, sysctls={"net.no.such": "1"}, timeout=20
        )
    assert nothing_below(pins)
    assert not any(_is_our_cat(pid) for pid in os.listdir("/proc") if pid.isdigit())


def _is_our_cat(pid: str) -> bool:
    try:
        line = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return "(cat)" in line and line.rpartition(")")[2].split()[1] == str(os.getpid())


@root
async def test_a_holder_that_cannot_start_says_why(pins, monkeypatch):
    real = spawn.start

    async def refused(_argv, **kwargs):
        return await real(["sh", "-c", "echo unshare failed: no space >&2; exit 1"], **kwargs)

    monkeypatch.setattr(spawn, "start", refused)
    with pytest.raises(InvalidArgument, match="can't be made: unshare failed: no space"):
        await namespaces.pin_user(at(pins, "user"), **MAPS, timeout=20)

    async def stuck(_argv, **kwargs):
        return await real(["sleep", "60"], **kwargs)

    monkeypatch.setattr(spawn, "start", stuck)
    with pytest.raises(DeadlineExceeded, match=r"no new namespaces within 0\.1 s"):
        await namespaces.pin_user(at(pins, "user"), **MAPS, timeout=0.1)
    assert nothing_below(pins)


@root
async def test_an_id_mapped_bind_shows_other_owners(pins):
    paths = at(pins, "user")
    await namespaces.pin_user(paths, **MAPS, timeout=20)
    source, target = pins / "s", pins / "t"
    mount.mount(mount.Mount(type="tmpfs", source="tmpfs"), _made(source))
    (source / "file").touch()
    userns = os.open(paths["user"], os.O_RDONLY)
    mapped = mount.Mount(type="none", source=str(source), options=("rbind", "ro"))
    mount.mount(mapped, _made(target), userns=userns)
    os.close(userns)
    seen = (target / "file").stat()
    assert (seen.st_uid, seen.st_gid) == (100_000, 200_000)
    assert (source / "file").stat().st_uid == 0


def _made(path: Path) -> str:
    path.mkdir()
    return str(path)
