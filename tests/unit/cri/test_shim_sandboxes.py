from __future__ import annotations

import msgspec
import pytest

from tests.fakes.pods import MACHINE, pod_config
from tests.fakes.shim import until
from zos_cri._pb import cri_pb2 as pb
from zos_cri.cri import shim_sandboxes as module
from zos_cri.errors import FailedPrecondition, Internal, Unavailable, Unimplemented
from zos_cri.module import recovery
from zos_cri.shim.manager import DeadShim
from zos_cri.store.lifecycle import ContainerState, SandboxState

pytestmark = pytest.mark.root
S = SandboxState


def api(bench, pod):
    return bench.shims.get(pod).sandbox


async def machine(bench, **fields):
    return await bench.sandboxes.run(pod_config(**fields), "machine")


async def restart(bench):
    """A new server over what there is."""
    await bench.by_shims.aclose()
    bench.containers = bench.serve()
    bench.sandboxes = bench.serve_pods()
    await recovery.recover(bench.containers, bench.shims)
    await bench.sandboxes.recover()


async def test_the_shim_makes_the_sandbox_when_its_network_is_there(bench):
    pod = await machine(bench, annotations={"a": "b"})
    record = bench.sandboxes.ready(pod)
    assert (record.meta.sandboxer, record.status.pid) == ("shim", 99)
    sandbox = api(bench, pod)
    assert sandbox.calls[:2] == ["create", "start"]
    created = sandbox.created
    assert (created["id"], created["netns"]) == (pod, record.meta.netns)
    assert created["annotations"] == {"a": "b"}
    assert pb.PodSandboxConfig.FromString(created["options"].value).annotations == {"a": "b"}
    assert bench.network.calls == [("add", record.meta.netns)]
    await bench.sandboxes.remove(pod)
    assert bench.leftovers() == []


async def test_others_are_made_by_the_server(bench):
    pod = await bench.sandboxes.run(pod_config(), "")
    record = bench.sandboxes.ready(pod)
    assert (record.meta.sandboxer, record.status.pid) == ("podsandbox", 0)


async def test_a_shared_pid_namespace_is_the_sandboxs_and_there_is_no_init(bench):
    pod = await machine(bench, shared_pid=True)
    assert list(bench.db.containers) == []
    assert bench.pod(pod).pid == 99


async def test_without_a_process_there_is_none_to_share(bench, monkeypatch):
    monkeypatch.setattr("tests.fakes.tasks.FakeSandbox.PID", 0)
    with pytest.raises(FailedPrecondition, match="tells no process of it"):
        await machine(bench, shared_pid=True)
    assert bench.leftovers() == []


@pytest.mark.parametrize("call", ["create", "start"])
async def test_a_call_that_fails_is_undone(bench, monkeypatch, call):
    monkeypatch.setattr("tests.fakes.tasks.FakeSandbox.FAILS", {call: Internal("no memory")})
    with pytest.raises(Internal, match="no memory"):
        await machine(bench)
    assert bench.leftovers() == []


async def test_a_shim_without_the_api_is_named(bench, monkeypatch):
    failure = {"create": Unimplemented("unknown service")}
    monkeypatch.setattr("tests.fakes.tasks.FakeSandbox.FAILS", failure)
    with pytest.raises(
        FailedPrecondition, match=r"a-shim: has no sandbox API .*the handler \"machine\""
    ):
        await machine(bench)


# ---- the end


async def test_a_sandbox_that_ends_takes_its_containers_along(bench):
    pod = await machine(bench)
    await bench.run("a" * 64, ns=pod, name="a", group=pod)
    shim = bench.shims.get(pod)
    api(bench, pod).ended.set()
    bench.tasks.end("a" * 64, 137)
    await until(lambda: bench.pod(pod).state is S.NOT_READY)
    await until(lambda: bench.status("a" * 64).state is ContainerState.EXITED)
    assert not shim.killed
    await bench.sandboxes.remove(pod)
    assert bench.leftovers() == []


async def test_a_shim_whose_containers_dont_end_is_killed(bench):
    pod = await machine(bench)
    await bench.run("a" * 64, ns=pod, name="a", group=pod)
    shim = bench.shims.get(pod)
    api(bench, pod).ended.set()
    await until(lambda: shim.killed)
    assert bench.pod(pod).state is S.NOT_READY


async def test_one_that_the_shim_has_forgotten_has_ended(bench):
    pod = await machine(bench)
    await until(lambda: "wait" in api(bench, pod).calls)
    api(bench, pod).forgotten = True
    await restart(bench)
    assert bench.pod(pod).state is S.NOT_READY


async def test_a_connection_that_goes_says_nothing_of_the_sandbox(bench, monkeypatch):
    monkeypatch.setattr(module, "REDIAL_PAUSE", 0.01)
    monkeypatch.setattr(module, "FAILED_PAUSE", 0.01)
    failures = {"wait": Unavailable("gone")}
    monkeypatch.setattr("tests.fakes.tasks.FakeSandbox.FAILS", failures)
    pod = await machine(bench)
    await until(lambda: api(bench, pod).calls.count("wait") == 2)
    assert bench.pod(pod).state is S.READY
    api(bench, pod).ended.set()
    await until(lambda: bench.pod(pod).state is S.NOT_READY)


async def test_a_stop_is_no_end_that_nobody_asked_for(bench):
    pod = await machine(bench)
    await bench.sandboxes.stop(pod)
    assert bench.pod(pod).state is S.NOT_READY
    assert bench.pod(pod).network_released
    assert bench.by_shims._watches == {}


async def test_a_pod_whose_containers_cant_be_stopped_is_killed(bench):
    """A guest that is dead takes no signals."""
    pod = await machine(bench)
    await bench.run("a" * 64, ns=pod, name="a", group=pod)
    shim = bench.shims.get(pod)
    bench.tasks.fail("kill", Internal("no guest"), times=9)
    bench.tasks.fail("state", Internal("no guest"), times=9)
    await bench.sandboxes.stop(pod)
    assert shim.killed
    assert bench.pod(pod).state is S.NOT_READY
    assert bench.pod(pod).network_released
    await recovery.shim_lost(bench.containers, DeadShim(pod, MACHINE, 1, {}))
    await until(lambda: bench.status("a" * 64).state is ContainerState.EXITED)


# ---- restarts


async def test_one_that_runs_is_watched_again(bench):
    pod = await machine(bench)
    await bench.run("a" * 64, ns=pod, name="a", group=pod)
    await restart(bench)
    assert bench.pod(pod).state is S.READY
    assert bench.pod(pod).pid == 99
    api(bench, pod).ended.set()
    bench.tasks.end("a" * 64, 137)
    await until(lambda: bench.pod(pod).state is S.NOT_READY)


async def test_one_that_has_ended_meanwhile_is_told_so(bench):
    pod = await machine(bench)
    await bench.run("a" * 64, ns=pod, name="a", group=pod)
    await bench.by_shims.aclose()
    shim = bench.shims.get(pod)
    api(bench, pod).ended.set()
    await restart(bench)
    assert bench.pod(pod).state is S.NOT_READY
    await until(lambda: shim.killed)  # it says that the container runs


@pytest.mark.parametrize("ended", [True, False])
async def test_the_end_is_seen_to_where_a_server_died_in_the_midst_of_it(bench, ended):
    pod = await machine(bench)
    await bench.run("a" * 64, ns=pod, name="a", group=pod)
    await bench.by_shims.aclose()
    await bench.sandboxes.lost(pod)
    shim = bench.shims.get(pod)
    if ended:
        api(bench, pod).ended.set()
    await restart(bench)
    assert bench.pod(pod).state is S.NOT_READY
    if ended:
        await until(lambda: shim.killed)
    else:
        await until(lambda: "status" in api(bench, pod).calls)
        assert not shim.killed


@pytest.mark.parametrize("silent", [True, False])
async def test_a_shim_that_doesnt_answer_is_waited_for(bench, silent):
    pod = await machine(bench)
    bench.shims.get(pod).silent = silent
    api(bench, pod).fail("status", Unavailable("not now"))
    await restart(bench)
    assert bench.pod(pod).state is S.READY
    assert pod in bench.by_shims._watches


async def test_one_that_was_being_made_is_undone(bench):
    pod = await machine(bench)
    await bench.db.sandboxes.note(
        pod, lambda status: msgspec.structs.replace(status, state=S.CREATING)
    )
    await restart(bench)
    assert bench.leftovers() == []


# ---- what it tells


async def test_what_a_shim_says_of_its_sandbox(bench):
    pod = await machine(bench)
    status, own = await bench.by_shims.info(pod)
    assert status == {"state": "SANDBOX_READY", "pid": 99}
    assert own == {"kernel": "6.1"}
    api(bench, pod).fail("status", Internal("busy"))
    assert await bench.by_shims.info(pod) == ({"error": "busy"}, {})


async def test_handlers_are_tried_unless_pods_prove_them(bench, monkeypatch):
    tried = []

    async def failure(shims, handler):
        tried.append(handler.name)
        return "version 2" if handler.name == "bad" else ""

    monkeypatch.setattr("zos_cri.shim.trial.failure", failure)
    bad = msgspec.structs.replace(MACHINE, name="bad")
    other = msgspec.structs.replace(MACHINE, sandboxer="podsandbox")
    await machine(bench)
    await bench.by_shims.try_out({"machine": MACHINE, "bad": bad, "runc": other})
    assert tried == ["bad"]
    assert bench.by_shims.failures == {"bad": "version 2"}
