from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from tests.fakes.stats import FakeCollector, FakeLayers, FakeTargets, container, pod, sample
from zos_cri._pb import cri_pb2 as pb
from zos_cri.errors import NotFound
from zos_cri.linux.cgroupstats import CpuStats, MemoryStats
from zos_cri.stats import sampler as module
from zos_cri.stats.metrics import Encoder
from zos_cri.stats.model import ContainerSample, PodSample
from zos_cri.stats.sampler import Sampler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path


class Bench:
    def __init__(
        self, directory: Path, interval: float = 3600, told: FakeTold | None = None
    ) -> None:
        self.told = told
        self.targets = FakeTargets()
        self.collector = FakeCollector()
        self.layers = FakeLayers()
        self.sampler = Sampler(
            targets=self.targets,
            collector=self.collector,
            layers=self.layers,
            encoder=Encoder(),
            mountpoint=str(directory),
            interval=interval,
            told=told,
        )

    def run(self, *ids: str, tell: bool = True) -> None:
        for id_ in ids:
            self.targets.running[id_] = container(id_)
            if tell:
                self.sampler.started()

    def end(self, id_: str) -> None:
        del self.targets.running[id_]
        self.sampler.stopped(id_)

    def stats(self, id_: str) -> pb.ContainerStats:
        attributes = pb.ContainerAttributes(id=id_).SerializeToString()
        return pb.ContainerStats.FromString(self.sampler.container_stats(id_, attributes))

    def used(self, id_: str) -> int:
        """The fake's counter: readings so far, times 1,000."""
        return self.stats(id_).cpu.usage_core_nano_seconds.value


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not what():
            await asyncio.sleep(0.001)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.collector.gate.set()
    await bench.sampler.aclose()
    assert not any(bench.collector.opened.values())


async def test_the_first_round_comes_at_once(bench: Bench) -> None:
    bench.run(*"abcdefghijklm", tell=False)
    bench.targets.ready["p"] = pod("p")
    bench.sampler.start()
    await until(lambda: "p" in bench.collector.reads)
    assert bench.collector.reads == dict.fromkeys([*"abcdefghijklm", "p"], 1)
    assert {name.partition("_")[0] for name in bench.collector.threads} == {"stats"}
    assert bench.used("m") == 1000


async def test_one_that_starts_is_read_when_it_is_asked_for(bench: Bench) -> None:
    bench.sampler.start()
    await until(lambda: bench.sampler._begun > 0)
    bench.run(*"abcdefghijkl")
    assert bench.used("a") == 0
    await asyncio.gather(*(bench.sampler.ready([*"abcdefghijkl", "unknown"]) for _ in range(3)))
    assert bench.used("a") == 1000
    assert bench.collector.reads == dict.fromkeys("abcdefghijkl", 1)


async def test_nobody_waits_for_ever(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_TIMEOUT", 0.01)
    bench.collector.gate.clear()
    bench.run("a")
    await bench.sampler.ready(["a"])
    await bench.sampler.refresh("a")
    await bench.sampler.detailed()
    stats = bench.stats("a")
    assert stats.attributes.id == "a"
    assert not stats.HasField("cpu")


async def test_a_fresh_sample_is_not_taken_anew(bench: Bench) -> None:
    bench.run("a")
    await bench.sampler.ready(["a"])
    await bench.sampler.refresh("a")
    assert bench.collector.reads["a"] == 1


async def test_an_old_one_is(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run("a")
    await bench.sampler.ready(["a"])
    monkeypatch.setattr(module, "FRESH", -1)
    await bench.sampler.refresh("a")
    assert bench.used("a") == 2000


async def test_one_that_nobody_told_of_is_read_when_asked_for(bench: Bench) -> None:
    bench.run("a", tell=False)
    await bench.sampler.refresh("a")
    assert bench.used("a") == 1000
    await bench.sampler.refresh("not running")


async def test_an_answer_from_memory_makes_newer_numbers_come(bench: Bench) -> None:
    bench.run("a", tell=False)
    bench.sampler.start()
    await until(lambda: bench.collector.reads.get("a"))
    begun = time.monotonic()
    bench.sampler.ask()
    bench.sampler.ask()
    await until(lambda: bench.collector.reads["a"] == 2)
    # Not at once: many who ask don't make many rounds.
    assert time.monotonic() - begun > module.ROUND_GAP / 2
    assert bench.used("a") == 2000


async def test_rounds_come_by_themselves(tmp_path: Path) -> None:
    bench = Bench(tmp_path, interval=0.001)
    bench.run("a", tell=False)
    bench.sampler.start()
    await until(lambda: bench.collector.reads.get("a", 0) > 3)
    await bench.sampler.aclose()


async def test_a_broken_one_does_not_break_the_others(bench: Bench) -> None:
    bench.run(*"abc")
    await bench.sampler.ready("abc")
    bench.collector.errors = {"a": OSError("broken"), "b": NotFound("going")}
    await bench.sampler.detailed()
    assert [bench.used(i) for i in "abc"] == [1000, 1000, 2000]  # the last that was seen
    bench.collector.errors = {}
    bench.sampler.ask()
    bench.sampler.start()
    await until(lambda: bench.used("a") == 2000)


async def test_one_that_is_broken_from_the_start_has_no_numbers(bench: Bench) -> None:
    bench.collector.errors = {"a": ValueError("nonsense")}
    bench.run("a", "b")
    await bench.sampler.ready(["a", "b"])
    assert not bench.stats("a").HasField("cpu")
    assert bench.stats("b").HasField("cpu")


async def test_an_entry_goes_with_its_container(bench: Bench) -> None:
    bench.run("a", "b")
    await bench.sampler.ready(["a", "b"])
    bench.end("a")
    del bench.targets.running["b"]  # nobody said so: the next round sees it
    bench.sampler.start()
    await until(lambda: not any(bench.collector.opened.values()))
    assert not bench.stats("a").HasField("cpu")
    assert not bench.stats("b").HasField("cpu")


async def test_one_that_ends_while_it_is_read_opens_nothing(bench: Bench) -> None:
    bench.collector.gate.clear()
    bench.run("a", "b")
    waiting = asyncio.create_task(bench.sampler.ready("ab"))  # b's reading waits behind a's
    await until(lambda: bench.collector.opened.get("a"))
    bench.end("b")
    bench.end("a")
    bench.collector.gate.set()
    await waiting
    await until(lambda: bench.collector.opened.get("a") == 0)
    await bench.sampler.refresh("a")
    assert not bench.collector.opened.get("b")


async def test_many_come_and_go_without_growth(bench: Bench) -> None:
    bench.sampler.start()
    for n in range(200):
        bench.run(f"c{n}")
        bench.end(f"c{n}")
    await until(lambda: not any(bench.collector.opened.values()))
    assert bench.sampler._containers == {}
    await until(lambda: len(bench.sampler._tasks) == 2)  # the two that always run


async def test_a_pod_that_gets_or_loses_its_own_cgroup_is_opened_anew(bench: Bench) -> None:
    bench.targets.ready["p"] = pod("p", cgroup="/own")
    await bench.sampler.detailed()
    bench.targets.ready["p"] = pod("p", cgroup="")
    bench.sampler.ask()
    bench.sampler.start()
    await until(lambda: bench.collector.reads["p"] == 2)
    await until(lambda: bench.collector.opened["p"] == 1)
    bench.targets.ready.clear()
    bench.sampler.ask()
    await until(lambda: bench.collector.opened["p"] == 0)
    assert bench.sampler.pod_metrics("p", []) == b""


async def test_a_pod_and_its_containers(bench: Bench) -> None:
    bench.run("a", "b")
    bench.targets.ready["p"] = pod("p")
    bench.sampler.start()
    await until(lambda: "p" in bench.collector.reads)
    attributes = pb.PodSandboxAttributes(id="p").SerializeToString()
    containers = [
        (id_, pb.ContainerAttributes(id=id_).SerializeToString()) for id_ in ("a", "b", "new")
    ]
    encoded = bench.sampler.pod_stats("p", attributes, containers)
    stats = pb.PodSandboxStats.FromString(encoded)
    assert stats.attributes.id == "p"
    assert [c.attributes.id for c in stats.linux.containers] == ["a", "b", "new"]
    assert stats.linux.network.default_interface.rx_bytes.value == 1
    assert stats.linux.process.process_count.value == 4


async def test_metrics_are_read_only_when_somebody_wants_them(bench: Bench) -> None:
    bench.run("a")
    bench.targets.ready["p"] = pod("p")
    await bench.sampler.ready(["a"])
    assert bench.collector.detailed == []
    await bench.sampler.detailed()
    assert bench.collector.detailed == ["a"]
    message = pb.PodSandboxMetrics.FromString(bench.sampler.pod_metrics("p", ["a", "unknown"]))
    assert message.pod_sandbox_id == "p"
    assert [c.container_id for c in message.container_metrics] == ["a"]
    assert len(message.container_metrics[0].metrics) > 50
    await bench.sampler.detailed()  # from memory
    assert bench.collector.detailed == ["a"]
    bench.run("b")
    await bench.sampler.ready(["b"])
    assert bench.collector.detailed == ["a", "b"]


async def test_both_who_want_metrics_first_get_them(bench: Bench) -> None:
    bench.run("a")
    bench.targets.ready["p"] = pod("p")

    async def ask() -> bytes:
        await bench.sampler.detailed()
        return bench.sampler.pod_metrics("p", ["a"])

    one, other = await asyncio.gather(ask(), ask())
    assert one == other != b""


async def test_the_writable_layer_stays_when_the_container_has_ended(bench: Bench) -> None:
    bench.sampler.start()
    bench.targets.written["a"] = True
    bench.run("a")
    await until(lambda: bench.stats("a").HasField("writable_layer"))
    bench.end("a")
    stats = bench.stats("a")
    assert stats.writable_layer.used_bytes.value == 100
    assert not stats.HasField("cpu")


async def test_what_is_told_after_the_end_is_ignored(bench: Bench) -> None:
    bench.run("a")
    await bench.sampler.ready(["a"])
    await bench.sampler.aclose()
    bench.run("b")
    bench.end("a")


class FakeTold:
    """Tells what it is given to tell."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.pods: dict[str, PodSample] = {}
        self.containers: dict[str, ContainerSample] = {}
        self.waited: list[str] = []

    def ask(self, containers: Iterable[str]) -> None:
        self.asked.append(sorted(containers))

    async def measured(self, id_: str) -> None:
        self.waited.append(id_)

    def pod(self, id_: str) -> PodSample | None:
        return self.pods.get(id_)

    def container(self, id_: str) -> ContainerSample | None:
        return self.containers.get(id_)


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Bench]:
    """With shims that tell of what the kernel doesn't know."""
    bench = Bench(tmp_path, told=FakeTold())
    yield bench
    await bench.sampler.aclose()


async def test_what_was_told_of_a_pod_counts_where_nothing_was_found(machine: Bench) -> None:
    told = machine.told
    assert told is not None
    told.pods = {
        id_: PodSample(timestamp=5, cpu=CpuStats(usage_ns=42), memory=MemoryStats(usage=7))
        for id_ in ("found", "bare", "early")
    }
    machine.targets.ready = {"found": pod("found", cgroup="/own"), "bare": pod("bare")}
    machine.sampler.start()
    await until(lambda: len(machine.collector.reads) == 2)

    def stats(id_: str) -> pb.LinuxPodSandboxStats:
        return pb.PodSandboxStats.FromString(machine.sampler.pod_stats(id_, b"", ())).linux

    assert told.asked == [[]]  # with each round
    await until(lambda: stats("found").cpu.usage_core_nano_seconds.value == 1000)
    assert stats("bare").cpu.usage_core_nano_seconds.value == 42
    assert stats("bare").memory.usage_bytes.value == 7
    assert stats("bare").network.default_interface.name == "eth0"
    assert stats("early").cpu.usage_core_nano_seconds.value == 42
    assert not stats("other").HasField("cpu")


async def test_what_was_told_of_a_container_counts_where_it_has_no_cgroup(machine: Bench) -> None:
    told = machine.told
    assert told is not None
    told.containers = {id_: sample(cpu=42, usage=7) for id_ in ("a", "b", "gone")}
    machine.collector.errors["b"] = NotFound("no cgroup")
    machine.run("a", "b")
    await machine.sampler.ready(["a", "b"])
    await machine.sampler.refresh("a")
    await machine.sampler.refresh("b")
    assert told.waited == ["b"]
    assert machine.used("a") == 1000
    assert machine.used("b") == 42
    assert not machine.stats("gone").HasField("cpu")
    machine.sampler.start()
    await until(lambda: told.asked)
    assert told.asked[0] == ["b"]
    summed = machine.sampler.pod_stats("p", b"", [("a", b""), ("b", b"")])
    linux = pb.PodSandboxStats.FromString(summed).linux
    assert linux.cpu.usage_core_nano_seconds.value == machine.used("a") + 42
    assert len(linux.containers) == 2
