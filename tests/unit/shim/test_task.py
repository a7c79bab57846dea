"""Requests as a shim gets them, answers as we hand them on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import any_pb2, empty_pb2
from opentelemetry.sdk.trace import TracerProvider

from zos_cri import errors
from zos_cri._pb import task_types_pb2, task_v3_pb2
from zos_cri.linux.mount import Mount
from zos_cri.shim import task as task_module
from zos_cri.shim.task import Connected, Exit, TaskClient, TaskState, TaskStatus, nanoseconds
from zos_cri.tracing import Tracer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.message import Message

V2, V3 = "containerd.task.v2.Task", "containerd.task.v3.Task"


class FakeCaller:
    """Answers by method, notes calls, knows some services only."""

    def __init__(self, *services: str) -> None:
        self.services = services or (V2, V3)
        self.answers: dict[str, Message | bytes] = {}
        self.calls: list[tuple[str, str, bytes, float | None, Mapping[str, str]]] = []

    async def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        timeout: float | None,
        metadata: Mapping[str, str],
    ) -> bytes:
        self.calls.append((service, method, payload, timeout, metadata))
        if service not in self.services:
            raise errors.Unimplemented(service)
        answer = self.answers.get(method, empty_pb2.Empty())
        return answer if isinstance(answer, bytes) else answer.SerializeToString()


@pytest.fixture
def caller() -> FakeCaller:
    return FakeCaller()


@pytest.fixture
def client(caller: FakeCaller) -> TaskClient:
    return TaskClient(caller, version=3, namespace="zos")


def sent(caller: FakeCaller, kind: type[Message]) -> Any:
    """The last request."""
    return kind.FromString(caller.calls[-1][2])


async def test_the_namespace_goes_with_every_call(caller: FakeCaller, client: TaskClient) -> None:
    await client.pause("c")
    service, method, _, timeout, metadata = caller.calls[0]
    assert (service, method, timeout) == (V3, "Pause", task_module.UPDATE_TIMEOUT)
    assert metadata == {"containerd-namespace-ttrpc": "zos"}


async def test_version_two_has_another_service(caller: FakeCaller) -> None:
    await TaskClient(caller, version=2, namespace="zos").resume("c", timeout=7)
    assert caller.calls[0][:2] == (V2, "Resume")
    assert caller.calls[0][3] == 7


async def test_version_three_that_is_not_there_becomes_two() -> None:
    caller = FakeCaller(V2)
    client = TaskClient(caller, version=3, namespace="zos")
    for _ in range(2):
        await client.pause("c")
    assert [call[0] for call in caller.calls] == [V3, V2, V2]
    assert client.version == 2


async def test_a_method_that_neither_has_changes_nothing() -> None:
    caller = FakeCaller("another")
    client = TaskClient(caller, version=3, namespace="zos")
    with pytest.raises(errors.Unimplemented):
        await client.pause("c")
    assert client.version == 3
    with pytest.raises(errors.Unimplemented):
        await TaskClient(caller, version=2, namespace="zos").pause("c")


def test_other_versions_are_not_spoken(caller: FakeCaller) -> None:
    with pytest.raises(errors.Unimplemented, match="version 4"):
        TaskClient(caller, version=4, namespace="zos")


async def test_an_answer_that_cannot_be_parsed(caller: FakeCaller, client: TaskClient) -> None:
    caller.answers["State"] = b"\xff"
    with pytest.raises(errors.Internal, match="State: the answer isn't a StateResponse"):
        await client.state("c")


async def test_create(caller: FakeCaller, client: TaskClient) -> None:
    caller.answers["Create"] = task_v3_pb2.CreateTaskResponse(pid=42)
    options = any_pb2.Any(type_url="o")
    pid = await client.create(
        "c",
        "/b/c",
        [Mount(type="overlay", source="overlay", options=("lowerdir=/l", "ro"))],
        stdin="/in",
        stdout="/out",
        stderr="/err",
        options=options,
        checkpoint="/cp",
    )
    assert pid == 42
    request = sent(caller, task_v3_pb2.CreateTaskRequest)
    assert (request.id, request.bundle, request.terminal) == ("c", "/b/c", False)
    assert (request.stdin, request.stdout, request.stderr) == ("/in", "/out", "/err")
    assert (request.options, request.checkpoint) == (options, "/cp")
    (mount,) = request.rootfs
    assert (mount.type, mount.source, list(mount.options)) == (
        "overlay",
        "overlay",
        ["lowerdir=/l", "ro"],
    )


@pytest.mark.parametrize(
    "stdio", [{"stdout": "file:///l"}, {"stderr": "/f"}, {"stdin": "/f"}, {"stdout": "/f"}]
)
async def test_stdio_that_shims_trip_over_is_refused(
    caller: FakeCaller, client: TaskClient, stdio: dict[str, str]
) -> None:
    with pytest.raises(errors.InvalidArgument, match="go together"):
        await client.create("c", "/b/c", [], **stdio)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidArgument):
        await client.exec("c", "e", {}, **stdio)  # type: ignore[arg-type]
    assert caller.calls == []


@pytest.mark.parametrize(
    "stdio",
    [
        {},
        {"stdout": "binary:///logger"},
        {"stdout": "/f", "terminal": True},
        {"stdout": "file:///l", "stderr": "file:///l"},
    ],
)
async def test_stdio_that_is_well(client: TaskClient, stdio: dict[str, Any]) -> None:
    await client.create("c", "/b/c", [], **stdio)


async def test_start_and_state(caller: FakeCaller, client: TaskClient) -> None:
    caller.answers["Start"] = task_v3_pb2.StartResponse(pid=5)
    assert await client.start("c", "e") == 5
    assert sent(caller, task_v3_pb2.StartRequest) == task_v3_pb2.StartRequest(id="c", exec_id="e")
    response = task_v3_pb2.StateResponse(
        id="e", bundle="/b", pid=5, status=task_types_pb2.STOPPED, stdout="/o", exit_status=3
    )
    response.exited_at.FromNanoseconds(1_500_000_000)
    caller.answers["State"] = response
    assert await client.state("c", "e") == TaskState(
        "c", "e", 5, TaskStatus.STOPPED, 3, 1_500_000_000, bundle="/b", stdout="/o"
    )


@pytest.mark.parametrize("status", TaskStatus)
async def test_statuses(caller: FakeCaller, client: TaskClient, status: TaskStatus) -> None:
    number = task_types_pb2.Status.Value(status.name)
    caller.answers["State"] = task_v3_pb2.StateResponse(status=number)
    assert (await client.state("c")).status is status


async def test_an_unknown_status(caller: FakeCaller, client: TaskClient) -> None:
    caller.answers["State"] = b"\x20\x63"  # field 4, 99
    assert (await client.state("c")).status is TaskStatus.UNKNOWN


async def test_wait_has_no_deadline_and_delete_has(caller: FakeCaller, client: TaskClient) -> None:
    answer = task_v3_pb2.WaitResponse(exit_status=137)
    answer.exited_at.FromNanoseconds(9)
    caller.answers["Wait"] = answer
    assert await client.wait("c") == Exit(137, 9)
    assert caller.calls[-1][3] is None
    deleted = task_v3_pb2.DeleteResponse(exit_status=1, pid=4)
    deleted.exited_at.FromNanoseconds(8)
    caller.answers["Delete"] = deleted
    assert await client.delete("c", "e") == Exit(1, 8, 4)
    assert caller.calls[-1][3] == task_module.DELETE_TIMEOUT


async def test_exec_carries_its_process_as_json(caller: FakeCaller, client: TaskClient) -> None:
    await client.exec("c", "e", {"args": ["a"]}, terminal=True, stdin="/i", stdout="/o")
    request = sent(caller, task_v3_pb2.ExecProcessRequest)
    assert (request.id, request.exec_id, request.terminal) == ("c", "e", True)
    assert request.spec.type_url == "types.containerd.io/opencontainers/runtime-spec/1/Process"
    assert json.loads(request.spec.value) == {"args": ["a"]}


async def test_update_carries_its_resources_as_json(caller: FakeCaller, client: TaskClient) -> None:
    await client.update("c", {"cpu": {"shares": 2}}, {"a": "b"})
    request = sent(caller, task_v3_pb2.UpdateTaskRequest)
    assert request.resources.type_url.endswith("runtime-spec/1/LinuxResources")
    assert json.loads(request.resources.value) == {"cpu": {"shares": 2}}
    assert dict(request.annotations) == {"a": "b"}


async def test_the_rest(caller: FakeCaller, client: TaskClient) -> None:
    await client.kill("c", 15, "e", all=True)
    assert sent(caller, task_v3_pb2.KillRequest) == task_v3_pb2.KillRequest(
        id="c", exec_id="e", signal=15, all=True
    )
    await client.close_io("c", "e")
    assert sent(caller, task_v3_pb2.CloseIORequest).stdin
    await client.resize_pty("c", width=80, height=24)
    assert sent(caller, task_v3_pb2.ResizePtyRequest).width == 80
    await client.checkpoint("c", "/p", any_pb2.Any(type_url="o"))
    assert sent(caller, task_v3_pb2.CheckpointTaskRequest).path == "/p"
    await client.shutdown("c", now=True)
    assert sent(caller, task_v3_pb2.ShutdownRequest).now
    caller.answers["Connect"] = task_v3_pb2.ConnectResponse(shim_pid=1, task_pid=2, version="v")
    assert await client.connect("c") == Connected(1, 2, "v")
    processes = [task_types_pb2.ProcessInfo(pid=7), task_types_pb2.ProcessInfo(pid=8)]
    caller.answers["Pids"] = task_v3_pb2.PidsResponse(processes=processes)
    assert await client.pids("c") == [7, 8]
    caller.answers["Stats"] = task_v3_pb2.StatsResponse(stats=any_pb2.Any(type_url="m"))
    assert (await client.stats("c")).type_url == "m"


def test_go_s_zero_time_is_none() -> None:
    response = task_v3_pb2.WaitResponse()
    assert nanoseconds(response.exited_at) == 0
    response.exited_at.seconds = -62135596800
    assert nanoseconds(response.exited_at) == 0


async def test_a_call_carries_the_trace_that_it_is_made_in(
    client: TaskClient, caller: FakeCaller
) -> None:
    with Tracer(TracerProvider()).stage("start_container", "start") as span:
        await client.kill("c", signal=9)
    exemplar = span.exemplar()
    assert exemplar is not None
    carried = caller.calls[-1][4]
    assert carried["containerd-namespace-ttrpc"] == "zos"
    assert carried["traceparent"].split("-")[1:3] == [exemplar["trace_id"], exemplar["span_id"]]
    await client.kill("c", signal=9)
    assert caller.calls[-1][4] == {"containerd-namespace-ttrpc": "zos"}
