"""What NRI plugins are told of pods and containers, and when; over fake shims."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from tests.fakes.containers import new
from tests.fakes.nri import nri_over
from tests.fakes.nri_plugin import HANG, FakePlugin, joined
from tests.fakes.pods import pod_config
from tests.fakes.shim import until
from zos_cri import errors
from zos_cri._pb import cri_pb2 as cri
from zos_cri._pb import nri_pb2 as pb
from zos_cri.cri.nri import New
from zos_cri.cri.views import OWNER, CriContainer, Views
from zos_cri.nri.plugin import Timeouts
from zos_cri.store.lifecycle import ContainerState

ID = "c" * 64
CONFIG = cri.ContainerConfig(
    metadata=cri.ContainerMetadata(name="main"),
    linux=cri.LinuxContainerConfig(resources=cri.LinuxContainerResources(cpu_shares=7)),
)
EXTRA = msgspec.msgpack.encode(
    CriContainer(config=CONFIG.SerializeToString(), image_id="sha256:1", image_ref="busybox")
)
SPEC: dict[str, Any] = {
    "process": {"args": ["x"], "env": []},
    "linux": {"resources": {}, "cgroupsPath": "/x"},
}


class Owner:
    """As `cri.creation.Creation`, for what NRI has to do with it."""

    shim_writes_log = False

    def __init__(self, nri):
        self.nri = nri

    async def starting(self, record):
        pass

    async def attaching(self, record):
        pass

    async def start_undone(self, record):
        pass

    async def exited(self, record):
        pass

    async def removed(self, meta):
        pass

    async def task_created(self, record, pid):
        await self.nri.start(record, pid)

    async def removing(self, record):
        await self.nri.remove(record)


class Node:
    """Pods and containers, with plugins."""

    def __init__(self, bench, **options):
        self.bench = bench
        self.views = Views()
        self.nri = nri_over(bench, self.views, **options)
        bench.nri = self.nri
        bench.sandboxes = bench.serve_pods()
        bench.containers.own(OWNER, Owner(self.nri))

    async def join(self, name="fake", index="10", **answers):
        fake = FakePlugin(**answers)
        plugin = self.nri.plugins.plugin()
        await fake.connect(plugin)
        await joined(self.nri.plugins, fake, plugin, name, index)
        return fake

    async def run_pod(self, name="pod"):
        return await self.bench.sandboxes.run(pod_config(name, host=True), "")

    async def create(self, pod, id_=ID):
        """As CreateContainer does it."""
        meta = self.bench.sandboxes.find(pod).meta
        try:
            adjusted = await self.nri.create(New(id_, meta, CONFIG, "sha256:1", SPEC))
            container = new(
                id_,
                ns=pod,
                group=pod,
                owner=OWNER,
                extra=EXTRA,
                spec=adjusted.spec,
                resources=adjusted.resources,
            )
            await self.bench.containers.create(container)
        except BaseException:
            await self.nri.undo_create(id_)
            raise

    async def run(self, pod, id_=ID):
        await self.create(pod, id_)
        await self.bench.containers.start(id_)


@pytest.fixture
async def node(bench):
    node = Node(bench)
    yield node
    node.nri.plugins.close()


async def test_a_life(node, bench):
    fake = await node.join()
    pod = await node.run_pod()
    await node.run(pod)
    bench.tasks.end(ID, 3)
    await until(lambda: "StopContainer" in fake.names())
    await bench.sandboxes.stop(pod)
    await bench.sandboxes.remove(pod)
    assert fake.names() == [
        "RunPodSandbox",
        "CreateContainer",
        "ValidateContainerAdjustment",
        "PostCreateContainer",
        "StartContainer",
        "PostStartContainer",
        "StopContainer",
        "StopPodSandbox",
        "RemoveContainer",
        "RemovePodSandbox",
    ]
    made = fake.last("CreateContainer")
    assert (made.pod.id, made.container.name, made.container.args) == (pod, "main", ["x"])
    started = fake.last("StartContainer").container
    assert (started.state, started.pid) == (pb.CONTAINER_CREATED, 1001)
    assert fake.last("PostStartContainer").container.state == pb.CONTAINER_RUNNING
    ended = fake.last("StopContainer").container
    assert (ended.state, ended.exit_code) == (pb.CONTAINER_STOPPED, 3)
    assert node.nri._stages == {} == node.nri._making


async def test_where_nobody_listens_nothing_is_made(node, bench, monkeypatch):
    """And no state is left behind."""
    for method in ("_pod", "_new"):
        monkeypatch.setattr(node.nri, method, None)
    monkeypatch.setattr("zos_cri.cri.nri._spec", None)
    pod = await node.run_pod()
    await node.run(pod)
    record = bench.containers.find(ID)
    assert await node.nri.update(record, cri.LinuxContainerResources()) is None
    await node.nri.updated(record)
    await node.nri.update_pod(bench.sandboxes.find(pod).meta, {})
    await node.nri.pod_updated(bench.sandboxes.find(pod).meta)
    await bench.sandboxes.stop(pod)
    await bench.sandboxes.remove(pod)
    assert node.nri._stages == {} == node.nri._making


async def test_a_pod_is_stopped_once(node, bench):
    fake = await node.join()
    pod = await node.run_pod()
    for _ in range(2):
        await bench.sandboxes.stop(pod)
    assert fake.names() == ["RunPodSandbox", "StopPodSandbox"]


async def test_a_pod_that_a_plugin_refuses_is_undone(node, bench):
    fake = await node.join(RunPodSandbox=errors.PermissionDenied("no"))
    with pytest.raises(errors.PermissionDenied, match="NRI plugin 10-fake"):
        await node.run_pod()
    assert fake.names() == ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"]
    assert bench.leftovers() == []
    assert node.nri._stages == {}


async def test_a_container_that_is_never_started(node, bench):
    fake = await node.join()
    pod = await node.run_pod()
    await node.create(pod)
    await bench.containers.remove(ID)
    assert fake.names()[-3:] == ["PostCreateContainer", "StopContainer", "RemoveContainer"]


async def test_a_start_that_a_plugin_refuses(node, bench):
    fake = await node.join(StartContainer=errors.FailedPrecondition("not now"))
    pod = await node.run_pod()
    await node.create(pod)
    with pytest.raises(errors.FailedPrecondition, match="not now"):
        await bench.containers.start(ID)
    assert bench.status().state is ContainerState.EXITED
    assert "start" not in [call[0] for call in bench.tasks.calls]
    await until(lambda: fake.names()[-1] == "StopContainer")


async def test_a_container_that_a_plugin_refuses(node, bench):
    fake = await node.join(CreateContainer=errors.InvalidArgument("not so"))
    pod = await node.run_pod()
    with pytest.raises(errors.InvalidArgument, match="not so"):
        await node.create(pod)
    assert fake.names()[1:] == ["CreateContainer", "StopContainer", "RemoveContainer"]
    assert list(bench.containers) == []


async def test_adjustments_come_into_the_spec_and_the_status(node, bench):
    adjust = pb.ContainerAdjustment(args=["y"])
    adjust.linux.resources.memory.limit.value = 1 << 20
    await node.join(CreateContainer=pb.CreateContainerResponse(adjust=adjust))
    await node.create(await node.run_pod())
    spec = json.loads((bench.shims.bundles / ID / "config.json").read_bytes())
    assert spec["process"]["args"] == ["y"]
    assert spec["linux"]["resources"]["memory"]["limit"] == 1 << 20
    found = node.views.resources(bench.containers.find(ID))
    assert (found.cpu_shares, found.memory_limit_in_bytes) == (7, 1 << 20)


@pytest.mark.parametrize(
    ("adjust", "message"),
    [
        (pb.ContainerAdjustment(args=["\0"]), "NRI adjustment: args: has a NUL byte"),
        (
            pb.ContainerAdjustment(CDI_devices=[pb.CDIDevice(name="v.com/c=d")]),
            'NRI adjustment: .*no CDI spec file has a device "v.com/c=d"',
        ),
    ],
)
async def test_what_cannot_be_had_says_so(node, bench, adjust, message):
    await node.join(CreateContainer=pb.CreateContainerResponse(adjust=adjust))
    pod = await node.run_pod()
    with pytest.raises(errors.InvalidArgument, match=message):
        await node.create(pod)


async def test_cdi_devices_of_plugins(bench, tmp_path):
    edits = {"env": ["FROM=cdi"]}
    vendor = {
        "cdiVersion": "0.6.0",
        "kind": "v.com/c",
        "devices": [{"name": "d", "containerEdits": edits}],
    }
    (tmp_path / "cdi").mkdir()
    (tmp_path / "cdi" / "v.json").write_text(json.dumps(vendor))
    node = Node(bench, cdi=(str(tmp_path / "cdi"),))
    adjust = pb.ContainerAdjustment(CDI_devices=[pb.CDIDevice(name="v.com/c=d")])
    await node.join(CreateContainer=pb.CreateContainerResponse(adjust=adjust))
    pod = await node.run_pod()
    meta = bench.sandboxes.find(pod).meta
    spec: dict[str, Any] = {
        **SPEC,
        "process": {"args": ["x"], "env": [], "user": {"uid": 0, "gid": 0}},
        "mounts": [],
    }
    found = await node.nri.create(New(ID, meta, CONFIG, "", spec))
    assert found.spec["process"]["env"][-1] == "FROM=cdi"
    node.nri.plugins.close()


# ---- a plugin that joins


async def test_one_that_joins_is_told_of_what_there_is(node, bench):
    """After a restart as well, of which nothing is known but the records."""
    pod = await node.run_pod()
    await node.run(pod)
    await node.create(pod, "d" * 64)
    await node.run(pod, "e" * 64)
    bench.tasks.end("e" * 64, 0)
    await until(lambda: bench.status("e" * 64).state is ContainerState.EXITED)
    node.nri._stages.clear()
    fake = await node.join()
    request = fake.last("Synchronize")
    assert [each.id for each in request.pods] == [pod]
    assert {each.id: each.state for each in request.containers} == {
        ID: pb.CONTAINER_RUNNING,
        "d" * 64: pb.CONTAINER_CREATED,
    }
    await bench.sandboxes.remove(pod)
    stopped = [r.container.id for name, r in fake.calls if name == "StopContainer"]
    removed = {r.container.id for name, r in fake.calls if name == "RemoveContainer"}
    assert sorted(stopped) == [ID, "d" * 64]
    assert removed == {ID, "d" * 64, "e" * 64}
    assert fake.names()[-1] == "RemovePodSandbox"


async def test_what_is_being_made_when_one_joins_is_not_lost(node, bench):
    """Its CreateContainer is past, and there is no record of it yet."""
    pod = await node.run_pod()
    meta = bench.sandboxes.find(pod).meta
    await node.nri.create(New(ID, meta, CONFIG, "", SPEC))
    fake = await node.join()
    assert [each.id for each in fake.last("Synchronize").containers] == [ID]
    await bench.containers.create(new(ID, ns=pod, group=pod, owner=OWNER, extra=EXTRA))
    await until(lambda: fake.names() == ["PostCreateContainer"])
    assert node.nri._making == {}


async def test_a_container_made_while_one_joins_waits_for_it(node, bench):
    pod = await node.run_pod()
    fake = FakePlugin(Synchronize=HANG)
    plugin = node.nri.plugins.plugin()
    await fake.connect(plugin)
    joining = asyncio.create_task(joined(node.nri.plugins, fake, plugin))
    await until(lambda: any(name == "Synchronize" for name, _ in fake.calls))
    creating = asyncio.create_task(node.create(pod))
    await asyncio.wait_for(node.nri.undo_create("f" * 64), 5)  # what nobody is told of goes on
    assert not creating.done()
    plugin.close()  # it doesn't join after all
    await asyncio.gather(joining, return_exceptions=True)
    await creating
    assert bench.status().state is ContainerState.CREATED


# ---- updates


async def test_updates_that_plugins_want(node, bench):
    pod = await node.run_pod()
    await node.run(pod)
    update = pb.ContainerUpdate(container_id=ID)
    update.linux.resources.cpu.shares.value = 9
    gone = pb.ContainerUpdate(container_id="f" * 64)
    gone.CopyFrom(update)
    gone.container_id = "f" * 64
    assert await node.nri.change([update, gone], ()) == []
    assert node.views.resources(bench.containers.find(ID)).cpu_shares == 9
    assert [call[0] for call in bench.tasks.calls][-1] == "update"


@pytest.mark.parametrize("ignore", [False, True])
async def test_updates_that_fail(node, bench, ignore):
    pod = await node.run_pod()
    await node.run(pod)
    update = pb.ContainerUpdate(container_id=ID, ignore_failure=ignore)
    update.linux.resources.rdt_class.value = "gold"
    assert await node.nri.change([update], ()) == ([] if ignore else [update])


async def test_evictions(node, bench):
    pod = await node.run_pod()
    await node.run(pod)
    await node.nri.change((), [pb.ContainerEviction(container_id=ID, reason="why\nnot")])
    assert bench.status().state is ContainerState.EXITED
    await node.nri.change((), [pb.ContainerEviction(container_id="f" * 64)])


async def test_an_update_goes_through_plugins(node, bench):
    answer = pb.UpdateContainerResponse()
    answer.update.add(container_id=ID).linux.resources.cpu.shares.value = 11
    fake = await node.join(UpdateContainer=answer)
    pod = await node.run_pod()
    await node.run(pod)
    asked = cri.LinuxContainerResources(cpu_shares=5, memory_limit_in_bytes=100)
    wanted = await node.nri.update(bench.containers.find(ID), asked)
    assert (wanted.cpu.shares.value, wanted.memory.limit.value) == (11, 100)
    assert fake.last("UpdateContainer").linux_resources.cpu.shares.value == 5


async def test_one_that_fails_where_it_has_no_word_is_only_said(bench, caplog):
    node = Node(bench, timeouts=Timeouts(5.0, 0.1))
    await node.join(
        PostCreateContainer=errors.Internal("no"), RemoveContainer=errors.Internal("no")
    )
    pod = await node.run_pod()
    await node.create(pod)
    await bench.containers.remove(ID)
    assert caplog.text.count("NRI plugin failed") == 2
    node.nri.plugins.close()
