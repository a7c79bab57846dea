from __future__ import annotations

import pytest

from zos_cri import errors
from zos_cri.metrics import Metrics
from zos_cri.nri.telemetry import MAX_NAMES, OTHERS, Telemetry


def test_calls_are_timed_and_counted_by_how_they_end():
    metrics = Metrics()
    telemetry = Telemetry(metrics)
    with telemetry.call("10-a", "Synchronize"):
        pass
    with pytest.raises(errors.NotFound), telemetry.call("10-a", "Synchronize"):
        raise errors.NotFound("x")
    labels = {"plugin": "10-a", "operation": "Synchronize"}

    def value(name, **more):
        return metrics.registry.get_sample_value(f"zos_cri_nri_{name}", labels | more)

    assert value("plugin_latency_seconds_count") == 2
    assert value("plugin_invocations_total", status="success", error="") == 1
    assert value("plugin_invocations_total", status="error", error="not_found") == 1


def test_names_that_are_too_many_share_a_series():
    metrics = Metrics()
    telemetry = Telemetry(metrics)
    for number in range(MAX_NAMES + 5):
        telemetry.adjusted(f"10-{number}", "X", update=1, evict=0)
    labels = {"operation": "X", "type": "update", "plugin": OTHERS}
    name = "zos_cri_nri_plugin_adjustments_total"
    assert metrics.registry.get_sample_value(name, labels) == 5
    assert metrics.registry.get_sample_value(name, labels | {"plugin": "10-0"}) == 1
