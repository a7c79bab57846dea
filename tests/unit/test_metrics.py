from __future__ import annotations

import itertools
import shutil
import subprocess

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from zos_cri.errors import NotFound
from zos_cri.metrics import BUCKETS, Metrics


@pytest.fixture
def metrics():
    metrics = Metrics()
    metrics.rpc_duration.labels("Version", "OK").observe(0.002)
    metrics.rpcs_in_flight.labels("Version").inc()
    metrics.exits.labels("Completed").inc()
    metrics.shims_lost.inc()
    with metrics.stage("run_pod_sandbox", "cni"):
        pass
    metrics.watch("zos_cri_pods", "Pod sandboxes, by state.", "state", lambda: {"ready": 2})
    return metrics


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, labels)


def test_a_stage_is_timed_and_its_failure_counted_too(metrics):
    stage = {"operation": "stop", "stage": "shim"}
    with pytest.raises(NotFound), metrics.stage("stop", "shim"):
        raise NotFound("x")
    with metrics.stage("stop", "shim"):
        pass
    assert value(metrics, "zos_cri_lifecycle_stage_duration_seconds_count", **stage) == 2
    assert value(metrics, "zos_cri_errors_total", operation="stop/shim", code="NOT_FOUND") == 1


def test_watched_gauges_are_read_at_each_scrape(metrics):
    states = {"running": 1}
    metrics.watch("zos_cri_containers", "Containers, by state.", "state", lambda: states)
    assert value(metrics, "zos_cri_containers", state="running") == 1
    states.clear()
    assert value(metrics, "zos_cri_containers", state="running") is None


def test_buckets_go_from_1_ms_to_60_s():
    assert (BUCKETS[0], BUCKETS[-1]) == (0.001, 60)
    assert all(1.5 < b / a <= 3 for a, b in itertools.pairwise(BUCKETS))


def test_names_end_in_their_units(metrics):
    for family in metrics.registry.collect():
        if not family.name.startswith("zos_cri_"):
            continue
        assert family.documentation.endswith("."), family.name
        if family.type == "histogram":
            assert family.name.endswith("_seconds"), family.name
        for sample in family.samples:
            if family.type == "counter":
                assert sample.name.endswith(("_total", "_created")), sample.name


def test_open_metrics_can_be_parsed(metrics):
    text = openmetrics(metrics.registry).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["zos_cri_rpc_duration_seconds"].type == "histogram"
    assert families["zos_cri_pods"].samples[0].value == 2


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is in Debian's prometheus")
def test_promtool_finds_nothing_to_say(metrics):
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=generate_latest(metrics.registry),
        capture_output=True,
        timeout=60,
    )
    ours = [line for line in (done.stdout + done.stderr).splitlines() if b"zos_cri" in line]
    assert ours == []
    assert done.returncode in (0, 3)  # 3: of a library's own metrics
