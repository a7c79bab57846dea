from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics

from zos_cri._pb import cri_pb2
from zos_cri.errors import NotFound
from zos_cri.images.pulls import PullReport
from zos_cri.metrics import Metrics
from zos_cri.metrics_containerd import RPCS, ContainerdNames, Runtime, code_name

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
METHODS = cri_pb2.DESCRIPTOR.services_by_name["RuntimeService"].methods_by_name
CRI = "containerd_cri_"
LABELS = {"grpc_type": "unary", "grpc_service": "runtime.v1.RuntimeService"}


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics(containerd_names=True)
    names(metrics).watch(dropped=lambda: 3, pulling=lambda: 2)
    names(metrics).handlers = lambda request: Runtime("kata", "io.containerd.kata.v2")
    return metrics


def names(metrics: Metrics) -> ContainerdNames:
    assert metrics.containerd is not None
    return metrics.containerd


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def call(metrics: Metrics, method: str, code: str = "OK", *, sends: int = 1) -> None:
    rpc = names(metrics).begun(METHODS[method], SimpleNamespace())
    for _ in range(sends):
        rpc.sent()
    rpc.ended(code)


def test_they_are_there_only_where_they_are_asked_for() -> None:
    metrics = Metrics()
    assert metrics.containerd is None
    assert b"containerd" not in generate_latest(metrics.registry)
    assert b"grpc_server" not in generate_latest(metrics.registry)


def test_each_is_explained(metrics: Metrics) -> None:
    section = DOCS.partition("### Under containerd's names")[2].partition("\n## ")[0]
    listed = set(
        re.findall(r"`((?:containerd|grpc_server)_\w+)`", section.partition("Not there")[0])
    )
    served = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in metrics.registry.collect()
        if family.name.startswith(("containerd_", "grpc_server_"))
    }
    assert served == listed


@pytest.mark.parametrize("method", RPCS)
def test_what_succeeds_is_timed(metrics: Metrics, method: str) -> None:
    name, label = RPCS[method]
    runtime = {"type": "io.containerd.kata.v2", "handler": "kata", "": ""}[label]
    labels = {"runtime": runtime} if label else {}
    call(metrics, method)
    call(metrics, method, "NOT_FOUND")
    assert value(metrics, f"{CRI}{name}_seconds_count", **labels) == 1


def test_rpcs_are_counted_as_gos_middleware_does(metrics: Metrics) -> None:
    call(metrics, "ListContainers")
    call(metrics, "ListContainers", "DEADLINE_EXCEEDED", sends=0)
    labels = {**LABELS, "grpc_method": "ListContainers"}
    for name, count in (("started", 2), ("msg_received", 2), ("msg_sent", 1)):
        assert value(metrics, f"grpc_server_{name}_total", **labels) == count, name
    for code in ("OK", "DeadlineExceeded"):
        assert value(metrics, "grpc_server_handled_total", **labels, grpc_code=code) == 1
    call(metrics, "StreamContainers", "CANCELLED", sends=3)
    labels = {**LABELS, "grpc_type": "server_stream", "grpc_method": "StreamContainers"}
    assert value(metrics, "grpc_server_msg_sent_total", **labels) == 3
    assert value(metrics, "grpc_server_handled_total", **labels, grpc_code="Canceled") == 1


def test_codes_have_gos_names() -> None:
    codes = ("OK", "CANCELLED", "INVALID_ARGUMENT", "INTERNAL", "DATA_LOSS")
    assert [code_name(code) for code in codes] == [
        *("OK", "Canceled", "InvalidArgument", "Internal", "DataLoss")
    ]


async def stages(metrics: Metrics, operation: str, *names: str, fails: str = "") -> None:
    """In a task of their own, as a pod's are."""

    async def run() -> None:
        for name in names:
            with metrics.stage(operation, name):
                if name == fails:
                    raise NotFound("no")

    task = asyncio.create_task(run())
    await asyncio.wait([task])
    assert bool(task.exception()) is bool(fails)


async def test_a_pods_network_is_its_namespace_and_cni(metrics: Metrics) -> None:
    await stages(metrics, "run_pod_sandbox", "netns", "cni")
    await stages(metrics, "stop_pod_sandbox", "cni", "netns")
    await stages(metrics, "stop_pod_sandbox", "netns")  # of a pod on the host's network
    await stages(metrics, "run_pod_sandbox", "netns", "cni", fails="cni")
    assert value(metrics, f"{CRI}sandbox_create_network_seconds_count") == 1
    assert value(metrics, f"{CRI}sandbox_delete_network_seconds_count") == 1
    operations = f"{CRI}network_plugin_operations"
    kinds = {"set_up_pod": (2, 1), "tear_down_pod": (1, None)}
    for kind, (count, errors) in kinds.items():
        labels = {"operation_type": kind}
        assert value(metrics, f"{operations}_total_total", **labels) == count
        assert value(metrics, f"{operations}_errors_total_total", **labels) == errors
        assert value(metrics, f"{operations}_duration_seconds_seconds_count", **labels) == count


@pytest.mark.parametrize(
    ("operation", "stages", "name"),
    [
        ("run_pod_sandbox", ("netns", "cni"), "create"),
        ("stop_pod_sandbox", ("cni", "netns"), "delete"),
    ],
)
def test_both_are_summed(
    metrics: Metrics, operation: str, stages: tuple[str, str], name: str
) -> None:
    for stage, seconds in zip(stages, (2.0, 1.0), strict=True):
        names(metrics).stage(operation, stage, seconds, failed=False)
    assert value(metrics, f"{CRI}sandbox_{name}_network_seconds_sum") == 3


async def test_a_shims_end_counts_where_the_pod_is_ended(metrics: Metrics) -> None:
    async def within(method: str) -> None:
        names(metrics).begun(METHODS[method], SimpleNamespace())
        await stages(metrics, "stop_pod_sandbox", "shim")

    for method in ("StopPodSandbox", "RunPodSandbox"):
        await asyncio.create_task(within(method))
    assert value(metrics, f"{CRI}sandbox_runtime_stop_seconds_count", runtime="kata") == 1


def test_pulls(metrics: Metrics) -> None:
    metrics.pulled(PullReport("a", seconds=2.0, bytes=100 << 20, layers=1))
    metrics.pulled(PullReport("a", seconds=2.0, bytes=0, layers=1))
    metrics.pulled(PullReport("a", seconds=2.0, bytes=0, layers=0, error="NotFound"))
    pulls = f"{CRI}sandboxed_image_pulls_total"
    assert value(metrics, pulls, status="success") == 2
    assert value(metrics, pulls, status="failure") == 1
    throughput = f"{CRI}sandboxed_image_pulling_throughput"
    assert value(metrics, f"{throughput}_sum") == value(metrics, f"{throughput}_mibps_sum") == 50
    assert value(metrics, f"{throughput}_mibps_bucket", le="75.0") == 1
    assert value(metrics, f"{throughput}_bucket", le="10.0") == 0


def test_what_is_kept_elsewhere_is_read_at_each_scrape(metrics: Metrics) -> None:
    assert value(metrics, f"{CRI}container_events_dropped_total") == 3
    assert value(metrics, f"{CRI}sandboxed_in_progress_image_pulls_total") == 2


def test_doubled_endings_are_printed(metrics: Metrics) -> None:
    call(metrics, "ListContainers")
    names(metrics).stage("run_pod_sandbox", "cni", 0.1, failed=False)
    text = generate_latest(metrics.registry).decode()
    for line in (
        "# TYPE containerd_cri_network_plugin_operations_total_total counter",
        "# TYPE containerd_cri_network_plugin_operations_duration_seconds_seconds histogram",
        "# TYPE containerd_cri_sandboxed_in_progress_image_pulls_total gauge",
        "# TYPE containerd_cri_container_list_seconds histogram",
    ):
        assert line in text
    assert openmetrics(metrics.registry)
