"""What exists, read from directories."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from zos_cri import config
from zos_cri.audit.expected import Records
from zos_cri.audit.model import Kind, Thing
from zos_cri.audit.present import Look
from zos_cri.linux.cgroup import Cgroups
from zos_cri.linux.pidfd import start_time
from zos_cri.shim import bundle

A, B, POD = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("run", "state", "net.d", "cgroup"):
        (tmp_path / name).mkdir()
    (tmp_path / "cgroup" / "cgroup.controllers").write_text("")
    return tmp_path


def look(root: Path) -> list[Thing]:
    settings = config.parse(
        f'[server]\nrun = "{root}/run"\nstate = "{root}/state"\n'
        f'[cni]\nconf_dir = "{root}/net.d"\n'.encode(),
        "test",
    )
    return Look(settings, Cgroups(str(root / "cgroup"))).things(Records())


def make(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_nothing(root: Path) -> None:
    assert look(root) == []


def test_directories_are_named_for_what_they_are_of(root: Path) -> None:
    for directory in (
        *("run/sandboxes", "run/fifo", "run/bundles", "run/exec"),
        *("state/images/containers", "state/rootfs"),
    ):
        (root / directory / A).mkdir(parents=True)
    (root / "run/bundles" / f".{B}").mkdir()
    make(root / f"run/logger/{A}.json")
    found = {(thing.kind, thing.id) for thing in look(root)}
    kinds = (Kind.SANDBOX, Kind.FIFO, Kind.BUNDLE, Kind.EXEC, Kind.LAYER, Kind.LOG)
    assert found == {*((kind, A) for kind in kinds), (Kind.BUNDLE, B)}


def test_a_containers_bundle_tells_its_pod(root: Path) -> None:
    path = bundle.create(root / "run/bundles", A, group=POD)
    bundle.write_config(
        path, {"annotations": {bundle.GROUP_ANNOTATION: POD}, "process": {"args": ["x"]}}
    )
    assert [thing.group for thing in look(root)] == [POD]


@pytest.mark.parametrize(
    ("name", "pid", "begun"),
    [
        ("state.json", "init_process_pid", "init_process_start"),
        ("status", "pid", "process-start-time"),
    ],
)
def test_tasks_live_with_their_first_process(root: Path, name: str, pid: str, begun: str) -> None:
    me = os.getpid()
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    make(root / f"run/runtime/zos/{A}/{name}", json.dumps({pid: me, begun: start_time(me)}))
    make(root / f"run/runtime/zos/{B}/{name}", json.dumps({pid: int(dead.stdout), begun: 1}))
    assert {(t.kind, t.id): t.live for t in look(root)} == {
        (Kind.TASK, A): True,
        (Kind.TASK, B): False,
    }


def test_a_task_that_cannot_be_read_may_live(root: Path) -> None:
    make(root / f"run/runtime/zos/{A}/state.json", "{")
    assert [t.live for t in look(root)] == [True]


def test_a_task_that_goes_while_it_is_looked_at_is_no_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(root / f"run/runtime/zos/{A}/state.json", "{")
    is_dir = Path.is_dir

    def and_gone(path: Path) -> bool:
        found = is_dir(path)
        if path.name == A:
            shutil.rmtree(path)
        return found

    monkeypatch.setattr(Path, "is_dir", and_gone)
    assert [t.live for t in look(root)] == [False]


def test_addresses_are_proved_by_what_else_there_is(root: Path) -> None:
    ipam = {"type": "host-local", "dataDir": f"{root}/ipam"}
    conf = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge", "ipam": ipam}]}
    make(root / "net.d/10.conflist", json.dumps(conf))
    make(root / "ipam/net/10.0.0.2", f"{A}\r\neth0")
    make(root / "ipam/net/10.0.0.3", f"{B}\r\neth0")
    make(root / "ipam/net/last_reserved_ip.0", "10.0.0.3")
    (root / "run/sandboxes" / A).mkdir(parents=True)
    found = {t.id: t.proved for t in look(root) if t.kind is Kind.ADDRESS}
    assert found == {A: True, B: False}


def test_cgroups_of_that_name_may_be_anothers(root: Path) -> None:
    (root / "cgroup/zos-cri" / A).mkdir(parents=True)
    (root / "cgroup/zos-cri/other").mkdir()
    make(root / "cgroup/zos-cri" / A / "cgroup.procs", "7\n")
    assert [(t.kind, t.id, t.live, t.proved) for t in look(root)] == [(Kind.CGROUP, A, True, False)]


def test_a_bundle_proves_its_cgroup(root: Path) -> None:
    path = bundle.create(root / "run/bundles", A, group=A)
    bundle.write_config(path, {"linux": {"cgroupsPath": f"/pods/{A}"}})
    (root / "cgroup/pods" / A).mkdir(parents=True)
    found = [t for t in look(root) if t.kind is Kind.CGROUP]
    assert found == [Thing(Kind.CGROUP, A, f"/pods/{A}")]


def test_sockets_without_a_listener(root: Path) -> None:
    directory = root / "run/s"
    directory.mkdir()
    for name in ("dead", "live"):
        with_name = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with_name.bind(str(directory / name))
        if name == "live":
            with_name.listen()
            live = with_name
        else:
            with_name.close()
    found = look(root)
    live.close()
    assert [(t.kind, t.id) for t in found] == [(Kind.SOCKET, "dead")]


def test_shims_are_known_by_our_socket(root: Path) -> None:
    def shim(address: str, *rest: str) -> subprocess.Popen[bytes]:
        wait = "import sys; print(flush=True); sys.stdin.read()"
        argv = [
            sys.executable,
            "-c",
            wait,
            "-namespace",
            "zos",
            "-address",
            address,
            "-id",
            A,
            *rest,
        ]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    ours = shim(f"{root}/run/zos-cri.sock")
    others = [shim("/run/other.sock"), shim(f"{root}/run/zos-cri.sock", "delete")]
    found = look(root)
    for process in (ours, *others):
        process.communicate()
    assert found == [Thing(Kind.SHIM, A, f"pid {ours.pid}", live=True)]


def test_processes_are_those_of_the_records(root: Path) -> None:
    from tests.unit.audit.test_expected import container
    from zos_cri.store.lifecycle import ContainerState

    me = container(ContainerState.RUNNING, pid=os.getpid())
    settings = msgspec.structs.replace(
        config.Config(),
        server=config.ServerConfig(run=f"{root}/run", state=f"{root}/state"),
        cni=config.CniConfig(conf_dir=f"{root}/net.d"),
    )
    found = Look(settings, Cgroups(str(root / "cgroup"))).things(Records((), (me,)))
    assert found == [Thing(Kind.PROCESS, "c", f"pid {os.getpid()}", live=True)]
