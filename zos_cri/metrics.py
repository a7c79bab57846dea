"""Every metric of the server, in one place; names and units as Prometheus' conventions have them.

Label values are bounded: methods, codes, operations, stages, states and handlers come from our own
tables and the configuration, never from a request.
"""

from __future__ import annotations

import time
from collections import Counter as Counts
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from zos_cri import __version__
from zos_cri.errors import grpc_code
from zos_cri.metrics_containerd import ContainerdNames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from zos_cri.images.pulls import PullReport
    from zos_cri.tracing import Tracer

# 1 ms is a list from memory, 60 s a pull or a hanging plugin; steps of 2 to 2.5 between.
BUCKETS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)


class Metrics:
    """The registry and its metrics."""

    def __init__(self, tracer: Tracer | None = None, *, containerd_names: bool = False) -> None:
        """
        Args:
            tracer: gets a span for each stage, and buckets an example of one.
            containerd_names: what containerd has names for is there under those too.
        """
        self.tracer = tracer
        self.registry = CollectorRegistry()
        self.containerd = ContainerdNames(self.registry) if containerd_names else None
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._rpcs()
        self._lives()
        self._pulls()
        self._nri()
        self.audited(())  # an alert's series must be there before it fires
        # `labels` takes longer than what is then done with it, 60 times a container.
        self.in_flight = lru_cache(None)(self.rpcs_in_flight.labels)
        self.duration = lru_cache(None)(self.rpc_duration.labels)
        self._stage = lru_cache(None)(self.stage_duration.labels)
        build = Gauge(
            "zos_cri_build_info",
            "The version that runs; the value is always 1.",
            ("version",),
            registry=self.registry,
        )
        build.labels(__version__).set(1)

    def _rpcs(self) -> None:
        self.rpc_duration = Histogram(
            "zos_cri_rpc_duration_seconds",
            "Time from an RPC's arrival to its answer.",
            ("method", "code"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.rpcs_in_flight = Gauge(
            "zos_cri_rpcs_in_flight",
            "RPCs that have arrived and are not answered yet.",
            ("method",),
            registry=self.registry,
        )
        self.stage_duration = Histogram(
            "zos_cri_lifecycle_stage_duration_seconds",
            "Time that one stage of a lifecycle operation took.",
            ("operation", "stage"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.errors = Counter(
            "zos_cri_errors",
            "Operations that failed, by operation and gRPC code.",
            ("operation", "code"),
            registry=self.registry,
        )
        self.exits = Counter(
            "zos_cri_container_exits",
            "Containers that have exited, by reason.",
            ("reason",),
            registry=self.registry,
        )

    def _lives(self) -> None:
        self.shims_lost = Counter(
            "zos_cri_shims_lost",
            "Shims that died with containers in them.",
            registry=self.registry,
        )
        self.event_subscribers = Gauge(
            "zos_cri_event_subscribers",
            "Streams of GetContainerEvents that are open.",
            registry=self.registry,
        )
        self.events_lost = Counter(
            "zos_cri_events_lost",
            "Events that subscribers did not read in time, over all of them.",
            registry=self.registry,
        )
        self.records_damaged = Counter(
            "zos_cri_records_damaged",
            "Records that could not be read at start and were set aside.",
            registry=self.registry,
        )
        self.audit_findings = Gauge(
            "zos_cri_audit_findings",
            "What the last audit has found and not removed, by verdict.",
            ("verdict",),
            registry=self.registry,
        )

    def _pulls(self) -> None:
        self.pull_duration = Histogram(
            "zos_cri_image_pull_duration_seconds",
            "Time that a pull took, whatever its end.",
            buckets=(*BUCKETS, 120.0, 300.0, 900.0),
            registry=self.registry,
        )
        self.pulls = Counter(
            "zos_cri_image_pulls",
            "Pulls that have ended, by the kind of their error (empty: none).",
            ("error",),
            registry=self.registry,
        )
        self.pulled_bytes = Counter(
            "zos_cri_image_pulled_bytes",
            "Bytes of layers' archives that pulls have fetched.",
            registry=self.registry,
        )
        self.pulled_layers = Counter(
            "zos_cri_image_pulled_layers",
            "Layers of the images that were pulled.",
            registry=self.registry,
        )
        self.pull_throughput = Gauge(
            "zos_cri_image_pull_throughput_bytes_per_second",
            "Of the last pull that fetched anything.",
            registry=self.registry,
        )

    def _nri(self) -> None:
        self.nri_plugins = Gauge(
            "zos_cri_nri_active_plugins",
            "NRI plugins that are connected and synchronized.",
            registry=self.registry,
        )
        self.nri_invocations = Counter(
            "zos_cri_nri_plugin_invocations",
            "Requests sent to NRI plugins, by how they ended and the gRPC code of their error.",
            ("plugin", "operation", "status", "error"),
            registry=self.registry,
        )
        self.nri_latency = Histogram(
            "zos_cri_nri_plugin_latency_seconds",
            "Time that an NRI plugin took to answer a request.",
            ("plugin", "operation"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.nri_adjustments = Counter(
            "zos_cri_nri_plugin_adjustments",
            "What NRI plugins have changed: adjust, update or evict.",
            ("plugin", "operation", "type"),
            registry=self.registry,
        )

    def pulled(self, report: PullReport) -> None:
        """Counts a pull that has ended."""
        if self.containerd is not None:
            self.containerd.pulled(report)
        self.pull_duration.observe(report.seconds)
        self.pulls.labels(report.error).inc()
        self.pulled_bytes.inc(report.bytes)
        if not report.error:
            self.pulled_layers.inc(report.layers)
        if report.bytes and report.seconds:
            self.pull_throughput.set(report.bytes / report.seconds)

    def audited(self, verdicts: Iterable[str]) -> None:
        """Takes what an audit found and left."""
        counts = Counts(verdicts)
        for verdict in ("stray", "missing", "unproved"):
            self.audit_findings.labels(verdict).set(counts[verdict])

    @contextmanager
    def stage(self, operation: str, stage: str) -> Iterator[None]:
        """Times one stage, and counts its failure."""
        begun = time.perf_counter()
        exemplar = None
        failed = True
        try:
            if self.tracer is None:
                yield
            else:
                with self.tracer.stage(operation, stage) as span:
                    exemplar = span.exemplar()
                    yield
            failed = False
        except Exception as error:
            self.errors.labels(f"{operation}/{stage}", grpc_code(error)).inc()
            raise
        finally:
            seconds = time.perf_counter() - begun
            self._stage(operation, stage).observe(seconds, exemplar)
            if self.containerd is not None:
                self.containerd.stage(operation, stage, seconds, failed=failed)

    def watch(
        self, name: str, text: str, label: str, read: Callable[[], Mapping[str, int]]
    ) -> None:
        """A gauge with one label whose values are read at each scrape."""
        self.registry.register(_Watched(name, text, label, read))


class _Watched(Collector):
    def __init__(
        self, name: str, text: str, label: str, read: Callable[[], Mapping[str, int]]
    ) -> None:
        self._name = name
        self._text = text
        self._label = label
        self._read = read

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return [GaugeMetricFamily(self._name, self._text, labels=[self._label])]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily(self._name, self._text, labels=[self._label])
        for value, count in self._read().items():
            family.add_metric([value], count)
        return [family]
