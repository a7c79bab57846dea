from __future__ import annotations

import asyncio
import os

import msgspec
import pytest

from tests.fakes.pods import pod_config
from tests.fakes.shim import until
from zos_cri._pb import cri_pb2 as pb
from zos_cri.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from zos_cri.linux import namespaces
from zos_cri.module import recovery
from zos_cri.shim.manager import DeadShim
from zos_cri.store.lifecycle import ContainerState, SandboxState

pytestmark = pytest.mark.root
S = SandboxState
BROKEN = Unavailable("not now")


async def containers_of(bench, pod, *names):
    for name in names:
        await bench.run(name * 64, ns=pod, name=name, group=pod)


# ---- run


async def test_a_pod_is_ready_with_its_namespaces_files_address_and_shim(bench):
    pod = await bench.sandboxes.run(pod_config(hostname="web"), "")
    record = bench.sandboxes.ready(pod[:10])
    assert record.status.ips == ("10.0.0.7", "fd00::7")
    assert record.meta.handler == "runc"
    for path in (record.meta.netns, record.meta.ipcns, record.meta.utsns):
        assert namespaces.is_pinned(path)
    files = bench.sandboxes.files(pod)
    assert files.hostname.read_text() == "web\n"
    assert os.path.ismount(files.directory / "shm")
    assert bench.shims.calls == [("start", pod)]
    assert bench.network.calls == [("add", record.meta.netns)]
    await bench.sandboxes.remove(pod)
    assert bench.leftovers() == []


async def test_a_pod_on_the_hosts_namespaces_has_neither_an_address_nor_pins(bench):
    pod = await bench.sandboxes.run(pod_config(host=True), "other")
    record = bench.sandboxes.ready(pod)
    assert (record.status.ips, record.meta.netns, record.meta.handler) == ((), "", "other")
    assert bench.network.calls == []
    await bench.sandboxes.stop(pod)
    await bench.sandboxes.remove(pod)
    assert bench.leftovers() == []


async def test_a_containers_start_is_announced_with_the_pod(bench, monkeypatch):
    announced = []
    monkeypatch.setattr(bench.containers, "soon", lambda: announced.append(bench.shims.calls[:]))
    pod = await bench.sandboxes.run(pod_config(), "")
    assert announced == [[]]  # before anything is made: the kernel takes its time
    await bench.sandboxes.remove(pod)


async def test_the_network_is_told_of_ports_limits_and_cgroup(bench):
    config = pod_config(
        port_mappings=[
            pb.PortMapping(protocol=pb.UDP, container_port=53, host_port=5353, host_ip="127.0.0.1")
        ],
        annotations={"kubernetes.io/ingress-bandwidth": "10M"},
    )
    config.linux.cgroup_parent = "/pods"
    pod = await bench.sandboxes.run(config, "")
    told = bench.network.connected[pod]
    assert msgspec.to_builtins(told.port_mappings) == (
        {"protocol": "udp", "container_port": 53, "host_port": 5353, "host_ip": "127.0.0.1"},
    )
    assert told.bandwidth.ingress_rate == 10_000_000
    assert told.cgroup_parent == "/pods"


@pytest.mark.parametrize(
    ("change", "handler", "says"),
    [
        ({}, "kata", 'runtime_handler: "kata" is not configured, only machine, other, runc'),
        (
            {"metadata": pb.PodSandboxMetadata(name="a", uid="c")},
            "",
            "metadata.namespace: is empty",
        ),
        ({"annotations": {"kubernetes.io/egress-bandwidth": "fast"}}, "", "egress-bandwidth"),
        ({"port_mappings": [pb.PortMapping(container_port=1, host_port=70000)]}, "", "70000"),
        ({"hostname": "h" * 65}, "", "longer than 64"),
        ({"dns_config": pb.DNSConfig(searches=["a b"])}, "", "dns_config.searches"),
        ({"linux": pb.LinuxPodSandboxConfig(sysctls={"vm.swappiness": "1"})}, "", "vm.swappiness"),
    ],
)
async def test_what_is_wrong_is_named_and_nothing_is_left(bench, change, handler, says):
    config = pod_config()
    for field, value in change.items():
        config.ClearField(field)
        config.MergeFrom(pb.PodSandboxConfig(**{field: value}))
    with pytest.raises(InvalidArgument, match=says):
        await bench.sandboxes.run(config, handler)
    assert bench.leftovers() == []


async def test_the_same_call_joins_and_finds_another_configuration_is_refused(bench):
    ids = await asyncio.gather(*(bench.sandboxes.run(pod_config(), "") for _ in range(3)))
    ids.append(await bench.sandboxes.run(pod_config(), ""))
    assert len(set(ids)) == 1
    assert len(bench.network.calls) == 1
    with pytest.raises(AlreadyExists, match=r"is ready and has another configuration"):
        await bench.sandboxes.run(pod_config(hostname="x"), "")
    with pytest.raises(AlreadyExists):
        await bench.sandboxes.run(pod_config(), "other")


async def test_a_run_goes_on_without_its_caller(bench):
    run = asyncio.create_task(bench.sandboxes.run(pod_config(), ""))
    await until(lambda: len(bench.db.sandboxes))
    run.cancel()
    pod = await bench.sandboxes.run(pod_config(), "")
    assert bench.pod(pod).state is S.READY
    assert len(bench.network.calls) == 1


@pytest.mark.parametrize("stage", ["cni", "shim", "init", "init-start"])
async def test_a_stage_that_fails_undoes_all(bench, stage):
    if stage == "cni":
        bench.network.failures["add"] = BROKEN
    elif stage == "shim":
        bench.shims.fail("start", BROKEN)
    elif stage == "init":
        bench.init.failure = BROKEN
    else:
        bench.tasks.fail("start", BROKEN)
    with pytest.raises(Unavailable, match="not now"):
        await bench.sandboxes.run(pod_config(shared_pid=True), "")
    assert bench.leftovers() == []


async def test_what_could_not_be_undone_is_listed_and_taken_away_by_the_next_run(bench):
    bench.network.failures = {"add": BROKEN, "delete": BROKEN}
    with pytest.raises(Unavailable):
        await bench.sandboxes.run(pod_config(), "")
    [record] = bench.db.sandboxes
    assert record.status.state is S.REMOVING
    bench.network.failures.clear()
    pod = await bench.sandboxes.run(pod_config(), "")
    assert pod != record.meta.id
    assert list(bench.network.connected) == [pod]


async def test_an_init_holds_the_pid_namespace_and_ends_with_the_pod(bench):
    pod = await bench.sandboxes.run(pod_config(shared_pid=True), "")
    assert bench.tasks.running(pod)
    await containers_of(bench, pod, "a")
    await bench.sandboxes.stop(pod)
    assert bench.containers.get(pod) is None
    assert bench.status("a" * 64).state is ContainerState.EXITED
    assert bench.tasks.tasks == {}
    await bench.sandboxes.remove(pod)
    assert bench.leftovers() == []


# ---- stop, remove


async def test_stop_ends_all_containers_gives_the_address_back_and_keeps_the_records(bench):
    pod = await bench.sandboxes.run(pod_config(), "")
    await containers_of(bench, pod, "a", "b")
    await bench.sandboxes.stop(pod)
    status = bench.pod(pod)
    assert (status.state, status.ips, status.network_released) == (S.NOT_READY, (), True)
    assert {bench.status(c * 64).exit_code for c in "ab"} == {137}
    assert bench.shims.shims == bench.network.connected == {}
    assert not bench.sandboxes.files(pod).directory.exists()
    with pytest.raises(FailedPrecondition, match="is not_ready, not ready"):
        bench.sandboxes.ready(pod)
    with pytest.raises(AlreadyExists, match="is not_ready"):
        await bench.sandboxes.run(pod_config(), "")
    calls = bench.network.calls[:]
    await bench.sandboxes.stop(pod)
    assert bench.network.calls == calls
    await bench.sandboxes.remove(pod)
    assert bench.leftovers() == []


async def test_plugins_are_told_of_it_in_order(bench):
    id_ = await bench.sandboxes.run(pod_config(), "")
    assert bench.nri.calls == [("run", id_)]
    await bench.sandboxes.stop(id_)
    await bench.sandboxes.remove(id_)
    # Whoever is told twice tells it once: `cri.nri.Nri`.
    told = list(dict.fromkeys(name for name, _ in bench.nri.calls))
    assert told == ["run", "stop", "remove"]


async def test_a_plugin_that_refuses_undoes_all(bench):
    bench.nri.failure = Unavailable("refused")
    with pytest.raises(Unavailable, match="refused"):
        await bench.sandboxes.run(pod_config(), "")
    assert [name for name, _ in bench.nri.calls] == ["run", "stop", "remove"]
    assert bench.leftovers() == []


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_remove_looks_again_only_for_what_another_server_has_released(bench, restarted):
    pod = await bench.sandboxes.run(pod_config(), "")
    await bench.sandboxes.stop(pod)
    if restarted:
        bench.sandboxes = bench.serve_pods()
    bench.shims.calls.clear()
    await bench.sandboxes.remove(pod)
    assert (("stop", pod) in bench.shims.calls) == restarted
    assert bench.leftovers() == []


async def test_stop_and_remove_of_what_is_not_there(bench):
    await bench.sandboxes.stop("f" * 64)
    await bench.sandboxes.remove("f" * 64)
    with pytest.raises(NotFound):
        bench.sandboxes.find("f" * 64)


@pytest.mark.parametrize("failing", ["cni", "shim", "container"])
async def test_a_stop_that_failed_is_tried_again(bench, failing):
    pod = await bench.sandboxes.run(pod_config(), "")
    await containers_of(bench, pod, "a")
    if failing == "cni":
        bench.network.failures["delete"] = BROKEN
    elif failing == "shim":
        bench.shims.fail("stop", BROKEN, times=2)
    else:
        bench.tasks.fail("kill", BROKEN, times=2)
    for call in (bench.sandboxes.stop, bench.sandboxes.remove):
        with pytest.raises(Unavailable, match="not now"):
            await call(pod)
        assert bench.pod(pod).state is S.STOPPING
    bench.network.failures.clear()
    await bench.sandboxes.stop(pod)
    assert bench.pod(pod).state is S.NOT_READY
    await bench.sandboxes.remove(pod)
    assert bench.leftovers() == []


async def test_stops_and_removes_at_once_end_in_nothing(bench):
    pod = await bench.sandboxes.run(pod_config(shared_pid=True), "")
    await containers_of(bench, pod, "a", "b")
    await asyncio.gather(
        *(bench.sandboxes.stop(pod) for _ in range(2)),
        *(bench.sandboxes.remove(pod) for _ in range(2)),
        bench.containers.remove("a" * 64),
        bench.sandboxes.stop(pod),
    )
    assert bench.leftovers() == []
    assert bench.network.calls.count(("delete", bench.network.calls[-1][1])) == 1


async def test_a_remove_is_not_satisfied_by_a_stop_under_way(bench):
    pod = await bench.sandboxes.run(pod_config(), "")
    remove = asyncio.create_task(bench.sandboxes.remove(pod))
    while not remove.done():
        asyncio.get_running_loop().call_soon(asyncio.ensure_future, bench.sandboxes.stop(pod))
        await asyncio.sleep(0.0005)
    await remove
    assert bench.leftovers() == []


async def test_a_pod_that_is_being_made_is_stopped_and_removed_after_that(bench):
    run = asyncio.create_task(bench.sandboxes.run(pod_config(), ""))
    await until(lambda: len(bench.db.sandboxes))
    [record] = bench.db.sandboxes
    await bench.sandboxes.remove(record.meta.id)
    assert await run == record.meta.id
    assert bench.leftovers() == []


async def test_a_namespace_that_is_gone_is_told_to_the_network_as_such(bench):
    pod = await bench.sandboxes.run(pod_config(), "")
    namespaces.unpin_now(bench.sandboxes.find(pod).meta.netns)
    await bench.sandboxes.stop(pod)
    assert bench.network.calls[-1] == ("delete", "")


# ---- losses and recovery


async def test_a_lost_shim_makes_the_pod_not_ready_until_it_is_removed(bench):
    pod = await bench.sandboxes.run(pod_config(), "")
    await containers_of(bench, pod, "a")
    bench.shims.lose(pod)
    await recovery.shim_lost(
        bench.containers, DeadShim(pod, bench.containers._handlers["runc"], 1, {})
    )
    await bench.sandboxes.lost(pod)
    await bench.sandboxes.lost("f" * 64)
    assert bench.pod(pod).state is S.NOT_READY
    assert not bench.pod(pod).network_released
    await bench.sandboxes.remove(pod)
    assert bench.leftovers() == []


async def test_a_shim_that_is_lost_takes_all_pods_in_it(bench):
    bench.pods_per_shim["runc"] = 3
    pods = [await bench.sandboxes.run(pod_config(name), "") for name in "abc"]
    groups = {bench.sandboxes.find(pod).meta.group for pod in pods}
    assert len(groups) == 1
    assert groups.isdisjoint(pods)
    await bench.sandboxes.remove(pods[0])
    assert [call for call, _ in bench.shims.calls].count("stop") == 0
    await bench.run("d" * 64, ns=pods[1], name="d", group=min(groups))
    bench.shims.lose(min(groups))
    dead = DeadShim(min(groups), bench.containers._handlers["runc"], 1, {})
    await recovery.shim_lost(bench.containers, dead)
    await bench.sandboxes.shim_lost(min(groups))
    assert [bench.pod(pod).state for pod in pods[1:]] == [S.NOT_READY] * 2
    bench.sandboxes = bench.serve_pods()
    await bench.sandboxes.recover()
    other = await bench.sandboxes.run(pod_config("d"), "")
    assert bench.sandboxes.find(other).meta.group not in groups
    for pod in (*pods[1:], other):
        await bench.sandboxes.remove(pod)
    assert bench.leftovers() == []


async def test_a_pod_that_has_left_its_shim_does_not_end_it_whatever_server_removes_it(bench):
    bench.pods_per_shim["runc"] = 2
    first, second = [await bench.sandboxes.run(pod_config(name), "") for name in "ab"]
    await bench.sandboxes.stop(first)
    bench.sandboxes = bench.serve_pods()
    await bench.sandboxes.recover()
    await bench.sandboxes.remove(first)
    assert bench.pod(second).state is S.READY
    assert ("stop", bench.sandboxes.find(second).meta.group) not in bench.shims.calls
    await bench.sandboxes.remove(second)
    assert bench.leftovers() == []


@pytest.mark.parametrize(
    ("recorded", "state"),
    [
        (S.CREATING, None),
        (S.READY, S.READY),
        (S.NOT_READY, S.NOT_READY),
        (S.STOPPING, S.STOPPING),
        (S.REMOVING, None),
    ],
    ids=str,
)
async def test_recovery_of_every_state_with_all_still_there(bench, recorded, state):
    pod = await bench.sandboxes.run(pod_config(), "")
    await bench.db.sandboxes.update(pod, lambda s: msgspec.structs.replace(s, state=recorded))
    bench.sandboxes = bench.serve_pods()
    await bench.sandboxes.recover()
    if state is None:
        assert bench.leftovers() == []
        return
    assert bench.pod(pod).state is state
    await bench.sandboxes.remove(pod)
    assert bench.leftovers() == []


@pytest.mark.parametrize("lost", ["shim", "namespace"])
async def test_recovery_of_a_ready_pod_that_lost_a_part(bench, lost):
    pod = await bench.sandboxes.run(pod_config(), "")
    if lost == "shim":
        bench.shims.lose(pod)
    else:
        namespaces.unpin_now(bench.sandboxes.find(pod).meta.ipcns)
    await bench.sandboxes.recover()
    assert bench.pod(pod).state is S.NOT_READY
    await bench.sandboxes.remove(pod)
    assert bench.leftovers() == []


async def test_a_pod_that_cannot_be_recovered_holds_up_no_other(bench, caplog):
    pods = [await bench.sandboxes.run(pod_config(name), "") for name in "ab"]
    for pod in pods:
        await bench.db.sandboxes.update(pod, lambda s: msgspec.structs.replace(s, state=S.REMOVING))
    bench.shims.fail("stop", BROKEN)
    await bench.sandboxes.recover()
    assert len(bench.db.sandboxes) == 1
    assert "pod sandbox not recovered" in caplog.text
