"""The gRPC service zos.container.v1: the module for programs in other languages."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zos_cri._pb import container_pb2 as pb
from zos_cri.errors import InvalidArgument
from zos_cri.module.model import (
    DEFAULT_SHUTDOWN_TIMEOUT,
    Container,
    Inspection,
    MountInfo,
    Network,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from zos_cri.module.module import ContainerModule

_STATES = {
    "creating": pb.CREATED,
    "created": pb.CREATED,
    "starting": pb.CREATED,
    "running": pb.RUNNING,
    "exited": pb.EXITED,
    "removing": pb.EXITED,
    "unknown": pb.UNKNOWN,
}


class ModuleService:
    """Translates between the service's messages and the module."""

    READS: Final = frozenset({"Inspect", "List", "ListNamespaces"})
    """What is answered from memory."""

    def __init__(self, module: ContainerModule) -> None:
        self._module = module

    @property
    def unary(self) -> Mapping[str, Callable[[Any], Awaitable[Any]]]:
        return {
            "Run": self._run,
            "Inspect": self._inspect,
            "Delete": self._delete,
            "List": self._list,
            "ListNamespaces": self._list_namespaces,
            "Exec": self._exec,
            "Signal": self._signal,
            "Stats": self._stats,
        }

    @property
    def streams(self) -> Mapping[str, Callable[[Any], AsyncGenerator[Any, None]]]:
        return {"Logs": self._logs}

    async def _run(self, request: pb.RunRequest) -> pb.RunResponse:
        if not request.HasField("container"):
            raise InvalidArgument("container: is missing")
        return pb.RunResponse(id=await self._module.run(request.ns, from_pb(request.container)))

    async def _inspect(self, request: pb.InspectRequest) -> pb.InspectResponse:
        return inspection_pb(self._module.inspect(request.ns, request.id))

    async def _delete(self, request: pb.DeleteRequest) -> pb.DeleteResponse:
        await self._module.delete(request.ns, request.id)
        return pb.DeleteResponse()

    async def _list(self, request: pb.ListRequest) -> pb.ListResponse:
        return pb.ListResponse(
            containers=[inspection_pb(each) for each in self._module.list(request.ns)]
        )

    async def _list_namespaces(self, _: pb.ListNamespacesRequest) -> pb.ListNamespacesResponse:
        return pb.ListNamespacesResponse(namespaces=self._module.list_ns())

    async def _exec(self, request: pb.ExecRequest) -> pb.ExecResponse:
        if request.timeout < 0:
            raise InvalidArgument(f"timeout: {request.timeout:g} s is negative")
        result = await self._module.exec(
            request.ns, request.id, list(request.argv), timeout=request.timeout or None
        )
        return pb.ExecResponse(
            stdout=result.stdout, stderr=result.stderr, exit_code=result.exit_code
        )

    async def _signal(self, request: pb.SignalRequest) -> pb.SignalResponse:
        await self._module.signal(request.ns, request.id, request.signal)
        return pb.SignalResponse()

    async def _stats(self, request: pb.StatsRequest) -> pb.StatsResponse:
        usage = await self._module.stats(request.ns, request.id)
        return pb.StatsResponse(
            timestamp=usage.timestamp, cpu=usage.cpu, memory=usage.memory, pids=usage.pids
        )

    async def _logs(self, request: pb.LogsRequest) -> AsyncGenerator[pb.LogsResponse, None]:
        lines = request.tail_lines if request.HasField("tail_lines") else None
        logs = self._module.logs(request.ns, request.id, follow=request.follow, tail_lines=lines)
        async with contextlib.aclosing(logs):
            async for data in logs:
                yield pb.LogsResponse(data=data)


def from_pb(message: pb.Container) -> Container:
    """A container as the module knows it."""
    return Container(
        id=message.id,
        name=message.name,
        flist=message.flist,
        tags=dict(message.tags),
        env=dict(message.env),
        network=Network(message.network.namespace),
        mounts=tuple(
            MountInfo(source=m.source, target=m.target, type=m.type, options=tuple(m.options))
            for m in message.mounts
        ),
        entrypoint=message.entrypoint,
        working_dir=message.working_dir or "/",
        cpu=message.cpu,
        memory=message.memory,
        interactive=message.interactive,
        elevated=message.elevated,
        shutdown_timeout=message.shutdown_timeout or DEFAULT_SHUTDOWN_TIMEOUT,
    )


def to_pb(container: Container) -> pb.Container:
    """The same, the other way round."""
    fields = msgspec.structs.asdict(container)
    fields["network"] = pb.Network(namespace=container.network.namespace)
    fields["mounts"] = [pb.Mount(**msgspec.structs.asdict(m)) for m in container.mounts]
    return pb.Container(**fields)


def inspection_pb(inspection: Inspection) -> pb.InspectResponse:
    """What Inspect and List answer."""
    return pb.InspectResponse(
        ns=inspection.ns,
        container=to_pb(inspection.container),
        status=pb.Status(
            state=_STATES[inspection.state],
            pid=inspection.pid,
            created_at=inspection.created_at,
            started_at=inspection.started_at,
            finished_at=inspection.finished_at,
            exit_code=inspection.exit_code,
            reason=inspection.reason,
            message=inspection.message,
            log_path=inspection.log_path,
        ),
    )


def inspection_from_pb(message: pb.InspectResponse) -> Inspection:
    """The same, the other way round (for the CLI)."""
    status = message.status
    return Inspection(
        ns=message.ns,
        container=from_pb(message.container),
        state=pb.State.Name(status.state).lower(),
        pid=status.pid,
        created_at=status.created_at,
        started_at=status.started_at,
        finished_at=status.finished_at,
        exit_code=status.exit_code,
        reason=status.reason,
        message=status.message,
        log_path=status.log_path,
    )
