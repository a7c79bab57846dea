"""gRPC's own services on our socket: grpc.health.v1, and reflection for grpcurl and others."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from zos_cri.errors import NotFound
from zos_cri.linux import blocking

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable

    from zos_cri.cri.rpc import Rpcs

HEALTH: Final = health_pb2.DESCRIPTOR.services_by_name["Health"]
# Newer clients ask for v1 first. The library has v1alpha alone; on the wire they are the same.
_REFLECTIONS: Final = (
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)
_LIBRARY: Final = "grpc_reflection.v1alpha."


class Health:
    """grpc.health.v1: SERVING once the recovery is over and until the stop.

    The library's own servicer has streams that don't end: each client that watches would hold up
    the stop for as long as RPCs under way are given.
    """

    def __init__(self, recovered: asyncio.Event, services: Iterable[str]) -> None:
        """
        Args:
            services: the names that may be asked for, beside "" for all of them.
        """
        self._recovered = recovered
        self._services = frozenset((*services, ""))
        self._stopping = asyncio.Event()

    def close(self) -> None:
        """Tells those that watch; their streams end."""
        self._stopping.set()

    async def check(self, request: HealthCheckRequest) -> HealthCheckResponse:
        """
        Raises:
            NotFound: there is no such service.
        """
        if request.service not in self._services:
            raise NotFound(f'no service "{request.service}"')
        return self._response()

    async def watch(self, request: HealthCheckRequest) -> AsyncGenerator[HealthCheckResponse, None]:
        """The status now, and each new one."""
        if request.service not in self._services:
            yield HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
            await self._stopping.wait()
            return
        for change in (self._recovered, self._stopping):
            if not change.is_set():
                yield self._response()
                await self._either(change)
        yield self._response()

    def _response(self) -> HealthCheckResponse:
        ready = self._recovered.is_set() and not self._stopping.is_set()
        return HealthCheckResponse(
            status=HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING
        )

    async def _either(self, change: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in {change, self._stopping}]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def handler(self, rpcs: Rpcs) -> grpc.GenericRpcHandler:
        return rpcs.service(HEALTH, {"Check": self.check}, {"Watch": self.watch}, reads=("Check",))


def reflection_handlers(services: Iterable[str]) -> list[grpc.GenericRpcHandler]:
    """What says which services there are, and their .proto files.

    Args:
        services: their full names.
    """
    names = (*services, *_REFLECTIONS)

    async def answer(requests: AsyncIterator[bytes], context: Any) -> AsyncGenerator[bytes, None]:
        # It takes four MiB, and few ever ask.
        library: Any = await blocking.call(import_module, _LIBRARY + "reflection")
        messages: Any = await blocking.call(import_module, _LIBRARY + "reflection_pb2")

        async def parsed() -> AsyncGenerator[Any, None]:
            async for request in requests:
                yield messages.ServerReflectionRequest.FromString(request)

        servicer = library.aio.ReflectionServicer(names)
        async for response in servicer.ServerReflectionInfo(parsed(), context):
            yield response.SerializeToString()

    method: Any = grpc.stream_stream_rpc_method_handler(answer)  # None: bytes as they are
    return [
        grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method})
        for name in _REFLECTIONS
    ]
