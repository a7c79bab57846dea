from __future__ import annotations

import asyncio

import pytest

from tests.fakes.stats import FakeLayers
from zos_cri._pb import cri_pb2 as pb
from zos_cri.errors import Internal, NotFound
from zos_cri.images.model import Usage
from zos_cri.stats import layers as module
from zos_cri.stats.layers import Layers

_rest = asyncio.sleep  # one test puts its own in the place of it


class Bench:
    def __init__(self, interval: float = 3600, settle: float = 0.01) -> None:
        self.containers: dict[str, bool] = {}
        self.measure = FakeLayers()
        self.layers = Layers(
            lambda: dict(self.containers),
            self.measure,
            "/images",
            interval=interval,
            settle=settle,
        )

    async def pass_(self) -> list[str]:
        """What one pass measured."""
        self.measure.measured.clear()
        await self.layers.measure_due()
        return list(self.measure.measured)

    async def until_measured(self, id_: str) -> None:
        async with asyncio.timeout(10):
            while not self.layers.used(id_):
                await _rest(0.001)


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_each_is_measured_once_an_interval(bench: Bench) -> None:
    bench.containers = {"a": True, "b": True}
    assert await bench.pass_() == ["a", "b"]
    assert await bench.pass_() == []
    stats = pb.ContainerStats.FromString(bench.layers.encoded("a"))
    assert (stats.writable_layer.used_bytes.value, bench.layers.used("a")) == (100, 100)
    assert stats.writable_layer.fs_id.mountpoint == "/images"


async def test_again_after_the_interval() -> None:
    bench = Bench(interval=1e-9)
    bench.containers = {"a": True}
    await bench.pass_()
    bench.measure.sizes["a"] = Usage(500, 7)
    while not await bench.pass_():
        await asyncio.sleep(0)
    assert bench.layers.used("a") == 500


async def test_one_that_takes_long_rests_long(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(interval=1e-9)
    bench.containers = {"a": True}
    monkeypatch.setattr(module, "REST", 1e12)
    await bench.pass_()
    assert await bench.pass_() == []


async def test_what_is_not_written_to_is_measured_once() -> None:
    bench = Bench(interval=1e-9)
    bench.containers = {"a": False}
    assert await bench.pass_() == ["a"]
    assert await bench.pass_() == []


async def test_a_start_and_an_end_are_reasons_to_measure(bench: Bench) -> None:
    bench.containers = {"a": False}  # created
    await bench.pass_()
    bench.containers = {"a": True}
    assert await bench.pass_() == ["a"]
    assert await bench.pass_() == []
    bench.containers = {"a": False}  # exited: what it wrote last counts
    assert await bench.pass_() == ["a"]
    assert await bench.pass_() == []


async def test_one_that_is_removed_is_forgotten(bench: Bench) -> None:
    bench.containers = {"a": True}
    await bench.pass_()
    bench.containers = {}
    await bench.pass_()
    assert bench.layers.encoded("a") == b""
    assert bench.layers.used("a") == 0


async def test_a_failure_is_one_containers_own(bench: Bench) -> None:
    bench.containers = {"a": True, "b": True, "c": True}
    bench.measure.errors = {"a": NotFound("gone"), "b": Internal("disk")}
    assert await bench.pass_() == ["a", "b", "c"]
    assert [bench.layers.used(i) for i in "abc"] == [0, 0, 100]


async def test_it_runs_until_it_is_cancelled(bench: Bench) -> None:
    task = asyncio.create_task(bench.layers.run())
    bench.containers = {"a": True}
    bench.layers.wake()
    await bench.until_measured("a")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_container_that_is_started_at_once_is_measured_once(bench: Bench) -> None:
    task = asyncio.create_task(bench.layers.run())
    await asyncio.sleep(0)
    bench.containers = {"a": False}  # created
    bench.layers.wake()
    await asyncio.sleep(0)
    bench.containers = {"a": True}  # and started
    bench.layers.wake()
    await bench.until_measured("a")
    assert bench.measure.measured == ["a"]
    task.cancel()


async def test_where_containers_come_and_go_without_an_end_they_are_measured_all_the_same() -> None:
    bench = Bench(interval=0.01, settle=3600)
    task = asyncio.create_task(bench.layers.run())
    await asyncio.sleep(0)
    bench.containers = {"a": True}
    bench.layers.wake()
    await bench.until_measured("a")
    task.cancel()


async def test_each_that_comes_puts_the_measurements_off(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, naps = Bench(), 0

    async def sleep(_: float) -> None:
        nonlocal naps
        naps += 1
        assert bench.measure.measured == []
        if naps < 4:
            bench.containers[f"c{naps}"] = True
            bench.layers.wake()
        await _rest(0)

    task = asyncio.create_task(bench.layers.run())
    await _rest(0)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    bench.layers.wake()
    await bench.until_measured("c3")
    assert (naps, bench.measure.measured) == (4, ["c1", "c2", "c3"])
    task.cancel()
