from __future__ import annotations

import pytest

from tests.fakes.pods import pod_config
from tests.fakes.shim import until
from zos_cri._pb import cgroups_v2_pb2
from zos_cri.cri.shim_stats import ShimStats
from zos_cri.errors import Unimplemented
from zos_cri.shim.handler import pack

pytestmark = pytest.mark.root
CONTAINER = "a" * 64


@pytest.fixture
async def stats(bench, monkeypatch):
    monkeypatch.setattr("zos_cri.stats.clock.MIN_WINDOW", 0)
    stats = ShimStats(table=bench.db.sandboxes, containers=bench.containers, shims=bench.shims)
    yield stats
    await stats.aclose()


async def run(bench, handler="machine"):
    pod = await bench.sandboxes.run(pod_config(), handler)
    await bench.run(CONTAINER, ns=pod, name="a", group=pod)
    return pod


def using(microseconds, memory=0, pids=0):
    metrics = cgroups_v2_pb2.Metrics()
    metrics.cpu.usage_usec, metrics.memory.usage = microseconds, memory
    metrics.pids.current = pids
    return pack(metrics)


def api(bench, pod):
    return bench.shims.get(pod).sandbox


async def test_a_pods_numbers_are_its_sandboxs(bench, stats):
    pod = await run(bench)
    assert stats.pod(pod) is None
    api(bench, pod).told = using(10, 20)
    await stats.measured(pod)
    first = stats.pod(pod)
    assert (first.cpu.usage_ns, first.nano_cores, first.memory.usage) == (10_000, None, 20)
    assert first.interfaces is None
    await stats.measured(pod)  # it has some
    assert api(bench, pod).calls.count("metrics") == 1
    api(bench, pod).told = using(30)
    stats.ask([])
    stats.ask([])
    await until(lambda: stats.pod(pod).cpu.usage_ns == 30_000)
    assert stats.pod(pod).nano_cores > 0
    assert api(bench, pod).calls.count("metrics") == 2  # never two at once


async def test_a_containers_numbers_are_its_tasks(bench, stats):
    pod = await run(bench)
    bench.tasks.used[CONTAINER] = using(10, 20, 3)
    await stats.measured(CONTAINER)
    found = stats.container(CONTAINER)
    assert (found.cpu.usage_ns, found.memory.usage) == (10_000, 20)
    assert (found.processes, found.threads, found.pressure) == (3, 3, {})
    bench.tasks.used[CONTAINER] = using(50)
    stats.ask([CONTAINER, "unknown"])
    await until(lambda: stats.container(CONTAINER).cpu.usage_ns == 50_000)
    assert stats.container(CONTAINER).nano_cores > 0
    stats.ask([])  # its cgroup was found
    assert stats.container(CONTAINER) is None
    assert stats.pod(pod) is None or stats.pod(pod).cpu is not None


async def test_others_are_not_asked_for(bench, stats):
    pod = await run(bench, "runc")
    stats.ask([CONTAINER])
    for id_ in (pod, CONTAINER, "unknown"):
        await stats.measured(id_)
    assert bench.tasks.count("stats") == 0
    assert (stats.pod(pod), stats.container(CONTAINER)) == (None, None)


async def test_a_shim_that_tells_none_is_no_harm(bench, stats):
    pod = await run(bench)
    api(bench, pod).told = using(10)
    await stats.measured(pod)
    api(bench, pod).fail("metrics", Unimplemented("no"))
    stats.ask([])
    await until(lambda: not stats._asking)
    assert stats.pod(pod).cpu.usage_ns == 10_000  # what it said last
    await stats.measured(CONTAINER)  # an empty message
    assert stats.container(CONTAINER) is None


async def test_what_is_gone_is_forgotten(bench, stats):
    pod = await run(bench)
    api(bench, pod).told = using(10)
    await stats.measured(pod)
    await bench.sandboxes.stop(pod)
    stats.ask([CONTAINER])
    await stats.measured(pod)
    assert (stats.pod(pod), stats._known) == (None, {})
