"""Spans as an exporter gets them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from zos_cri import tracing
from zos_cri.errors import NotFound
from zos_cri.metrics import Metrics
from zos_cri.tracing import Tracer, carried

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
METADATA = {"traceparent": TRACEPARENT, "user-agent": "x", "a-bin": b"\0"}


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracer(provider)


def spans(exporter):
    return {span.name: span for span in exporter.get_finished_spans()}


def test_an_rpc_is_in_its_callers_trace_and_a_stage_in_the_rpc(tracer, exporter):
    metrics = Metrics(tracer)
    with tracer.rpc("a.Service", "Run", METADATA, {"rpc": "Run", "pod": "1"}) as rpc:
        with metrics.stage("run", "cni"):
            pass
        rpc.answered("OK", "")
    found = spans(exporter)
    outer, inner = found["a.Service/Run"], found["run/cni"]
    assert f"{outer.context.trace_id:032x}" == TRACE
    assert f"{outer.parent.span_id:016x}" == PARENT
    assert inner.parent.span_id == outer.context.span_id
    assert outer.kind == SpanKind.SERVER
    assert dict(outer.attributes) == {
        "rpc.system": "grpc",
        "rpc.service": "a.Service",
        "rpc.method": "Run",
        "rpc.response.status_code": "OK",
        "zos_cri.pod": "1",
    }


def test_what_is_carried_on_is_the_innermost_span(tracer, exporter):
    metrics = Metrics(tracer)
    assert carried() == {}
    with tracer.rpc("a.Service", "Run", METADATA, {}):
        outside = carried()
        with metrics.stage("run", "shim"):
            inside = carried()
        assert carried() == outside
    assert carried() == {}
    span = spans(exporter)["run/shim"]
    assert inside == {"traceparent": f"00-{TRACE}-{span.context.span_id:016x}-01"}


def test_a_caller_without_a_trace_begins_one(tracer, exporter):
    with tracer.rpc("a.Service", "Run", {}, {}):
        flags = carried()["traceparent"].rpartition("-")[2]
    assert int(flags, 16) & 1  # sampled
    assert spans(exporter)["a.Service/Run"].parent is None


@pytest.mark.parametrize(
    ("code", "status"), [("NOT_FOUND", StatusCode.UNSET), ("INTERNAL", StatusCode.ERROR)]
)
def test_only_our_faults_are_errors_of_an_rpc(tracer, exporter, code, status):
    with tracer.rpc("a.Service", "Run", {}, {}) as rpc:
        rpc.answered(code, "why")
    span = spans(exporter)["a.Service/Run"]
    assert span.status.status_code == status
    assert span.attributes["rpc.response.status_code"] == code


def test_a_stage_that_fails_says_why(tracer, exporter):
    with pytest.raises(NotFound), Metrics(tracer).stage("run", "cni"):
        raise NotFound("no\nplugin")
    span = spans(exporter)["run/cni"]
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "no plugin")


def test_a_bucket_has_an_example_of_what_was_recorded(tracer, exporter):
    metrics = Metrics(tracer)
    with metrics.stage("run", "cni"):
        pass
    (family,) = (f for f in metrics.registry.collect() if f.name.endswith("stage_duration_seconds"))
    (exemplar,) = (s.exemplar for s in family.samples if s.exemplar is not None)
    span = spans(exporter)["run/cni"]
    assert exemplar.labels == {
        "trace_id": f"{span.context.trace_id:032x}",
        "span_id": f"{span.context.span_id:016x}",
    }


def test_what_a_caller_does_not_sample_is_no_example(tracer):
    not_sampled = {"traceparent": TRACEPARENT[:-1] + "0"}
    with tracer.rpc("a.Service", "Run", not_sampled, {}) as rpc:
        assert rpc.exemplar() is None
        assert carried()["traceparent"].endswith("-00")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_SERVICE_NAME": "x"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
def test_there_is_no_tracer_unless_one_is_asked_for(environ):
    assert tracing.start(environ) is None


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({}, "zos-cri"),
        ({"OTEL_SERVICE_NAME": "mine"}, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=theirs,a=b"}, "theirs"),
    ],
)
async def test_the_service_has_a_name(monkeypatch, environ, name):
    for key, value in environ.items():
        monkeypatch.setenv(key, value)
    tracer = tracing.start({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", **environ})
    assert tracer is not None
    assert tracer._provider.resource.attributes["service.name"] == name
    await tracer.aclose()


async def test_a_collector_that_hangs_does_not_hold_up_the_end(monkeypatch):
    entered, leave = threading.Event(), threading.Event()

    class Hangs(TracerProvider):
        def shutdown(self):
            entered.set()
            leave.wait(30)

    monkeypatch.setattr(tracing, "FLUSH_TIMEOUT", 0.01)
    await Tracer(Hangs()).aclose()
    assert entered.wait(30)
    leave.set()


def test_nothing_is_imported_where_there_is_no_tracing():
    code = (
        "import sys, json, zos_cri.app.server, zos_cri.tracing as t; t.start({});"
        "print(json.dumps([m for m in sys.modules if m.startswith('opentelemetry')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert json.loads(done.stdout) == []
