"""Statistics and metrics of a real server's containers, against loads that are known."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.server import UPSTREAM, Server, serving
from zos_cri._pb import cri_pb2, cri_pb2_grpc
from zos_cri.stats.descriptors import BASE_LABELS, DESCRIPTORS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go]

BUSY = ("sh", "-c", "while :; do :; done")
MIB = 1 << 20
# 32 MiB of a tmpfs, which counts as the container's memory, and 8 MiB of its writable layer.
WRITES = (
    "sh",
    "-c",
    "dd if=/dev/zero of=/dev/shm/a bs=1M count=32; dd if=/dev/zero of=/data bs=1M count=8;"
    " sleep 1000 & sleep 1000 & wait",
)


@pytest.fixture
def quick() -> Iterator[Server]:
    """A server that samples often."""
    with serving(UPSTREAM, extra="[stats]\ninterval = 1.0") as started:
        yield started


def wait_for(what: Callable[[], Any], timeout: float = 20) -> Any:
    deadline = time.monotonic() + timeout
    while not (answer := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return answer


def stats_of(cri: Any, id_: str) -> cri_pb2.ContainerStats:
    request = cri_pb2.ContainerStatsRequest(container_id=id_)
    stats: cri_pb2.ContainerStats = cri.ContainerStats(request).stats
    return stats


def listed(cri: Any, **wanted: Any) -> dict[str, cri_pb2.ContainerStats]:
    wanted_ = cri_pb2.ContainerStatsFilter(**wanted)
    request = cri_pb2.ListContainerStatsRequest(filter=wanted_)
    return {s.attributes.id: s for s in cri.ListContainerStats(request).stats}


def pod_stats(cri: Any, id_: str) -> cri_pb2.PodSandboxStats:
    request = cri_pb2.PodSandboxStatsRequest(pod_sandbox_id=id_)
    stats: cri_pb2.PodSandboxStats = cri.PodSandboxStats(request).stats
    return stats


def stop(cri: Any, id_: str) -> None:
    cri.StopContainer(cri_pb2.StopContainerRequest(container_id=id_))


def test_a_busy_loop_uses_a_core(quick: Server) -> None:
    with quick.cri() as cri:
        pod = quick.run_pod(cri)
        limits = cri_pb2.LinuxContainerResources(cpu_period=100_000, cpu_quota=50_000)
        half = cri_pb2.LinuxContainerConfig(resources=limits)
        busy = quick.run_container(cri, pod, *BUSY, name="busy", linux=half)
        idle = quick.run_container(cri, pod, name="idle")
        # Half a core is what it may use; on a busy machine it gets much less.
        wait_for(lambda: listed(cri)[busy].cpu.usage_nano_cores.value > 50_000_000)
        both = listed(cri)
        assert both[busy].cpu.usage_nano_cores.value < 700_000_000
        assert both[idle].cpu.usage_nano_cores.value < both[busy].cpu.usage_nano_cores.value / 4
        first = stats_of(cri, busy)
        second = wait_for(
            lambda: next(
                (
                    s
                    for s in [stats_of(cri, busy)]
                    if s.cpu.timestamp > first.cpu.timestamp + 1_000_000_000
                ),
                None,
            )
        )
        passed = second.cpu.timestamp - first.cpu.timestamp
        used = second.cpu.usage_core_nano_seconds.value - first.cpu.usage_core_nano_seconds.value
        assert 0.03 < used / passed < 0.7
        linux = pod_stats(cri, pod).linux
        assert {c.attributes.id for c in linux.containers} == {busy, idle}
        assert 20_000_000 < linux.cpu.usage_nano_cores.value < 800_000_000
        assert linux.process.process_count.value == 2
        assert not linux.HasField("network")  # the host's isn't the pod's


def test_memory_and_disk_of_a_known_size(quick: Server) -> None:
    with quick.cri() as cri:
        pod = quick.run_pod(cri)
        limits = cri_pb2.LinuxContainerResources(memory_limit_in_bytes=128 * MIB)
        config = cri_pb2.LinuxContainerConfig(resources=limits)
        id_ = quick.run_container(cri, pod, *WRITES, linux=config)
        wait_for(lambda: listed(cri)[id_].writable_layer.used_bytes.value >= 8 * MIB)
        stats = wait_for(
            lambda: next(
                (s for s in [stats_of(cri, id_)] if s.memory.usage_bytes.value >= 32 * MIB), None
            )
        )
        memory = stats.memory
        assert 32 * MIB <= memory.working_set_bytes.value <= memory.usage_bytes.value < 128 * MIB
        assert memory.available_bytes.value == 128 * MIB - memory.working_set_bytes.value
        assert memory.rss_bytes.value < 8 * MIB
        assert memory.page_faults.value > 0
        assert stats.writable_layer.used_bytes.value < 9 * MIB
        assert 1 < stats.writable_layer.inodes_used.value < 50
        assert stats.writable_layer.fs_id.mountpoint == str(quick.state / "images")
        assert stats.attributes.metadata.name == "main"
        assert stats.cpu.psi.Some.Total > 0
        assert stats.HasField("io")
        wait_for(lambda: pod_stats(cri, pod).linux.process.process_count.value == 3)
        assert pod_stats(cri, pod).linux.memory.usage_bytes.value >= 32 * MIB
        # What ended has its disk usage still, and no numbers.
        stop(cri, id_)
        ended = stats_of(cri, id_)
        assert not ended.HasField("cpu")
        assert ended.writable_layer.used_bytes.value >= 8 * MIB
        assert listed(cri) == {}


def test_filters(quick: Server) -> None:
    with quick.cri() as cri:
        first, second = (quick.run_pod(cri, name, labels={"pod": name}) for name in "ab")
        one = quick.run_container(cri, first, name="one", labels={"app": "web", "tier": "1"})
        two = quick.run_container(cri, second, name="two", labels={"app": "web", "tier": "2"})
        assert set(listed(cri)) == {one, two}
        assert set(listed(cri, id=one)) == set(listed(cri, id=one[:13])) == {one}
        assert set(listed(cri, pod_sandbox_id=second[:13])) == {two}
        assert set(listed(cri, label_selector={"app": "web"})) == {one, two}
        assert set(listed(cri, label_selector={"app": "web", "tier": "2"})) == {two}
        assert listed(cri, id=one, pod_sandbox_id=second) == {}
        wanted = cri_pb2.PodSandboxStatsFilter(label_selector={"pod": "b"})
        request = cri_pb2.ListPodSandboxStatsRequest(filter=wanted)
        (pod,) = cri.ListPodSandboxStats(request).stats
        assert (pod.attributes.id, pod.attributes.metadata.name) == (second, "b")
        assert [c.attributes.id for c in pod.linux.containers] == [two]
        cri.StopPodSandbox(cri_pb2.StopPodSandboxRequest(pod_sandbox_id=second))
        assert len(cri.ListPodSandboxStats(cri_pb2.ListPodSandboxStatsRequest()).stats) == 1


def test_the_network_of_a_pod_grows(bridged: Server) -> None:
    with bridged.cri() as cri:
        pod = bridged.run_pod(cri)
        gateway = f"{bridged.network}.1"
        script = f"while ! ping -c 1 -W 1 {gateway}; do :; done; sleep 1000"
        id_ = bridged.run_container(cri, pod, "sh", "-c", script)

        def received() -> int:
            interface = pod_stats(cri, pod).linux.network.default_interface
            assert interface.name in ("", "eth0")
            return interface.rx_bytes.value if interface.tx_bytes.value else 0

        before = wait_for(received)
        ping = ["ping", "-c", "20", "-i", "0.01", "-s", "1000", gateway]
        reply = cri.ExecSync(cri_pb2.ExecSyncRequest(container_id=id_, cmd=ping, timeout=20))
        assert reply.exit_code == 0, reply
        # 20 echoes of 1,000 bytes came back.
        wait_for(lambda: received() >= before + 20_000)
        assert list(pod_stats(cri, pod).linux.network.interfaces) == []


def test_every_metric_is_there(bridged: Server) -> None:
    with bridged.cri() as cri:
        described = cri.ListMetricDescriptors(cri_pb2.ListMetricDescriptorsRequest()).descriptors
        keys = {d.name: list(d.label_keys) for d in described}
        assert set(keys) == set(DESCRIPTORS)
        assert len(keys) == 56
        assert all(d.help and d.label_keys[:5] == list(BASE_LABELS) for d in described)
        pod = bridged.run_pod(cri)
        limits = cri_pb2.LinuxContainerResources(
            cpu_period=50_000, cpu_quota=25_000, cpu_shares=512, memory_limit_in_bytes=64 * MIB
        )
        config = cri_pb2.LinuxContainerConfig(resources=limits)
        id_ = bridged.run_container(cri, pod, linux=config)
        request = cri_pb2.ListPodSandboxMetricsRequest()

        def executed() -> Any:
            """The metrics, once the runtime's init, which has threads, has become `sleep`."""
            (found,) = cri.ListPodSandboxMetrics(request).pod_metrics
            (container,) = found.container_metrics
            assert (found.pod_sandbox_id, container.container_id) == (pod, id_)
            threads = [m for m in container.metrics if m.name == "container_threads"]
            return found if [m.value.value for m in threads] == [1] else None

        found = wait_for(executed)
        (container,) = found.container_metrics
        for metric in (*found.metrics, *container.metrics):
            assert len(metric.label_values) == len(keys[metric.name])
            assert metric.metric_type == DESCRIPTORS[metric.name].type
            assert metric.timestamp > 0
        assert {m.name for m in (*found.metrics, *container.metrics)} == set(keys)
        values = {m.name: m.value.value for m in container.metrics}
        assert values["container_spec_cpu_quota"] == 25_000
        assert values["container_spec_cpu_shares"] == 512
        assert values["container_spec_memory_limit_bytes"] == 64 * MIB
        assert values["container_processes"] == values["container_threads"] == 1
        assert values["container_file_descriptors"] >= 3
        assert values["container_ulimits_soft"] > 0
        assert abs(values["container_last_seen"] - time.time()) < 60
        assert abs(values["container_start_time_seconds"] - time.time()) < 60
        labels = next(m for m in container.metrics if m.name == "container_processes").label_values
        assert list(labels)[:4] == ["pod", "test", "main", id_]


def test_containers_vanish_while_they_are_listed(quick: Server) -> None:
    with quick.cri() as cri, quick.channel() as other:
        pod = quick.run_pod(cri)
        ids = [quick.run_container(cri, pod, name=f"c{n}") for n in range(6)]
        stays, *others = ids
        ended = threading.Event()
        failures: list[Exception] = []
        lists = 0

        def keep_listing() -> None:
            nonlocal lists
            stub = cri_pb2_grpc.RuntimeServiceStub(other)
            try:
                while not ended.is_set():
                    assert stays in listed(stub)
                    stub.ListPodSandboxStats(cri_pb2.ListPodSandboxStatsRequest())
                    stub.ListPodSandboxMetrics(cri_pb2.ListPodSandboxMetricsRequest())
                    lists += 1
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=keep_listing)
        thread.start()
        try:
            for id_ in others:
                stop(cri, id_)
                cri.RemoveContainer(cri_pb2.RemoveContainerRequest(container_id=id_))
        finally:
            ended.set()
            thread.join()
        assert not failures
        assert lists > 5
        assert set(listed(cri)) == {stays}


def test_no_file_stays_open(quick: Server) -> None:
    assert quick.process is not None
    directory = Path(f"/proc/{quick.process.pid}/fd")

    def cgroup_files() -> int:
        found = 0
        for path in directory.iterdir():
            try:
                found += str(path.readlink()).startswith("/sys/fs/cgroup")
            except FileNotFoundError:
                continue
        return found

    with quick.cri() as cri:
        pod = quick.run_pod(cri)
        for n in range(3):
            id_ = quick.run_container(cri, pod, name=f"c{n}")
            wait_for(lambda: cgroup_files() > 5)
            assert stats_of(cri, id_).HasField("cpu")
            stop(cri, id_)
            cri.RemoveContainer(cri_pb2.RemoveContainerRequest(container_id=id_))
        quick.remove_pods()
        wait_for(lambda: cgroup_files() == 0)


def test_crictl_asks_twice_a_second_apart(server: Server) -> None:
    """It computes the rate itself and fails where the numbers have not changed."""
    with server.cri() as cri:
        pod = server.run_pod(cri)
        id_ = server.run_container(cri, pod, *BUSY)
        for _ in range(3):
            lines = server.crictl("stats").splitlines()
            assert id_[:13] in lines[1]
            assert server.crictl("statsp").splitlines()[1].split()[0] == "pod"
        assert "container_processes" in server.crictl("metricdescs")
        assert id_ in server.crictl("metricsp")
