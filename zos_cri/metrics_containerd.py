"""Metrics under the names that containerd 2.4 has for them, for dashboards made for it.

Names, types, labels and buckets are containerd's, doubled endings included: its library adds
`_seconds` and `_total` to names that have them already. Values are what we measure anyway: a
duration of containerd's CRI plugin is that of an RPC that succeeded, or of a stage of it.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from google.protobuf.descriptor import MethodDescriptor
    from prometheus_client import CollectorRegistry

    from zos_cri.images.pulls import PullReport

MIB: Final = 1 << 20
# Go's default ones, and those of its throughput in MiB/s.
BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
THROUGHPUT_BUCKETS: Final = (0.1, 1, 10, 25, 75, 150, 300, 500, 1000, 2000, 4000)

# By RPC: the name, and whether its label is the shim's type or the handler's name.
_TYPE: Final = "type"
_HANDLER: Final = "handler"
RPCS: Final = {
    "ListPodSandbox": ("sandbox_list", ""),
    "StreamPodSandboxes": ("stream_sandbox_list", ""),
    "ListContainers": ("container_list", ""),
    "StreamContainers": ("stream_container_list", ""),
    "RunPodSandbox": ("sandbox_runtime_create", _TYPE),
    "RemovePodSandbox": ("sandbox_remove", _HANDLER),
    "CreateContainer": ("container_create", _TYPE),
    "StartContainer": ("container_start", _TYPE),
    "StopContainer": ("container_stop", _TYPE),
    "RemoveContainer": ("container_remove", _TYPE),
    "CheckpointContainer": ("container_checkpoint", _TYPE),
}
_ENDING: Final = ("StopPodSandbox", "RemovePodSandbox")  # that end a pod as they should
# By operation and stage of ours: what CNI does is called.
_NETWORK: Final = {
    ("run_pod_sandbox", "cni"): "set_up_pod",
    ("stop_pod_sandbox", "cni"): "tear_down_pod",
}
_LABELS: Final = ("grpc_type", "grpc_service", "grpc_method")
_OTHER_CODES: Final = {"OK": "OK", "CANCELLED": "Canceled"}


class Runtime(NamedTuple):
    """A pod's handler: its name and its shim's type."""

    handler: str = ""
    type: str = ""


class Handlers(Protocol):
    """Finds the handler that a request is about."""

    def __call__(self, request: object) -> Runtime: ...


class _Call(NamedTuple):
    method: str
    runtime: Runtime


# The RPC that a stage belongs to, and for how long its pod's network has been worked at: both are
# inherited by the tasks that do the work.
_call: ContextVar[_Call | None] = ContextVar("_call", default=None)
_network: ContextVar[float] = ContextVar("_network", default=0.0)


class ContainerdNames:
    """The metrics. Whoever measures tells them, where the setting has them made.

    Attributes:
        handlers: set once there are pods to look among.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.handlers: Handlers = lambda request: Runtime()
        self._timers = {
            method: self._timer(name, *(("runtime",) if label else ()))
            for method, (name, label) in RPCS.items()
        }
        self._network_made = self._timer("sandbox_create_network")
        self._network_gone = self._timer("sandbox_delete_network")
        self._stopped = self._timer("sandbox_runtime_stop", "runtime")
        self._operations = self._counter("network_plugin_operations_total", "operation_type")
        self._errors = self._counter("network_plugin_operations_errors_total", "operation_type")
        self._latency = self._timer("network_plugin_operations_duration_seconds", "operation_type")
        self._pulls = self._counter("sandboxed_image_pulls", "status")
        self._throughputs = [
            Histogram(
                f"containerd_cri_sandboxed_image_pulling_throughput{unit}",
                "What pulls fetched by their duration, in MiB/s.",
                buckets=buckets,
                registry=registry,
            )
            for unit, buckets in (("", BUCKETS), ("_mibps", THROUGHPUT_BUCKETS))
        ]
        self._started, self._handled, self._received, self._sent = (
            Counter(f"grpc_server_{name}_total", text, labels, registry=registry)
            for name, text, labels in (
                ("started", "RPCs that have begun.", _LABELS),
                ("handled", "RPCs that have ended, by code.", (*_LABELS, "grpc_code")),
                ("msg_received", "Messages of requests.", _LABELS),
                ("msg_sent", "Messages of answers.", _LABELS),
            )
        )

    def _timer(self, name: str, *labels: str) -> Histogram:
        return Histogram(
            f"containerd_cri_{name}_seconds",
            "As containerd has it.",
            labels,
            buckets=BUCKETS,
            registry=self._registry,
        )

    def _counter(self, name: str, *labels: str) -> Counter:
        return Counter(
            f"containerd_cri_{name}_total", "As containerd has it.", labels, registry=self._registry
        )

    def watch(self, *, dropped: Callable[[], float], pulling: Callable[[], int]) -> None:
        """What is read at each scrape.

        Args:
            dropped: events that subscribers have lost.
            pulling: pulls under way.
        """
        self._registry.register(_Read("containerd_cri_container_events_dropped", dropped))
        Gauge(
            "containerd_cri_sandboxed_in_progress_image_pulls_total",
            "As containerd has it.",
            registry=self._registry,
        ).set_function(pulling)

    def begun(self, method: MethodDescriptor, request: object) -> Rpc:
        """An RPC has arrived; call what it returns when it ends."""
        return Rpc(self, method, self.handlers(request) if method.name in _ABOUT else Runtime())

    def stage(self, operation: str, stage: str, seconds: float, *, failed: bool) -> None:
        """A stage has ended, in the context that it was in."""
        kind = _NETWORK.get((operation, stage))
        if kind is not None:
            self._operations.labels(kind).inc()
            self._latency.labels(kind).observe(seconds)
            if failed:
                self._errors.labels(kind).inc()
        if failed:
            _network.set(0.0)
        elif (operation, stage) in {("run_pod_sandbox", "netns"), ("stop_pod_sandbox", "cni")}:
            _network.set(seconds)
        elif (operation, stage) == ("run_pod_sandbox", "cni"):
            self._network_made.observe(_network.get() + seconds)
            _network.set(0.0)
        elif (operation, stage) == ("stop_pod_sandbox", "netns") and _network.get():
            self._network_gone.observe(_network.get() + seconds)
            _network.set(0.0)
        elif (operation, stage) == ("stop_pod_sandbox", "shim"):
            call = _call.get()
            if call is not None and call.method in _ENDING:
                self._stopped.labels(call.runtime.handler).observe(seconds)

    def pulled(self, report: PullReport) -> None:
        """A pull has ended."""
        self._pulls.labels("failure" if report.error else "success").inc()
        if report.bytes and report.seconds > 0:
            for throughput in self._throughputs:
                throughput.observe(report.bytes / MIB / report.seconds)

    def answered(self, method: str, runtime: Runtime, seconds: float) -> None:
        """An RPC has succeeded."""
        timer = self._timers.get(method)
        if timer is None:
            return
        label = RPCS[method][1]
        if label:
            timer = timer.labels(runtime.type if label == _TYPE else runtime.handler)
        timer.observe(seconds)


_ABOUT: Final = frozenset({*_ENDING, *(method for method, (_, label) in RPCS.items() if label)})


class Rpc:
    """One RPC under way."""

    def __init__(self, names: ContainerdNames, method: MethodDescriptor, runtime: Runtime) -> None:
        self._names = names
        self._method = method.name
        self._runtime = runtime
        self._begun = time.perf_counter()
        kind = "server_stream" if method.server_streaming else "unary"
        self._labels = (kind, method.containing_service.full_name, method.name)
        _call.set(_Call(method.name, runtime))
        names._started.labels(*self._labels).inc()
        names._received.labels(*self._labels).inc()

    def sent(self) -> None:
        """A message of the answer goes out."""
        self._names._sent.labels(*self._labels).inc()

    def ended(self, code: str) -> None:
        """It has ended with a gRPC code."""
        self._names._handled.labels(*self._labels, code_name(code)).inc()
        if code == "OK":
            seconds = time.perf_counter() - self._begun
            self._names.answered(self._method, self._runtime, seconds)


def code_name(code: str) -> str:
    """A gRPC code as Go writes it: INVALID_ARGUMENT is InvalidArgument."""
    return _OTHER_CODES.get(code) or code.title().replace("_", "")


class _Read(Collector):
    """A counter that is kept elsewhere."""

    def __init__(self, name: str, read: Callable[[], float]) -> None:
        self._name = name
        self._read = read

    def describe(self) -> Iterable[CounterMetricFamily]:
        return [CounterMetricFamily(self._name, "As containerd has it.")]

    def collect(self) -> Iterable[CounterMetricFamily]:
        return [CounterMetricFamily(self._name, "As containerd has it.", value=self._read())]
