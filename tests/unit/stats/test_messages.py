from __future__ import annotations

import msgspec
import pytest

from tests.fakes.stats import sample
from zos_cri._pb import cri_pb2 as pb
from zos_cri.linux.cgroupstats import CpuStats, MemoryStats, Pressure, Stall
from zos_cri.linux.netdev import Interface
from zos_cri.stats import messages
from zos_cri.stats.model import ContainerSample, PodSample

PRESSURE = Pressure(some=Stall(1.5, 2.5, 3.5, 4_000), full=Stall(total_ns=2_000))


def parsed(one: ContainerSample) -> pb.ContainerStats:
    return pb.ContainerStats.FromString(messages.container_numbers(one))


def parsed_pod(one: PodSample | None, *samples: ContainerSample) -> pb.LinuxPodSandboxStats:
    encoded = messages.pod_stats(
        pb.PodSandboxAttributes(id="p").SerializeToString(),
        one,
        samples,
        [messages.container_numbers(s) for s in samples],
    )
    stats = pb.PodSandboxStats.FromString(encoded)
    assert stats.attributes.id == "p"
    assert len(stats.linux.containers) == len(samples)
    return stats.linux


@pytest.mark.parametrize("size", [0, 1, 127, 128, 20_000, 3_000_000])
def test_a_field_is_what_protobuf_writes(size: int) -> None:
    metrics = [pb.Metric(name="x" * size)] if size else []
    inner = pb.ContainerMetrics(container_id="c", metrics=metrics).SerializeToString()
    outer = pb.PodSandboxMetrics.FromString(
        messages.field(messages.POD_CONTAINER_METRICS, inner) * 2
    )
    assert [m.SerializeToString() for m in outer.container_metrics] == [inner, inner]


def test_a_message_in_pieces_is_whole() -> None:
    attributes = pb.ContainerAttributes(id="c").SerializeToString()
    stats = pb.ContainerStats.FromString(
        messages.field(messages.CONTAINER_ATTRIBUTES, attributes)
        + messages.container_numbers(sample(7, cpu=5, usage=6))
        + messages.writable_layer(8, "/images", 9, 10)
    )
    assert (stats.attributes.id, stats.cpu.usage_core_nano_seconds.value) == ("c", 5)
    assert (stats.memory.usage_bytes.value, stats.memory.timestamp) == (6, 7)
    layer = stats.writable_layer
    assert (layer.timestamp, layer.fs_id.mountpoint) == (8, "/images")
    assert (layer.used_bytes.value, layer.inodes_used.value) == (9, 10)


def test_what_is_not_known_is_absent_not_zero() -> None:
    stats = parsed(sample())
    assert not stats.cpu.HasField("usage_nano_cores")
    assert not stats.cpu.HasField("psi")
    assert not stats.memory.HasField("available_bytes")  # no limit
    assert not stats.swap.HasField("swap_available_bytes")
    assert not stats.HasField("io")
    assert not stats.HasField("writable_layer")
    assert stats.cpu.HasField("usage_core_nano_seconds")
    without = msgspec.structs.replace(sample(), memory=None)
    assert not parsed(without).HasField("memory")


def test_all_that_a_container_can_have() -> None:
    memory = MemoryStats(
        usage=90,
        working_set=80,
        limit=100,
        rss=70,
        page_faults=6,
        major_page_faults=5,
        swap=4,
        swap_limit=10,
    )
    one = ContainerSample(
        timestamp=3,
        cpu=CpuStats(usage_ns=2),
        nano_cores=0,
        memory=memory,
        pressure={"cpu": PRESSURE, "memory": PRESSURE, "io": PRESSURE},
        processes=1,
        threads=1,
    )
    stats = parsed(one)
    assert stats.cpu.usage_nano_cores.value == 0
    assert stats.cpu.HasField("usage_nano_cores")
    assert stats.cpu.psi.Some == pb.PsiData(Total=4_000, Avg10=1.5, Avg60=2.5, Avg300=3.5)
    assert stats.io.psi.Full.Total == 2_000
    assert stats.io.timestamp == stats.cpu.timestamp == stats.swap.timestamp == 3
    assert (stats.memory.available_bytes.value, stats.memory.rss_bytes.value) == (20, 70)
    assert (stats.memory.page_faults.value, stats.memory.major_page_faults.value) == (6, 5)
    assert (stats.swap.swap_usage_bytes.value, stats.swap.swap_available_bytes.value) == (4, 6)


def test_more_than_the_limit_leaves_nothing_available() -> None:
    over = MemoryStats(usage=9, working_set=9, limit=5, swap=9, swap_limit=5)
    stats = parsed(msgspec.structs.replace(sample(), memory=over))
    assert stats.memory.available_bytes.value == 0
    assert stats.swap.swap_available_bytes.value == 0


def test_a_pod_with_a_cgroup_of_its_own() -> None:
    own = PodSample(
        timestamp=5,
        cpu=CpuStats(usage_ns=70),
        nano_cores=8,
        memory=MemoryStats(usage=9),
        pressure={"io": PRESSURE},
    )
    linux = parsed_pod(own, sample(cpu=10), sample(cpu=20))
    assert linux.cpu.usage_core_nano_seconds.value == 70
    assert linux.cpu.usage_nano_cores.value == 8
    assert linux.memory.usage_bytes.value == 9
    assert linux.io.psi.Some.Total == 4_000
    assert linux.process.process_count.value == 4
    assert not linux.HasField("network")


def test_a_pod_without_one_is_the_sum_of_its_containers() -> None:
    fast = msgspec.structs.replace(sample(3, cpu=10, usage=100), nano_cores=5)
    linux = parsed_pod(PodSample(timestamp=2), fast, sample(4, cpu=20, usage=200))
    assert linux.cpu.usage_core_nano_seconds.value == 30
    assert linux.cpu.usage_nano_cores.value == 5
    assert linux.cpu.timestamp == 4
    assert linux.memory.usage_bytes.value == 300


def test_a_pod_of_which_nothing_is_known() -> None:
    linux = parsed_pod(None)
    assert linux.SerializeToString() == b""


def test_the_default_interface_is_not_listed_twice() -> None:
    first, eth0 = Interface("a0", rx_bytes=1), Interface("eth0", 1, 2, 3, 4, 5, 6, 7, 8)
    network = parsed_pod(PodSample(timestamp=1, interfaces=(first, eth0))).network
    default = network.default_interface
    assert (default.name, default.rx_bytes.value, default.rx_errors.value) == ("eth0", 1, 3)
    assert (default.tx_bytes.value, default.tx_errors.value) == (5, 7)
    assert [i.name for i in network.interfaces] == ["a0"]


def test_the_first_interface_is_the_default_where_none_has_its_name() -> None:
    interfaces = (Interface("net1"), Interface("net2"))
    network = parsed_pod(PodSample(timestamp=1, interfaces=interfaces)).network
    assert network.default_interface.name == "net1"
    assert [i.name for i in network.interfaces] == ["net2"]
    none = parsed_pod(PodSample(timestamp=1, interfaces=())).network
    assert none.timestamp == 1
    assert not none.HasField("default_interface")
