"""The sandbox API of a shim, typed: containerd.runtime.sandbox.v1.

Shims that make the pod themselves (a virtual machine) serve it beside the Task API. Which calls
come in which order, and what they carry, is as containerd's "shim" sandbox controller does it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
from google.protobuf.message import DecodeError, Message

from zos_cri import errors
from zos_cri._pb import sandbox_pb2
from zos_cri.failpoints import step
from zos_cri.shim.task import NAMESPACE_KEY, Exit, nanoseconds
from zos_cri.tracing import carried

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf import any_pb2

    from zos_cri.shim.client import Caller

M = TypeVar("M", bound=Message)

SERVICE: Final = "containerd.runtime.sandbox.v1.Sandbox"
# Shims with a sandbox API have at least this version of the Task API: they came together.
TASK_VERSION: Final = 3
READY: Final = "SANDBOX_READY"

# Deadlines, in seconds.
QUERY_TIMEOUT: Final = 5.0  # answered from the shim's memory
CREATE_TIMEOUT: Final = 60.0  # prepares a machine: disks, devices, its network
START_TIMEOUT: Final = 60.0  # boots it, and waits for its agent
STOP_GRACE: Final = 10  # whole seconds that the sandbox has to end by itself
STOP_TIMEOUT: Final = STOP_GRACE + 10.0  # its answer, once the grace is over
SHUTDOWN_TIMEOUT: Final = 10.0

# The calls that change something, as `failpoints` names them.
_POINTS: Final = {
    "CreateSandbox": "sandboxer.create",
    "StartSandbox": "sandboxer.start",
    "StopSandbox": "sandboxer.stop",
    "ShutdownSandbox": "sandboxer.shutdown",
}


class Started(msgspec.Struct, frozen=True):
    """`pid` is the sandbox's on the host (a hypervisor's), 0 where it has none."""

    pid: int
    created_at_ns: int


class SandboxState(msgspec.Struct, frozen=True):
    """What a shim says of its sandbox.

    Attributes:
        state: SANDBOX_READY or SANDBOX_NOTREADY.
        info: only where it was asked for: whatever the shim has to say.
    """

    pid: int
    state: str
    info: dict[str, str] = {}

    @property
    def ready(self) -> bool:
        return self.state == READY


class SandboxClient:
    """Calls a shim's Sandbox service.

    Every call raises the errors of `zos_cri.errors`: NotFound for a sandbox that isn't there,
    Unimplemented where the shim has no such call, Unavailable when the connection goes,
    DeadlineExceeded when `timeout` (seconds) runs out: then it may have happened nonetheless.
    """

    def __init__(self, caller: Caller, *, namespace: str) -> None:
        self._caller = caller
        self._metadata = {NAMESPACE_KEY: namespace}

    async def _call(
        self, method: str, request: Message, kind: type[M], *, timeout: float | None
    ) -> M:
        point = _POINTS.get(method)
        if point is None:
            data = await self._asked(method, request, timeout)
        else:
            async with step(point):
                data = await self._asked(method, request, timeout)
        try:
            return kind.FromString(data)
        except DecodeError as error:
            raise errors.Internal(f"{method}: the answer isn't a {kind.__name__}") from error

    async def _asked(self, method: str, request: Message, timeout: float | None) -> bytes:
        return await self._caller.call(
            SERVICE,
            method,
            request.SerializeToString(),
            timeout=timeout,
            metadata={**self._metadata, **carried()},
        )

    async def create(
        self,
        id_: str,
        bundle: str,
        *,
        options: any_pb2.Any,
        netns: str,
        annotations: Mapping[str, str],
        timeout: float = CREATE_TIMEOUT,
    ) -> None:
        """Prepares a sandbox.

        Args:
            bundle: the directory that the shim was started in.
            options: the pod's configuration, a runtime.v1.PodSandboxConfig.
            netns: the path of its network namespace, "" for the host's; connected already.
        """
        request = sandbox_pb2.CreateSandboxRequest(
            sandbox_id=id_,
            bundle_path=bundle,
            options=options,
            netns_path=netns,
            annotations=annotations,
        )
        await self._call(
            "CreateSandbox", request, sandbox_pb2.CreateSandboxResponse, timeout=timeout
        )

    async def start(self, id_: str, *, timeout: float = START_TIMEOUT) -> Started:
        """Starts a sandbox that was created."""
        request = sandbox_pb2.StartSandboxRequest(sandbox_id=id_)
        response = await self._call(
            "StartSandbox", request, sandbox_pb2.StartSandboxResponse, timeout=timeout
        )
        return Started(response.pid, nanoseconds(response.created_at))

    async def wait(self, id_: str) -> Exit:
        """Waits for the sandbox to end, for as long as the connection lives.

        Unavailable says nothing of the sandbox: ask again.
        """
        request = sandbox_pb2.WaitSandboxRequest(sandbox_id=id_)
        response = await self._call(
            "WaitSandbox", request, sandbox_pb2.WaitSandboxResponse, timeout=None
        )
        return Exit(response.exit_status, nanoseconds(response.exited_at))

    async def status(
        self, id_: str, *, verbose: bool = False, timeout: float = QUERY_TIMEOUT
    ) -> SandboxState:
        """How the sandbox is."""
        request = sandbox_pb2.SandboxStatusRequest(sandbox_id=id_, verbose=verbose)
        response = await self._call(
            "SandboxStatus", request, sandbox_pb2.SandboxStatusResponse, timeout=timeout
        )
        return SandboxState(response.pid, response.state, dict(response.info))

    async def ping(self, id_: str, *, timeout: float = QUERY_TIMEOUT) -> None:
        """Whether the shim answers for the sandbox."""
        request = sandbox_pb2.PingRequest(sandbox_id=id_)
        await self._call("PingSandbox", request, sandbox_pb2.PingResponse, timeout=timeout)

    async def metrics(self, id_: str, *, timeout: float = QUERY_TIMEOUT) -> any_pb2.Any:
        """What the sandbox uses, as an Any: io.containerd.cgroups.v1.Metrics or v2's."""
        request = sandbox_pb2.SandboxMetricsRequest(sandbox_id=id_)
        response = await self._call(
            "SandboxMetrics", request, sandbox_pb2.SandboxMetricsResponse, timeout=timeout
        )
        return response.metrics.data

    async def stop(
        self, id_: str, *, grace: int = STOP_GRACE, timeout: float = STOP_TIMEOUT
    ) -> None:
        """Ends the sandbox with all that is in it; the shim stays.

        Args:
            grace: whole seconds that it has to end by itself.
        """
        request = sandbox_pb2.StopSandboxRequest(sandbox_id=id_, timeout_secs=grace)
        await self._call("StopSandbox", request, sandbox_pb2.StopSandboxResponse, timeout=timeout)

    async def shutdown(self, id_: str, *, timeout: float = SHUTDOWN_TIMEOUT) -> None:
        """Ends the shim itself."""
        request = sandbox_pb2.ShutdownSandboxRequest(sandbox_id=id_)
        await self._call(
            "ShutdownSandbox", request, sandbox_pb2.ShutdownSandboxResponse, timeout=timeout
        )
