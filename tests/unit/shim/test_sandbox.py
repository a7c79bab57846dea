"""Requests as a shim gets them, answers as we hand them on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import any_pb2

from tests.unit.shim.test_task import FakeCaller
from zos_cri import errors, failpoints
from zos_cri._pb import cri_pb2, sandbox_pb2
from zos_cri.failpoints import Failpoint
from zos_cri.shim import sandbox
from zos_cri.shim.handler import pack
from zos_cri.shim.sandbox import SandboxClient, SandboxState, Started
from zos_cri.shim.task import Exit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message


@pytest.fixture
def caller() -> FakeCaller:
    return FakeCaller(sandbox.SERVICE)


@pytest.fixture
def client(caller: FakeCaller) -> SandboxClient:
    return SandboxClient(caller, namespace="zos")


@pytest.fixture
def armed() -> Iterator[None]:
    yield
    failpoints.arm({})


def sent(caller: FakeCaller, method: str, kind: type[Message]) -> Any:
    """The last request."""
    service, name, payload, _, metadata = caller.calls[-1]
    assert (service, name) == ("containerd.runtime.sandbox.v1.Sandbox", method)
    assert metadata["containerd-namespace-ttrpc"] == "zos"
    return kind.FromString(payload)


async def test_create_tells_all_there_is(caller: FakeCaller, client: SandboxClient) -> None:
    config = cri_pb2.PodSandboxConfig(hostname="h")
    await client.create("s", "/b/s", options=pack(config), netns="/run/net", annotations={"a": "b"})
    request = sent(caller, "CreateSandbox", sandbox_pb2.CreateSandboxRequest)
    assert (request.sandbox_id, request.bundle_path) == ("s", "/b/s")
    assert (request.netns_path, dict(request.annotations)) == ("/run/net", {"a": "b"})
    # As typeurl writes it, and containerd's shims look for it.
    assert request.options.type_url == "runtime.v1.PodSandboxConfig"
    assert cri_pb2.PodSandboxConfig.FromString(request.options.value) == config
    assert not request.rootfs


async def test_start_wait_and_status(caller: FakeCaller, client: SandboxClient) -> None:
    start = sandbox_pb2.StartSandboxResponse(pid=7)
    start.created_at.FromNanoseconds(5)
    wait = sandbox_pb2.WaitSandboxResponse(exit_status=137)
    wait.exited_at.FromNanoseconds(6)
    status = sandbox_pb2.SandboxStatusResponse(pid=7, state="SANDBOX_READY", info={"a": "b"})
    caller.answers = {"StartSandbox": start, "WaitSandbox": wait, "SandboxStatus": status}
    assert await client.start("s") == Started(7, 5)
    assert sent(caller, "StartSandbox", sandbox_pb2.StartSandboxRequest).sandbox_id == "s"
    assert await client.wait("s") == Exit(137, 6)
    assert caller.calls[-1][3] is None  # for as long as it lives
    state = await client.status("s", verbose=True)
    assert state == SandboxState(7, "SANDBOX_READY", {"a": "b"})
    assert state.ready
    assert not SandboxState(7, "SANDBOX_NOTREADY").ready
    assert sent(caller, "SandboxStatus", sandbox_pb2.SandboxStatusRequest).verbose


async def test_the_end(caller: FakeCaller, client: SandboxClient) -> None:
    await client.stop("s", grace=3, timeout=9)
    request = sent(caller, "StopSandbox", sandbox_pb2.StopSandboxRequest)
    assert (request.sandbox_id, request.timeout_secs, caller.calls[-1][3]) == ("s", 3, 9)
    await client.shutdown("s")
    sent(caller, "ShutdownSandbox", sandbox_pb2.ShutdownSandboxRequest)
    await client.ping("s")
    sent(caller, "PingSandbox", sandbox_pb2.PingRequest)
    assert sandbox.STOP_TIMEOUT > sandbox.STOP_GRACE


async def test_metrics(caller: FakeCaller, client: SandboxClient) -> None:
    answer = sandbox_pb2.SandboxMetricsResponse()
    answer.metrics.data.type_url = "io.containerd.cgroups.v2.Metrics"
    caller.answers["SandboxMetrics"] = answer
    assert await client.metrics("s") == any_pb2.Any(type_url="io.containerd.cgroups.v2.Metrics")


async def test_an_answer_that_is_none_is_an_error(
    caller: FakeCaller, client: SandboxClient
) -> None:
    caller.answers["SandboxStatus"] = b"\xff"
    with pytest.raises(errors.Internal, match="SandboxStatus: the answer isn't"):
        await client.status("s")


@pytest.mark.parametrize("call", ["start", "stop", "shutdown"])
async def test_what_changes_something_has_failpoints(
    caller: FakeCaller, client: SandboxClient, call: str, armed: None
) -> None:
    failpoints.arm({f"sandboxer.{call}.before": "error"})
    with pytest.raises(Failpoint):
        await getattr(client, call)("s")
    assert caller.calls == []
