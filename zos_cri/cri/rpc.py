"""What every RPC has in common: its metrics, its log fields, its errors' gRPC codes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Container
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc
from google.protobuf import message_factory

from zos_cri.errors import Error, Unimplemented, grpc_code, one_line
from zos_cri.log import get_log, join

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
    from prometheus_client import Gauge, Histogram

    from zos_cri.metrics import Metrics
    from zos_cri.tracing import Recording

_log = get_log(__name__)

Unary = Callable[[Any], Awaitable[Any]]
Stream = Callable[[Any], AsyncGenerator[Any, None]]
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# Request fields that say what an RPC is about; they go into every log line of it.
_ID_FIELDS: Final = {
    "pod_sandbox_id": "pod",
    "container_id": "container",
    "ns": "ns",
    "id": "container",
}
# Bytes. It travels in a header, where some take three, and headers have 8 KiB together: with a
# longer one a client may get RESOURCE_EXHAUSTED in its place.
MESSAGE_LIMIT: Final = 2048
# Errors that say that we, not the caller, are at fault; the others are part of the day's work.
_OUR_FAULT: Final = frozenset({"INTERNAL", "DATA_LOSS"})


class Rpcs:
    """Turns functions into gRPC services."""

    def __init__(self, metrics: Metrics, recovered: asyncio.Event) -> None:
        """
        Args:
            recovered: what all methods but the reading ones wait for.
        """
        self._metrics = metrics
        self._recovered = recovered

    def service(
        self,
        descriptor: ServiceDescriptor,
        unary: Mapping[str, Unary],
        streams: Mapping[str, Stream] | None = None,
        *,
        reads: Container[str] = (),
    ) -> grpc.GenericRpcHandler:
        """A service of which every method is there: those without a function say UNIMPLEMENTED.

        Args:
            unary: by method name, a function from the request to the response.
            streams: by method name, a function from the request to the responses one by one; None
                among them tells the client that the stream is there (its headers are sent).
            reads: the methods that are answered from memory, also while the server recovers.
        """
        streams = streams or {}
        methods = {}
        for method in descriptor.methods:
            deserialize = message_factory.GetMessageClass(method.input_type).FromString
            if method.server_streaming:
                stream = streams.get(method.name) or _missing_stream(method)
                methods[method.name] = grpc.unary_stream_rpc_method_handler(
                    self._stream(method, stream), deserialize, _serialize
                )
            else:
                call = unary.get(method.name) or _missing(method)
                if method.name not in reads:
                    call = self._after_recovery(call)
                methods[method.name] = grpc.unary_unary_rpc_method_handler(
                    self._unary(method, call), deserialize, _serialize
                )
        return grpc.method_handlers_generic_handler(descriptor.full_name, methods)

    def _after_recovery(self, call: Unary) -> Unary:
        async def wait_and_call(request: Any) -> Any:
            await self._recovered.wait()
            return await call(request)

        return wait_and_call

    def _unary(self, method: MethodDescriptor, call: Unary) -> Callable[[Any, Context], Any]:
        known = _Method(self._metrics, method)

        async def handle(request: Any, context: Context) -> Any:
            with _Observed(known, request, context) as observed:
                try:
                    response = await call(request)
                    observed.sends()
                    return response
                except Exception as error:
                    code = observed.failed(error)
            return await context.abort(code, observed.message)

        return handle

    def _stream(self, method: MethodDescriptor, call: Stream) -> Callable[[Any, Context], Any]:
        known = _Method(self._metrics, method)

        async def handle(request: Any, context: Context) -> AsyncIterator[Any]:
            with _Observed(known, request, context) as observed:
                try:
                    # Closed with the call, so that a client that leaves frees what it reads from.
                    async with contextlib.aclosing(call(request)) as responses:
                        async for response in responses:
                            if response is None:
                                await context.send_initial_metadata(())
                            else:
                                observed.sends()
                                yield response
                    return
                except Exception as error:
                    code = observed.failed(error)
            await context.abort(code, observed.message)

        return handle


class _Method:
    """What the calls of one method have in common, looked up once."""

    def __init__(self, metrics: Metrics, method: MethodDescriptor) -> None:
        self.metrics = metrics
        self.descriptor = method
        fields = method.input_type.fields_by_name
        self._names = [(name, key) for name, key in _ID_FIELDS.items() if name in fields]

    # Both with the first call: what was never called has no series.

    @cached_property
    def in_flight(self) -> Gauge:
        return self.metrics.in_flight(self.descriptor.name)

    @cached_property
    def answered(self) -> Histogram:
        return self.metrics.duration(self.descriptor.name, "OK")

    def about(self, request: Any) -> dict[str, str]:
        """What a request adds to log lines."""
        found = {"rpc": self.descriptor.name}
        for name, key in self._names:
            value = getattr(request, name)
            if value:
                found[key] = value
        return found


class _Observed:
    """One RPC's log fields and measurements: in flight until it ends, then its duration and code.

    And its span, where there is tracing. Whoever makes one is a task of its own, whose fields they
    become.
    """

    __slots__ = ("_begun", "_code", "_method", "_span", "_told", "_traced", "message")

    def __init__(self, method: _Method, request: Any, context: Context) -> None:
        about = method.about(request)
        join(about)
        metrics = method.metrics
        names = metrics.containerd
        self._told = names.begun(method.descriptor, request) if names is not None else None
        self._method = method
        self._begun = time.perf_counter()
        self._code = "OK"
        self.message = ""
        self._traced: AbstractContextManager[Recording] | None = None
        self._span: Recording | None = None
        if metrics.tracer is not None:
            metadata = dict(context.invocation_metadata() or ())
            service = method.descriptor.containing_service.full_name
            self._traced = metrics.tracer.rpc(service, method.descriptor.name, metadata, about)
            self._span = self._traced.__enter__()
        method.in_flight.inc()

    def __enter__(self) -> _Observed:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._code = "CANCELLED"  # the client has left: what fails is caught inside
        method = self._method
        method.in_flight.dec()
        seconds = time.perf_counter() - self._begun
        exemplar = None
        if self._traced is not None and self._span is not None:
            exemplar = self._span.exemplar()
            self._span.answered(self._code, self.message)
            self._traced.__exit__(None, None, None)
        if self._code == "OK":
            duration = method.answered
        else:
            duration = method.metrics.duration(method.descriptor.name, self._code)
        duration.observe(seconds, exemplar)
        if self._told is not None:
            self._told.ended(self._code)

    def sends(self) -> None:
        """A message of the answer goes out."""
        if self._told is not None:
            self._told.sent()

    def failed(self, error: Exception) -> grpc.StatusCode:
        self._code = grpc_code(error)
        self.message = one_line(error).encode()[:MESSAGE_LIMIT].decode(errors="ignore")
        rpc = self._method.descriptor.name
        if not isinstance(error, Error) and self._code == "UNKNOWN":
            _log.exception("rpc failed", rpc=rpc, code=self._code, error=self.message)
        else:
            write = _log.error if self._code in _OUR_FAULT else _log.info
            write("rpc failed", rpc=rpc, code=self._code, error=self.message)
        return grpc.StatusCode[self._code]


def _serialize(message: Any) -> bytes:
    data: bytes = message if isinstance(message, bytes) else message.SerializeToString()
    return data


def _missing(method: MethodDescriptor) -> Unary:
    async def call(_: Any) -> Any:
        raise Unimplemented(f"{method.name} is not offered by zos-cri")

    return call


def _missing_stream(method: MethodDescriptor) -> Stream:
    async def call(_: Any) -> AsyncGenerator[Any, None]:
        nothing: tuple[Any, ...] = ()
        for item in nothing:  # makes it a generator
            yield item
        raise Unimplemented(f"{method.name} is not offered by zos-cri")

    return call
