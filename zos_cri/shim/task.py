"""The Task API of a shim, typed: versions 2 and 3, which differ in the service's name only."""

# ruff: noqa: A002 - id and all are the protocol's names

from __future__ import annotations

import contextlib
import enum
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from google.protobuf import any_pb2, empty_pb2
from google.protobuf.message import DecodeError, Message

from zos_cri import errors
from zos_cri._pb import task_types_pb2, task_v3_pb2, types_pb2
from zos_cri.failpoints import step
from zos_cri.tracing import carried

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from google.protobuf.timestamp_pb2 import Timestamp

    from zos_cri.linux.mount import Mount
    from zos_cri.shim.client import Caller

M = TypeVar("M", bound=Message)

SERVICES: Final[Mapping[int, str]] = {2: "containerd.task.v2.Task", 3: "containerd.task.v3.Task"}
NAMESPACE_KEY: Final = "containerd-namespace-ttrpc"  # the shim refuses calls without it
# OCI's JSON documents travel in Any messages under these names.
_SPEC_URL: Final = "types.containerd.io/opencontainers/runtime-spec/1/"

# Deadlines, in seconds. The shim is told of them and stops its OCI runtime when they run out, so
# they are far above what the work takes on a busy host.
QUERY_TIMEOUT: Final = 10.0  # answered from the shim's memory, or by one short runc run
CREATE_TIMEOUT: Final = 120.0  # mounts the rootfs and runs `runc create` with its hooks
START_TIMEOUT: Final = 60.0  # runs `runc start` and its hooks, or `runc exec`
KILL_TIMEOUT: Final = 15.0
# The shim itself waits up to 10 s for the output to be drained; then it unmounts.
DELETE_TIMEOUT: Final = 30.0
UPDATE_TIMEOUT: Final = 30.0
CHECKPOINT_TIMEOUT: Final = 600.0  # writes the memory to disk
SHUTDOWN_TIMEOUT: Final = 3.0

# The calls that change something, as `failpoints` names them.
_POINTS: Final = {
    "Create": "task.create",
    "Start": "task.start",
    "Kill": "task.kill",
    "Delete": "task.delete",
    "Exec": "exec.add",
}


class TaskStatus(enum.StrEnum):
    UNKNOWN = "unknown"
    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"
    PAUSED = "paused"
    PAUSING = "pausing"


_STATUSES: Final[Mapping[int, TaskStatus]] = {
    task_types_pb2.UNKNOWN: TaskStatus.UNKNOWN,
    task_types_pb2.CREATED: TaskStatus.CREATED,
    task_types_pb2.RUNNING: TaskStatus.RUNNING,
    task_types_pb2.STOPPED: TaskStatus.STOPPED,
    task_types_pb2.PAUSED: TaskStatus.PAUSED,
    task_types_pb2.PAUSING: TaskStatus.PAUSING,
}


class TaskState(msgspec.Struct, frozen=True):
    """What a shim says of a process.

    Attributes:
        exit_status, exited_at_ns: of a stopped one; else 0. Nanoseconds since 1970.
    """

    id: str
    exec_id: str
    pid: int
    status: TaskStatus
    exit_status: int = 0
    exited_at_ns: int = 0
    bundle: str = ""
    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class Exit(msgspec.Struct, frozen=True):
    """How a process ended: 128 + n for signal n. `pid` is 0 where the shim doesn't say."""

    status: int
    exited_at_ns: int
    pid: int = 0


class Connected(msgspec.Struct, frozen=True):
    """`task_pid` is 0 where the shim doesn't know the task."""

    shim_pid: int
    task_pid: int
    version: str = ""


class TaskClient:
    """Calls a shim's Task service.

    Every call raises the errors of `zos_cri.errors`: NotFound for a task, exec or process that
    isn't there, Unavailable when the connection goes, DeadlineExceeded when `timeout` (seconds)
    runs out: then it may have happened nonetheless, ask `state`. What the OCI runtime says comes
    as `ShimFailed`.

    Args:
        version: 2 or 3, as the shim's bootstrap said. Where 3 turns out to be unimplemented (a
            shim of 1.7 behind a newer binary, containerd#10888), 2 is spoken from then on.
    """

    def __init__(self, caller: Caller, *, version: int, namespace: str) -> None:
        if version not in SERVICES:
            raise errors.Unimplemented(f"shim API version {version}: only 2 and 3 are spoken here")
        self.version = version
        self._caller = caller
        self._metadata = {NAMESPACE_KEY: namespace}

    async def _call(
        self, method: str, request: Message, kind: type[M], *, timeout: float | None
    ) -> M:
        payload = request.SerializeToString()
        point = _POINTS.get(method)
        if point is None:
            data = await self._asked(method, payload, timeout)
        else:
            async with step(point):
                data = await self._asked(method, payload, timeout)
        try:
            return kind.FromString(data)
        except DecodeError as error:
            raise errors.Internal(f"{method}: the answer isn't a {kind.__name__}") from error

    async def _asked(self, method: str, payload: bytes, timeout: float | None) -> bytes:
        try:
            return await self._invoke(self.version, method, payload, timeout)
        except errors.Unimplemented:
            if self.version != 3:
                raise
            data = await self._invoke(2, method, payload, timeout)
            self.version = 2
            return data

    async def _invoke(
        self, version: int, method: str, payload: bytes, timeout: float | None
    ) -> bytes:
        metadata = {**self._metadata, **carried()}
        return await self._caller.call(
            SERVICES[version], method, payload, timeout=timeout, metadata=metadata
        )

    async def create(
        self,
        id: str,
        bundle: str,
        rootfs: Sequence[Mount],
        *,
        terminal: bool = False,
        stdin: str = "",
        stdout: str = "",
        stderr: str = "",
        options: any_pb2.Any | None = None,
        checkpoint: str = "",
        timeout: float = CREATE_TIMEOUT,
    ) -> int:
        """Mounts the rootfs and creates the container; returns its first process's pid.

        Args:
            bundle: has config.json; its base name must be `id`.
            rootfs: mounted by the shim on `bundle`/rootfs, unmounted by `delete`.
            stdin, stdout, stderr: "" is /dev/null; a FIFO's path, whose other end is open already;
                `file:///path`, appended to (one file for stdout and stderr: stdout's);
                `binary:///path`, a logger. With a terminal stderr is "".
            options: `Handler.task_options()`.
            checkpoint: a CRIU image's directory to restore from.
        """
        _check_stdio(terminal, stdin, stdout, stderr)
        request = task_v3_pb2.CreateTaskRequest(
            id=id,
            bundle=bundle,
            rootfs=[
                types_pb2.Mount(type=m.type, source=m.source, target=m.target, options=m.options)
                for m in rootfs
            ],
            terminal=terminal,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            checkpoint=checkpoint,
            options=options,
        )
        response = await self._call(
            "Create", request, task_v3_pb2.CreateTaskResponse, timeout=timeout
        )
        return response.pid

    async def start(
        self,
        id: str,
        exec_id: str = "",
        *,
        timeout: float = START_TIMEOUT,
    ) -> int:
        """Starts a created container, or an exec; returns its pid."""
        request = task_v3_pb2.StartRequest(id=id, exec_id=exec_id)
        response = await self._call("Start", request, task_v3_pb2.StartResponse, timeout=timeout)
        return response.pid

    async def state(
        self,
        id: str,
        exec_id: str = "",
        *,
        timeout: float = QUERY_TIMEOUT,
    ) -> TaskState:
        request = task_v3_pb2.StateRequest(id=id, exec_id=exec_id)
        response = await self._call("State", request, task_v3_pb2.StateResponse, timeout=timeout)
        return TaskState(
            # runc's shim answers with the process's own id, which for an exec is the exec's
            id=id,
            exec_id=exec_id,
            pid=response.pid,
            status=_STATUSES.get(response.status, TaskStatus.UNKNOWN),
            exit_status=response.exit_status,
            exited_at_ns=nanoseconds(response.exited_at),
            bundle=response.bundle,
            stdin=response.stdin,
            stdout=response.stdout,
            stderr=response.stderr,
            terminal=response.terminal,
        )

    async def wait(
        self,
        id: str,
        exec_id: str = "",
        *,
        timeout: float | None = None,
    ) -> Exit:
        """Waits for a process to end. Unavailable says nothing of the process: ask again."""
        request = task_v3_pb2.WaitRequest(id=id, exec_id=exec_id)
        response = await self._call("Wait", request, task_v3_pb2.WaitResponse, timeout=timeout)
        return Exit(response.exit_status, nanoseconds(response.exited_at))

    async def kill(
        self,
        id: str,
        signal: int,
        exec_id: str = "",
        *,
        all: bool = False,
        timeout: float = KILL_TIMEOUT,
    ) -> None:
        """Sends a signal to a process, or with `all` to every process of the container."""
        request = task_v3_pb2.KillRequest(id=id, exec_id=exec_id, signal=signal, all=all)
        await self._call("Kill", request, empty_pb2.Empty, timeout=timeout)

    async def delete(
        self,
        id: str,
        exec_id: str = "",
        *,
        timeout: float = DELETE_TIMEOUT,
    ) -> Exit:
        """Forgets a stopped process; of a container also the runtime's state and the mounts."""
        request = task_v3_pb2.DeleteRequest(id=id, exec_id=exec_id)
        response = await self._call("Delete", request, task_v3_pb2.DeleteResponse, timeout=timeout)
        return Exit(response.exit_status, nanoseconds(response.exited_at), response.pid)

    async def exec(
        self,
        id: str,
        exec_id: str,
        process: Mapping[str, Any],
        *,
        terminal: bool = False,
        stdin: str = "",
        stdout: str = "",
        stderr: str = "",
        timeout: float = QUERY_TIMEOUT,
    ) -> None:
        """Prepares a further process (an OCI Process); `start` with its id runs it."""
        _check_stdio(terminal, stdin, stdout, stderr)
        request = task_v3_pb2.ExecProcessRequest(
            id=id,
            exec_id=exec_id,
            terminal=terminal,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            spec=_oci("Process", process),
        )
        await self._call("Exec", request, empty_pb2.Empty, timeout=timeout)

    async def pids(self, id: str, *, timeout: float = QUERY_TIMEOUT) -> list[int]:
        """All processes of a container, as the host numbers them."""
        request = task_v3_pb2.PidsRequest(id=id)
        response = await self._call("Pids", request, task_v3_pb2.PidsResponse, timeout=timeout)
        return [process.pid for process in response.processes]

    async def update(
        self,
        id: str,
        linux_resources: Mapping[str, Any],
        annotations: Mapping[str, str] | None = None,
        *,
        timeout: float = UPDATE_TIMEOUT,
    ) -> None:
        """Changes a running container's limits (an OCI LinuxResources)."""
        request = task_v3_pb2.UpdateTaskRequest(
            id=id,
            resources=_oci("LinuxResources", linux_resources),
            annotations=annotations or {},
        )
        await self._call("Update", request, empty_pb2.Empty, timeout=timeout)

    async def stats(self, id: str, *, timeout: float = QUERY_TIMEOUT) -> any_pb2.Any:
        """The cgroup's numbers as an Any (io.containerd.cgroups.v1.Metrics or v2)."""
        request = task_v3_pb2.StatsRequest(id=id)
        response = await self._call("Stats", request, task_v3_pb2.StatsResponse, timeout=timeout)
        return response.stats

    async def close_io(
        self,
        id: str,
        exec_id: str = "",
        *,
        timeout: float = QUERY_TIMEOUT,
    ) -> None:
        """The process's stdin comes to its end, when the FIFO is read empty."""
        request = task_v3_pb2.CloseIORequest(id=id, exec_id=exec_id, stdin=True)
        await self._call("CloseIO", request, empty_pb2.Empty, timeout=timeout)

    async def resize_pty(
        self,
        id: str,
        exec_id: str = "",
        *,
        width: int,
        height: int,
        timeout: float = QUERY_TIMEOUT,
    ) -> None:
        request = task_v3_pb2.ResizePtyRequest(id=id, exec_id=exec_id, width=width, height=height)
        await self._call("ResizePty", request, empty_pb2.Empty, timeout=timeout)

    async def pause(self, id: str, *, timeout: float = UPDATE_TIMEOUT) -> None:
        request = task_v3_pb2.PauseRequest(id=id)
        await self._call("Pause", request, empty_pb2.Empty, timeout=timeout)

    async def resume(self, id: str, *, timeout: float = UPDATE_TIMEOUT) -> None:
        request = task_v3_pb2.ResumeRequest(id=id)
        await self._call("Resume", request, empty_pb2.Empty, timeout=timeout)

    async def checkpoint(
        self,
        id: str,
        path: str,
        options: any_pb2.Any | None = None,
        *,
        timeout: float = CHECKPOINT_TIMEOUT,
    ) -> None:
        """Writes a CRIU image to `path` (options: containerd.runc.v1.CheckpointOptions)."""
        request = task_v3_pb2.CheckpointTaskRequest(id=id, path=path, options=options)
        await self._call("Checkpoint", request, empty_pb2.Empty, timeout=timeout)

    async def connect(self, id: str, *, timeout: float = QUERY_TIMEOUT) -> Connected:
        """The shim's pid and the task's; the task need not exist."""
        request = task_v3_pb2.ConnectRequest(id=id)
        response = await self._call(
            "Connect", request, task_v3_pb2.ConnectResponse, timeout=timeout
        )
        return Connected(response.shim_pid, response.task_pid, response.version)

    async def shutdown(
        self,
        id: str,
        *,
        now: bool = False,
        timeout: float = SHUTDOWN_TIMEOUT,
    ) -> None:
        """Asks the shim to end; it doesn't while it has tasks. It may go before its answer does."""
        request = task_v3_pb2.ShutdownRequest(id=id, now=now)
        async with step("shim.shutdown"):
            with contextlib.suppress(errors.Unavailable):
                await self._call("Shutdown", request, empty_pb2.Empty, timeout=timeout)


def nanoseconds(timestamp: Timestamp) -> int:
    """Since 1970; 0 for Go's zero time, which lies in the year 1, and for a missing one."""
    return max(0, timestamp.seconds * 1_000_000_000 + timestamp.nanos)


def _check_stdio(terminal: bool, stdin: str, stdout: str, stderr: str) -> None:
    """Refuses what runc's shim trips over: seen with 1.6.20 and 2.4.2, a `file://` stdout without
    a stderr makes it panic, with all its containers; a FIFO alone makes the create fail.
    """
    if terminal or not (stdin or stdout or stderr) or stdout.startswith("binary"):
        return
    if not (stdout and stderr):
        raise errors.InvalidArgument(
            f"stdio without a terminal: stdout {stdout!r} and stderr {stderr!r} go together"
        )


def _oci(kind: str, document: Mapping[str, Any]) -> any_pb2.Any:
    return any_pb2.Any(type_url=_SPEC_URL + kind, value=msgspec.json.encode(document))
