"""The groups' shims, with fake ones that hang, lie and die."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tests.fakes.shim import Behaviour, calls, install, until
from zos_cri import errors
from zos_cri.linux.cgroup import Cgroups
from zos_cri.linux.spawn import PidFd, start_time
from zos_cri.shim import bundle, processes
from zos_cri.shim import manager as manager_module
from zos_cri.shim.bootstrap import DialectCache
from zos_cri.shim.handler import Handler
from zos_cri.shim.launch import Launcher, StartFailed
from zos_cri.shim.manager import DeadShim, Shim, ShimManager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GROUP = "f" * 64


class FakeCgroups(Cgroups):
    """Removes nothing, notes what it was asked to; `stuck` ones can't be."""

    def __init__(self) -> None:
        super().__init__()
        self.removed: list[str] = []
        self.stuck: set[str] = set()

    async def remove(self, path: str, *, timeout: float, kill: bool = False) -> None:
        assert kill
        self.removed.append(path)
        if path in self.stuck:
            raise errors.DeadlineExceeded(f"cgroup {path}: stuck")


class Fixture:
    """A manager over a fake shim."""

    def __init__(self, tmp_path: Path) -> None:
        self.directory = tmp_path / "fake"
        self.bundles = tmp_path / "bundles"
        self.handler = Handler(name="fake", shim=str(install(self.directory)))
        self.lost: list[DeadShim] = []
        self.cleaned_when_told: list[bool] = []
        self.cgroups = FakeCgroups()
        self.managers: list[ShimManager] = []
        self.manager = self.new()

    def new(self) -> ShimManager:
        launcher = Launcher(
            namespace="zos",
            events_address="/e",
            grpc_address="/a",
            publish_binary="/p",
            socket_dir="/s",
            dialects=DialectCache(None),
        )
        manager = ShimManager(
            bundles=self.bundles,
            launcher=launcher,
            on_lost=self.on_lost,
            connect_timeout=2,
            cgroups=self.cgroups,
        )
        self.managers.append(manager)
        return manager

    async def on_lost(self, dead: DeadShim) -> None:
        self.lost.append(dead)
        shim = self.manager.get(dead.group)
        self.cleaned_when_told += [shim.cleaned.is_set()] if shim is not None else [True]
        if dead.handler.name == "buggy":
            raise KeyError("a bug")

    def behave(self, **behaviour: Any) -> None:
        install(self.directory, Behaviour(**behaviour))

    def actions(self) -> list[str]:
        return [call["argv"][-1] for call in calls(self.directory)]

    def add_container(self, container: str, cgroup: str = "") -> None:
        path = self.bundles / container
        path.mkdir(exist_ok=True)
        annotations = {bundle.GROUP_ANNOTATION: GROUP}
        linux = {"cgroupsPath": cgroup}
        bundle.write_config(path, {"process": {}, "annotations": annotations, "linux": linux})

    @property
    def running(self) -> list[int]:
        return processes.of_bundle(self.bundles / GROUP, GROUP)

    def left(self) -> list[str]:
        return sorted(os.listdir(self.bundles)) if self.bundles.exists() else []


@pytest.fixture
async def fixture(tmp_path: Path) -> AsyncIterator[Fixture]:
    fixture = Fixture(tmp_path)
    yield fixture
    for manager in fixture.managers:
        await manager.close()
    processes.kill_of_bundle(fixture.bundles / GROUP, GROUP)


async def test_start_and_stop(fixture: Fixture) -> None:
    manager = fixture.manager
    assert manager.get(GROUP) is None
    shim = await manager.start(GROUP, fixture.handler)
    assert manager.get(GROUP) is shim
    assert manager.shims == {GROUP: shim}
    assert fixture.running == [shim.pid]
    record = bundle.read_record(manager.bundle(GROUP))
    assert record == shim.record
    assert (shim.version, shim.address) == (3, f"unix://{fixture.directory}/socket")
    assert record is not None
    assert record.start_time == start_time(shim.pid)
    assert record.binary == fixture.handler.shim
    assert repr(shim) == f"<Shim {GROUP} pid={shim.pid} v3>"
    await manager.stop(GROUP)
    assert manager.get(GROUP) is None
    assert fixture.running == []
    assert fixture.left() == []
    assert not (fixture.directory / "socket").exists()
    assert fixture.lost == []
    assert fixture.actions() == ["start"]


async def test_starts_of_a_group_join(fixture: Fixture) -> None:
    first, *others = await asyncio.gather(
        *(fixture.manager.start(GROUP, fixture.handler) for _ in range(5))
    )
    assert all(other is first for other in others)
    assert fixture.actions() == ["start"]
    other = msgspec.structs.replace(fixture.handler, name="other")
    with pytest.raises(errors.FailedPrecondition, match="runs with handler 'fake', not 'other'"):
        await fixture.manager.start(GROUP, other)
    changed = msgspec.structs.replace(fixture.handler, runtime="another")
    shim = await fixture.manager.start(GROUP, changed)
    assert shim is first
    assert shim.handler == fixture.handler  # a pod keeps what it was made with


async def test_a_start_survives_its_caller(fixture: Fixture) -> None:
    task = asyncio.create_task(fixture.manager.start(GROUP, fixture.handler))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(errors.DeadlineExceeded, match="not started within 0 s"):
        await fixture.manager.start(GROUP, fixture.handler, timeout=0)
    shim = await fixture.manager.start(GROUP, fixture.handler)
    assert shim.alive
    assert fixture.actions() == ["start"]


async def test_stop_waits_for_a_start(fixture: Fixture) -> None:
    task = asyncio.create_task(fixture.manager.start(GROUP, fixture.handler))
    await asyncio.sleep(0)
    await asyncio.gather(fixture.manager.stop(GROUP), fixture.manager.stop(GROUP))
    await task
    assert fixture.left() == []
    assert fixture.running == []


async def test_a_start_waits_for_a_stop(fixture: Fixture) -> None:
    first = await fixture.manager.start(GROUP, fixture.handler)
    stop = asyncio.create_task(fixture.manager.stop(GROUP))
    await asyncio.sleep(0)
    second = await fixture.manager.start(GROUP, fixture.handler)
    await stop
    assert second.pid != first.pid
    assert fixture.running == [second.pid]


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        ({"accepts": "nothing", "leaves": True}, StartFailed),
        ({"serves": ()}, errors.Unimplemented),
        ({"version": 4}, errors.Unimplemented),
        ({"lies_about_pid": True}, errors.FailedPrecondition),
    ],
)
async def test_a_failed_start_leaves_nothing(
    fixture: Fixture, behaviour: dict[str, Any], error: type[errors.Error]
) -> None:
    fixture.behave(**behaviour)
    with pytest.raises(error):
        await fixture.manager.start(GROUP, fixture.handler)
    assert fixture.running == []
    assert fixture.left() == []
    assert not (fixture.directory / "socket").exists() or behaviour.get("leaves")
    fixture.behave()
    assert (await fixture.manager.start(GROUP, fixture.handler)).alive


async def test_a_failed_start_leaves_a_container_s_bundle(fixture: Fixture) -> None:
    fixture.bundles.mkdir()
    fixture.add_container(GROUP)
    fixture.behave(accepts="nothing")
    with pytest.raises(StartFailed):
        await fixture.manager.start(GROUP, fixture.handler)
    assert fixture.left() == [GROUP]
    assert bundle.read_record(fixture.bundles / GROUP) is None
    assert b"process" in (fixture.bundles / GROUP / "config.json").read_bytes()


async def test_no_such_shim(fixture: Fixture) -> None:
    with pytest.raises(errors.NotFound):
        await fixture.manager.start(GROUP, Handler(shim="io.containerd.absent.v2"))
    assert fixture.left() == []


async def test_the_version_is_found_out_by_asking(fixture: Fixture) -> None:
    fixture.behave(serves=(2,), version=3)
    shim = await fixture.manager.start(GROUP, fixture.handler)
    assert (shim.version, shim.record.version) == (2, 2)


async def test_a_dead_shim_is_lost(fixture: Fixture) -> None:
    shim = await fixture.manager.start(GROUP, fixture.handler)
    for container in ("c1", "c2", GROUP):
        fixture.add_container(container)
    shim.kill()
    await until(lambda: fixture.lost)
    (dead,) = fixture.lost
    assert (dead.group, dead.pid, dead.failures) == (GROUP, shim.pid, {})
    assert {id_: exit_.status for id_, exit_ in dead.exits.items()} == {
        "c1": 137,
        "c2": 137,
        GROUP: 137,
    }
    assert fixture.cleaned_when_told == [True]
    deletes = [call for call in calls(fixture.directory) if call["argv"][-1] == "delete"]
    assert [Path(call["cwd"]).name for call in deletes][-1] == GROUP  # the others first
    assert not shim.alive
    shim.kill()  # nothing happens
    assert fixture.manager.get(GROUP) is None
    assert (await fixture.manager.start(GROUP, fixture.handler)).alive


async def test_a_start_while_a_shim_is_being_lost(fixture: Fixture) -> None:
    shim = await fixture.manager.start(GROUP, fixture.handler)
    fixture.add_container("c1")
    os.kill(shim.pid, signal.SIGKILL)
    await shim.gone(10)
    second = await fixture.manager.start(GROUP, fixture.handler)
    assert second.pid != shim.pid
    assert len(fixture.lost) == 1


async def test_a_delete_that_fails_is_told_and_tried_again(fixture: Fixture) -> None:
    shim = await fixture.manager.start(GROUP, fixture.handler)
    fixture.add_container("c1")
    fixture.behave(delete_fails=True)
    shim.kill()
    await shim.gone(10)
    assert not shim.cleaned.is_set()
    await until(lambda: fixture.lost)
    assert shim.cleaned.is_set()
    (dead,) = fixture.lost
    assert dead.exits["c1"].status == 255
    assert dead.exits["c1"].exited_at_ns > 0
    assert "it can't be deleted" in dead.failures["c1"]
    with pytest.raises(errors.Unavailable, match=f"group {GROUP}: not cleaned up: "):
        await fixture.manager.stop(GROUP)
    assert GROUP in fixture.left()
    fixture.behave()
    await fixture.manager.stop(GROUP)
    assert fixture.left() == ["c1"]


async def test_what_a_runtime_left_in_its_cgroup_goes(fixture: Fixture) -> None:
    """And only in a cgroup that is named for the container."""
    shim = await fixture.manager.start(GROUP, fixture.handler)
    paths = {"c1": "/pods/c1", "c2": "/pods/shared", "c3": "/", "c4": "pods.slice:cri:c4"}
    for container, path in {**paths, "c5": "/pods/cri-c5.scope"}.items():
        fixture.add_container(container, path)
    fixture.cgroups.stuck.add("/pods/c1")
    shim.kill()
    await until(lambda: fixture.lost)
    assert sorted(fixture.cgroups.removed) == ["/pods/c1", "/pods/cri-c5.scope"]
    assert fixture.lost[0].failures == {"c1": "cgroup /pods/c1: stuck"}
    assert fixture.lost[0].exits["c1"].status == 137  # known all the same


async def test_a_bug_of_whoever_is_told_harms_nothing(
    fixture: Fixture, caplog: pytest.LogCaptureFixture
) -> None:
    handler = msgspec.structs.replace(fixture.handler, name="buggy")
    shim = await fixture.manager.start(GROUP, handler)
    shim.kill()
    await until(lambda: "lost shim not handled" in caplog.text)
    assert fixture.manager.get(GROUP) is None


async def test_stop_kills_what_does_not_go(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager_module, "STOP_GRACE", 0.1)
    fixture.behave(ignores_shutdown=True)
    await fixture.manager.start(GROUP, fixture.handler)
    fixture.add_container("c1")
    await fixture.manager.stop(GROUP)
    assert fixture.running == []
    assert fixture.left() == ["c1"]
    assert fixture.lost == []
    assert fixture.actions() == ["start", "delete", "delete"]  # the container's, the sandbox's


async def test_stop_of_nothing(fixture: Fixture) -> None:
    await fixture.manager.stop(GROUP)


async def test_a_shim_is_found_again(fixture: Fixture) -> None:
    before = await fixture.manager.start(GROUP, fixture.handler)
    await fixture.manager.close()
    assert before.bundle.exists()
    manager = fixture.new()
    (shim,) = await manager.recover()
    assert isinstance(shim, Shim)
    assert shim.record == before.record
    assert await manager.start(GROUP, fixture.handler) is shim
    shim.kill()
    await until(lambda: fixture.lost)  # it is watched


async def test_recovery_of_nothing(fixture: Fixture) -> None:
    assert await fixture.manager.recover() == []


async def test_a_shim_that_does_not_answer_is_recovered(fixture: Fixture) -> None:
    before = await fixture.manager.start(GROUP, fixture.handler)
    await fixture.manager.close()
    (fixture.directory / "socket").unlink()
    (shim,) = await fixture.new().recover()
    assert isinstance(shim, Shim)
    assert (shim.pid, shim.alive) == (before.pid, True)
    with pytest.raises(errors.Unavailable):
        await shim.task.state("c")
    assert fixture.actions() == ["start"]


async def test_dead_while_away(fixture: Fixture) -> None:
    before = await fixture.manager.start(GROUP, fixture.handler)
    fixture.add_container("c1")
    await fixture.manager.close()
    with held(before.pid) as process:
        process.send_signal(signal.SIGKILL)
        assert await process.wait(10)
    (dead,) = await fixture.new().recover()
    assert isinstance(dead, DeadShim)
    assert dead.exits["c1"].status == 137
    assert fixture.lost == []


async def test_an_intent_without_a_process(fixture: Fixture) -> None:
    path = bundle.create(fixture.bundles, GROUP, group=GROUP)
    binary = fixture.handler.shim
    bundle.write_record(path, bundle.Record(group=GROUP, handler=fixture.handler, binary=binary))
    (path.parent / ".gone").mkdir()
    (dead,) = await fixture.manager.recover()
    assert isinstance(dead, DeadShim)
    assert (dead.pid, dead.exits) == (0, {})
    await fixture.manager.stop(GROUP)
    assert fixture.left() == []


async def test_an_intent_with_a_process(fixture: Fixture) -> None:
    shim = await fixture.manager.start(GROUP, fixture.handler)
    await fixture.manager.close()
    intent = msgspec.structs.replace(shim.record, pid=0, start_time=0, address="")
    bundle.write_record(shim.bundle, intent)
    (dead,) = await fixture.new().recover()
    assert isinstance(dead, DeadShim)
    assert fixture.running == []


async def test_a_damaged_record_is_left_alone(
    fixture: Fixture, caplog: pytest.LogCaptureFixture
) -> None:
    shim = await fixture.manager.start(GROUP, fixture.handler)
    await fixture.manager.close()
    (shim.bundle / "shim.json").write_text("{")
    assert await fixture.new().recover() == []
    assert "shim not recovered" in caplog.text
    assert fixture.running == [shim.pid]


async def test_the_shim_s_log_is_ours(fixture: Fixture, caplog: pytest.LogCaptureFixture) -> None:
    await fixture.manager.start(GROUP, fixture.handler)
    await until(lambda: caplog.records)
    fields = getattr(caplog.records[0], "fields", None)
    assert fields == {"group": GROUP, "said": "the fake serves", "fields": "runtime=fake"}


async def test_features(fixture: Fixture) -> None:
    features = await fixture.manager.features(fixture.handler)
    assert features is not None
    assert features.version == "9.9"
    fixture.behave(info=False)
    assert await fixture.manager.features(fixture.handler) is None


def held(pid: int) -> PidFd:
    process = PidFd.open(pid)
    assert process is not None
    return process


# ---- shims that make sandboxes

SANDBOX = ("PingSandbox", "SandboxStatus", "StopSandbox", "ShutdownSandbox")


def makes_sandboxes(fixture: Fixture, **behaviour: Any) -> Handler:
    install(fixture.directory, Behaviour(**{"sandbox": SANDBOX, **behaviour}))
    return msgspec.structs.replace(fixture.handler, sandboxer="shim")


@pytest.mark.parametrize("knows_tasks", [True, False])
async def test_a_shim_that_makes_sandboxes_is_found_and_ended(
    fixture: Fixture, knows_tasks: bool
) -> None:
    """Some refuse every call of tasks before there is a sandbox."""
    handler = makes_sandboxes(fixture, knows_tasks=knows_tasks, ignores_shutdown=False)
    shim = await fixture.manager.start(GROUP, handler)
    assert fixture.running == [shim.pid]
    assert shim.sandbox is not None
    again = fixture.new()
    (found,) = await again.recover()
    assert isinstance(found, Shim)
    assert (found.pid, found.silent) == (shim.pid, False)
    await fixture.manager.stop(GROUP)
    assert fixture.running == []
    assert fixture.actions() == ["start"]  # it went by itself: nothing is to be deleted


async def test_one_that_doesnt_know_tasks_has_to(fixture: Fixture) -> None:
    install(fixture.directory, Behaviour(knows_tasks=False))
    with pytest.raises(errors.Internal, match="there is no sandbox yet"):
        await fixture.manager.start(GROUP, fixture.handler)
    assert fixture.left() == []


@pytest.mark.parametrize(("version", "serves"), [(2, (2, 3)), (3, (2,))])
async def test_an_old_one_makes_no_sandboxes(
    fixture: Fixture, version: int, serves: tuple[int, ...]
) -> None:
    handler = makes_sandboxes(fixture, version=version, serves=serves)
    with pytest.raises(errors.FailedPrecondition, match=r"version 2 .*containerd.runtime.sandbox"):
        await fixture.manager.start(GROUP, handler)
    assert fixture.running == []
    assert fixture.left() == []


@pytest.mark.parametrize("name", ["", "containerd-shim-runc-machine-v1"])
async def test_a_sandbox_that_a_dead_shim_left_is_deleted(fixture: Fixture, name: str) -> None:
    """Whatever the shim is called: runc's own have nothing to delete."""
    handler = makes_sandboxes(fixture)
    if name:
        other = shutil.copy(handler.shim, fixture.directory / name)
        handler = msgspec.structs.replace(handler, shim=str(other))
    shim = await fixture.manager.start(GROUP, handler)
    shim.kill()
    await until(lambda: fixture.lost)
    assert fixture.actions() == ["start", "delete"]
    assert fixture.lost[0].exits == {}
    await fixture.manager.stop(GROUP)


async def test_one_that_stays_is_killed_and_its_sandbox_deleted(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager_module, "STOP_GRACE", 0.05)
    handler = makes_sandboxes(fixture, ignores_shutdown=True)
    await fixture.manager.start(GROUP, handler)
    await fixture.manager.stop(GROUP)
    assert fixture.running == []
    assert fixture.actions() == ["start", "delete"]
    assert fixture.left() == []
