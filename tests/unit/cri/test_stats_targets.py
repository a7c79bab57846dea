from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tests.fakes.pods import pod_config
from tests.fakes.stats import FakeCollector, FakeLayers
from zos_cri._pb import cri_pb2 as pb
from zos_cri.cri.container_stats import container_stats
from zos_cri.cri.list_container_stats import list_container_stats
from zos_cri.cri.list_metric_descriptors import list_metric_descriptors
from zos_cri.cri.list_pod_sandbox_metrics import list_pod_sandbox_metrics
from zos_cri.cri.list_pod_sandbox_stats import list_pod_sandbox_stats
from zos_cri.cri.pod_sandbox_stats import pod_sandbox_stats
from zos_cri.cri.shim_stats import ShimStats
from zos_cri.cri.stats_targets import CriTargets, Statistics, follow, limits
from zos_cri.cri.views import OWNER, CriContainer, Views
from zos_cri.errors import NotFound
from zos_cri.module.types import ContainerEventKind, ContainerNotice
from zos_cri.stats.metrics import Encoder
from zos_cri.stats.model import Limits
from zos_cri.stats.sampler import Sampler
from zos_cri.store.db import Record
from zos_cri.store.lifecycle import ContainerState, SandboxState
from zos_cri.store.model import ContainerMeta, ContainerStatus, SandboxMeta, SandboxStatus

A, B, OLD = "a" * 64, "b" * 64, "0" * 64
POD, OTHER = "p" * 64, "q" * 64
CONFIG = pb.ContainerConfig(
    metadata=pb.ContainerMetadata(name="main", attempt=2),
    image=pb.ImageSpec(image="sha256:1", user_specified_image="busybox:1"),
    labels={"app": "web"},
    annotations={"note": "n"},
    linux=pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(cpu_shares=7)),
)


class Records(dict[str, Any]):
    """A table: iteration gives records."""

    def __iter__(self) -> Any:
        return iter(list(self.values()))

    def find(self, prefix: str) -> Any:
        for id_, record in self.items():
            if id_.startswith(prefix):
                return record
        raise NotFound(prefix)


def container(id_: str, ns: str = POD, *, owner: str = OWNER, **status: Any) -> Any:
    extra = CriContainer(
        config=CONFIG.SerializeToString(), image_id="sha256:1", image_ref="busybox"
    )
    meta = ContainerMeta(
        id=id_,
        ns=ns,
        name=id_,
        group=ns,
        handler="runc",
        created_at=5,
        bundle="/b",
        cgroup=f"/pods/{id_}",
        owner=owner,
        extra=msgspec.msgpack.encode(extra),
    )
    return Record(meta, ContainerStatus(**{"state": ContainerState.RUNNING, "pid": 9, **status}))


def sandbox(id_: str, cgroup: str = "", state: SandboxState = SandboxState.READY) -> Any:
    config = pod_config(labels={"pod": id_[0]})
    meta = SandboxMeta(
        id=id_,
        name=id_,
        config=config.SerializeToString(),
        handler="runc",
        created_at=9,
        netns=f"/run/{id_}",
        cgroup=cgroup,
    )
    return Record(meta, SandboxStatus(state=state))


class Bench:
    def __init__(self, directory: Any) -> None:
        self.containers = Records()
        self.table = Records()
        self.views = Views()
        sandboxes: Any = SimpleNamespace(table=self.table, find=self.table.find)
        self.targets = CriTargets(self.containers, sandboxes, self.views)  # type: ignore[arg-type]
        self.collector = FakeCollector()
        self.sampler = Sampler(
            targets=self.targets,
            collector=self.collector,
            layers=FakeLayers(),
            encoder=Encoder(),
            mountpoint=str(directory),
            interval=3600,
        )
        told = ShimStats(
            table=self.table,  # type: ignore[arg-type]
            containers=self.containers,  # type: ignore[arg-type]
            shims=None,  # type: ignore[arg-type]
        )
        self.services: Any = SimpleNamespace(
            containers=self.containers,
            sandboxes=sandboxes,
            views=self.views,
            creation=SimpleNamespace(container=self.containers.find),
            stats=Statistics(self.sampler, self.targets, told),
        )

    def add(self, *records: Any) -> None:
        for record in records:
            table = self.table if isinstance(record.meta, SandboxMeta) else self.containers
            table[record.meta.id] = record

    async def listed(self, **wanted: Any) -> list[str]:
        filter_ = pb.ContainerStatsFilter(**wanted)
        request = pb.ListContainerStatsRequest(filter=filter_)
        answer = await list_container_stats(self.services, request)
        stats = pb.ListContainerStatsResponse.FromString(answer).stats
        return [s.attributes.id for s in stats]

    async def pods(self, **wanted: Any) -> list[str]:
        filter_ = pb.PodSandboxStatsFilter(**wanted)
        request = pb.ListPodSandboxStatsRequest(filter=filter_)
        answer = await list_pod_sandbox_stats(self.services, request)
        stats = pb.ListPodSandboxStatsResponse.FromString(answer).stats
        return [s.attributes.id for s in stats]


@pytest.fixture
async def bench(tmp_path: Any) -> Any:
    bench = Bench(tmp_path)
    yield bench
    await bench.sampler.aclose()


# ---- targets


async def test_what_runs_is_sampled(bench: Bench) -> None:
    bench.add(
        sandbox(POD),
        container(A, started_at=3),
        container("1" * 64, owner=""),
        container("2" * 64, state=ContainerState.EXITED),
        container("3" * 64, state=ContainerState.CREATED),
    )
    (target,) = bench.targets.containers()
    assert (target.id, target.cgroup, target.pid, target.started_at) == (A, f"/pods/{A}", 9, 3)
    assert target.labels == ("pod", "ns", "main", A, "busybox:1")
    attributes = pb.ContainerAttributes.FromString(target.attributes)
    assert (attributes.id, attributes.metadata.attempt) == (A, 2)
    assert (attributes.labels["app"], attributes.annotations["note"]) == ("web", "n")
    assert bench.targets.container(A) is target
    assert bench.targets.container("2" * 64) is None
    assert bench.targets.container("unknown") is None
    assert bench.targets.layers() == {A: True, "2" * 64: False, "3" * 64: False}


async def test_a_target_is_made_anew_when_its_record_changes(bench: Bench) -> None:
    bench.add(sandbox(POD), container(A))
    assert bench.targets.container(A).limits == Limits(cpu_shares=7)  # type: ignore[union-attr]
    more = pb.LinuxContainerResources(cpu_shares=8).SerializeToString()
    bench.add(container(A, resources=more))
    assert bench.targets.container(A).limits == Limits(cpu_shares=8)  # type: ignore[union-attr]


async def test_a_pod_has_its_cgroup_only_to_itself(bench: Bench) -> None:
    bench.add(sandbox(POD, "/pod1"), sandbox(OTHER, "/shared"), sandbox("r" * 64, "/shared"))
    bench.add(sandbox("s" * 64, "/"), sandbox("t" * 64))
    bench.add(sandbox("u" * 64, "/pod1", SandboxState.NOT_READY))
    pods = {pod.id[0]: pod for pod in bench.targets.pods()}
    assert {name: pod.cgroup for name, pod in pods.items()} == {
        "p": "/pod1",
        "q": "",
        "r": "",
        "s": "",
        "t": "",
    }
    assert pods["q"].netns == f"/run/{OTHER}"
    assert pods["q"].labels == ("pod", "ns", "", OTHER, "")


def test_limits() -> None:
    given = pb.LinuxContainerResources(
        cpu_quota=1, memory_swap_limit_in_bytes=2, unified={"memory.low": "3"}
    )
    assert limits(given) == Limits(cpu_quota=1, memory_swap=2, memory_reservation=3)
    assert limits(pb.LinuxContainerResources(unified={"memory.low": "max"})) == Limits()


async def test_notices(bench: Bench) -> None:
    bench.add(sandbox(POD), container(A))
    tell = follow(bench.sampler)
    tell(ContainerNotice(ContainerEventKind.CREATED, bench.containers[A], 1))
    tell(ContainerNotice(ContainerEventKind.STARTED, bench.containers[A], 1))
    await bench.sampler.ready([A])
    assert bench.collector.reads == {A: 1}
    tell(ContainerNotice(ContainerEventKind.STARTED, bench.containers[A], 1))
    await bench.sampler.ready([A])
    assert bench.collector.reads == {A: 1}
    tell(ContainerNotice(ContainerEventKind.STOPPED, bench.containers[A], 1))
    await bench.sampler.ready([A])
    assert bench.collector.reads == {A: 2}  # its sample went with it
    answer = await container_stats(bench.services, pb.ContainerStatsRequest(container_id=A))
    assert pb.ContainerStatsResponse.FromString(answer).stats.HasField("cpu")  # it runs still


# ---- RPCs


async def test_lists_and_their_filters(bench: Bench) -> None:
    bench.add(sandbox(POD), sandbox(OTHER), container(A), container(B, OTHER))
    bench.add(container(OLD, state=ContainerState.EXITED))
    assert await bench.listed() == [A, B]
    assert await bench.listed(id="b") == await bench.listed(pod_sandbox_id="q") == [B]
    assert await bench.listed(id="b", pod_sandbox_id="p") == []
    assert await bench.listed(label_selector={"app": "web"}) == [A, B]
    assert await bench.listed(label_selector={"app": "db"}) == []
    assert await bench.pods() == [POD, OTHER]
    assert await bench.pods(id="q") == await bench.pods(label_selector={"pod": "q"}) == [OTHER]


async def test_only_ready_pods_are_listed(bench: Bench) -> None:
    bench.add(sandbox(POD, state=SandboxState.NOT_READY), sandbox(OTHER))
    assert await bench.pods() == [OTHER]
    request = pb.PodSandboxStatsRequest(pod_sandbox_id=POD[:9])
    answer = await pod_sandbox_stats(bench.services, request)
    stats = pb.PodSandboxStatsResponse.FromString(answer).stats
    assert stats.attributes.id == POD
    assert stats.linux == pb.LinuxPodSandboxStats()


async def test_one_container(bench: Bench) -> None:
    bench.add(sandbox(POD), container(A), container(OLD, state=ContainerState.EXITED))

    async def stats(id_: str) -> pb.ContainerStats:
        answer = await container_stats(bench.services, pb.ContainerStatsRequest(container_id=id_))
        return pb.ContainerStatsResponse.FromString(answer).stats

    assert (await stats(A[:12])).cpu.usage_core_nano_seconds.value == 1000
    assert not (await stats(OLD)).HasField("cpu")
    with pytest.raises(NotFound):
        await stats("unknown")
    with pytest.raises(NotFound):
        await pod_sandbox_stats(bench.services, pb.PodSandboxStatsRequest(pod_sandbox_id="x"))


async def test_metrics(bench: Bench) -> None:
    bench.add(sandbox(POD), container(A), container(OLD, state=ContainerState.EXITED))
    bench.add(sandbox(OTHER, state=SandboxState.NOT_READY))
    answer = await list_pod_sandbox_metrics(bench.services, pb.ListPodSandboxMetricsRequest())
    (pod,) = pb.ListPodSandboxMetricsResponse.FromString(answer).pod_metrics
    assert pod.pod_sandbox_id == POD
    assert [c.container_id for c in pod.container_metrics] == [A]
    described = await list_metric_descriptors(bench.services, pb.ListMetricDescriptorsRequest())
    names = {d.name for d in described.descriptors}
    assert {m.name for m in (*pod.metrics, *pod.container_metrics[0].metrics)} == names
