"""Spans of a real server, as a collector gets them over OTLP."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.integration.server import UPSTREAM, serving
from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go]

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """Its URL, and what has been sent there."""
    got: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", got
        server.shutdown()
        thread.join()


def test_a_pods_making_is_in_the_kubelets_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as (url, got):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        with serving(UPSTREAM) as server, server.cri() as cri:
            metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
            config = server.pod()
            answer = cri.RunPodSandbox(
                pb.RunPodSandboxRequest(config=config), metadata=metadata, timeout=60
            )
            request = pb.CreateContainerRequest(
                pod_sandbox_id=answer.pod_sandbox_id, config=server.container()
            )
            container = cri.CreateContainer(request, metadata=metadata, timeout=60).container_id
            start = pb.StartContainerRequest(container_id=container)
            cri.StartContainer(start, metadata=metadata, timeout=60)
            server.stop()  # what has not been sent is sent now
            server.start()
    resources = [each for request in got for each in request.resource_spans]
    names = {a.value.string_value for r in resources for a in r.resource.attributes}
    assert "zos-cri" in names
    spans = [s for r in resources for scope in r.scope_spans for s in scope.spans]
    ours = {s.name: s for s in spans if s.trace_id.hex() == TRACE}
    rpcs = {"RunPodSandbox": "run_pod_sandbox/netns", "CreateContainer": "create_container/rootfs"}
    for rpc, stage in {**rpcs, "StartContainer": "start_container/start"}.items():
        outer = ours[f"runtime.v1.RuntimeService/{rpc}"]
        assert outer.parent_span_id.hex() == PARENT
        assert ours[stage].parent_span_id == outer.span_id
