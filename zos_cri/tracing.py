"""OpenTelemetry: a span for each RPC and each stage of one, in the caller's trace.

Off, and nothing of OpenTelemetry is imported, unless the environment names where spans go
(`OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`). All other settings are
OpenTelemetry's own variables too: sampler, headers, timeouts, resource, propagators.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from zos_cri import __version__
from zos_cri.errors import DeadlineExceeded, one_line
from zos_cri.linux import blocking
from zos_cri.log import get_log

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, SpanKind

_log = get_log(__name__)

# Seconds for the last spans at the end: a collector that is away doesn't hold up a restart.
FLUSH_TIMEOUT: Final = 2.0
_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_TRACES: Final = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_PROTOCOL: Final = "http/protobuf"
# gRPC's codes that say that the server is at fault (OpenTelemetry's conventions for RPCs).
_SERVER_FAULTS: Final = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)

_carried: ContextVar[Mapping[str, str]] = ContextVar("trace", default=MappingProxyType({}))


def carried() -> Mapping[str, str]:
    """What a call to another process tells it of the span that it is made in: `traceparent`, …

    Empty where there is no tracing. A task that was started in a span stays in it.
    """
    return _carried.get()


def start(environ: Mapping[str, str]) -> Tracer | None:
    """A tracer, where the environment asks for one and it can be had.

    A server without tracing is better than none: what is missing is logged.
    """
    asked = environ.get(_TRACES) or environ.get(_ENDPOINT)
    disabled = environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if not asked or disabled or environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return None
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", _PROTOCOL
    )
    if protocol != _PROTOCOL:
        _log.error("no tracing", why=f"OTEL_EXPORTER_OTLP_PROTOCOL: {protocol} is not {_PROTOCOL}")
        return None
    try:
        provider = _provider(environ)
    except ImportError as error:
        _log.error("no tracing", why=f"{error}: install zos-cri with its extra otel")
        return None
    _log.info("tracing", endpoint=asked)
    return Tracer(provider)


def _provider(environ: Mapping[str, str]) -> TracerProvider:
    # Here, for a server without tracing doesn't pay for them: 8 MiB and half a second.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    attributes = {"service.version": __version__}
    named = "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not named and "OTEL_SERVICE_NAME" not in environ:
        attributes["service.name"] = "zos-cri"
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Tracer:
    """Makes spans. `aclose` sends the last of them."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import propagate, trace  # noqa: PLC0415 as in `_provider`

        self._provider = provider
        self._tracer = provider.get_tracer("zos_cri", __version__)
        self._propagate: Any = propagate
        self._trace: Any = trace

    @contextmanager
    def rpc(
        self, service: str, method: str, metadata: Mapping[str, Any], fields: Mapping[str, str]
    ) -> Iterator[Recording]:
        """The span of an RPC that we serve.

        Args:
            metadata: the caller's, where its own span is named.
            fields: what the RPC is about.
        """
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        about = {f"zos_cri.{name}": value for name, value in fields.items() if name != "rpc"}
        parent = self._propagate.extract(metadata)
        kind = self._trace.SpanKind.SERVER
        with self._span(f"{service}/{method}", {**attributes, **about}, kind, parent) as span:
            yield Recording(span, self._trace)

    @contextmanager
    def stage(self, operation: str, stage: str) -> Iterator[Recording]:
        """The span of a stage, within the RPC's."""
        kind = self._trace.SpanKind.INTERNAL
        with self._span(f"{operation}/{stage}", {}, kind, None) as span:
            recording = Recording(span, self._trace)
            try:
                yield recording
            except Exception as error:
                recording.failed(error)
                raise

    @contextmanager
    def _span(
        self, name: str, attributes: Mapping[str, str], kind: SpanKind, parent: Context | None
    ) -> Iterator[Span]:
        with self._tracer.start_as_current_span(
            name,
            context=parent,
            kind=kind,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            carrier: dict[str, str] = {}
            self._propagate.inject(carrier)
            token = _carried.set(carrier)
            try:
                yield span
            finally:
                _carried.reset(token)

    async def aclose(self) -> None:
        """Sends what has not been sent, within `FLUSH_TIMEOUT`."""
        with suppress(DeadlineExceeded):
            await blocking.call_abandonable(
                self._provider.shutdown, timeout=FLUSH_TIMEOUT, what="the last spans"
            )


class Recording:
    """A span that is under way."""

    def __init__(self, span: Span, trace: Any) -> None:
        self._span = span
        self._trace = trace

    def answered(self, code: str, message: str) -> None:
        """Notes what the caller is told: a gRPC code's name, and the error's message."""
        self._span.set_attribute("rpc.response.status_code", code)
        if code in _SERVER_FAULTS:
            self._span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, message))

    def failed(self, error: Exception) -> None:
        """Notes that the stage has failed, whoever is at fault."""
        self._span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, one_line(error)))

    def exemplar(self) -> dict[str, str] | None:
        """What leads from a metric's bucket to this trace; None where nobody records it."""
        context = self._span.get_span_context()
        if not context.trace_flags.sampled:
            return None
        return {
            "trace_id": self._trace.format_trace_id(context.trace_id),
            "span_id": self._trace.format_span_id(context.span_id),
        }
