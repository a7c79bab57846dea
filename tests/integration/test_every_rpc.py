"""Every RPC of CRI's two services, called on a real server: none is UNIMPLEMENTED."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.integration.server import IMAGE, UPSTREAM, Server, serving
from zos_cri._pb import cri_pb2 as pb
from zos_cri._pb import cri_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go]

METHODS = [
    (service.name, method.name, method.server_streaming)
    for service in pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
FIRST_ANSWER = 1.0  # seconds after which a stream without end has been heard
CALL = 30.0


@pytest.fixture(scope="module")
def one() -> Iterator[Server]:
    with serving(UPSTREAM) as server:
        yield server


@pytest.fixture
def stubs(one: Server) -> Iterator[dict[str, Any]]:
    with one.channel() as channel:
        yield {
            "RuntimeService": cri_pb2_grpc.RuntimeServiceStub(channel),
            "ImageService": cri_pb2_grpc.ImageServiceStub(channel),
        }


def request_of(service: str, method: str) -> Any:
    descriptor = pb.DESCRIPTOR.services_by_name[service].methods_by_name[method].input_type
    return getattr(pb, descriptor.name)


@pytest.mark.parametrize(("service", "method", "streams"), METHODS, ids=str)
def test_a_call_with_nothing_in_it_has_an_answer(
    stubs: dict[str, Any], service: str, method: str, streams: bool
) -> None:
    """Success or one clear line: never UNIMPLEMENTED, UNKNOWN or INTERNAL."""
    call = getattr(stubs[service], method)
    request = request_of(service, method)()
    endless = method == "GetContainerEvents"
    code, details = "OK", ""
    try:
        if streams:
            list(call(request, timeout=FIRST_ANSWER if endless else CALL))
        else:
            call(request, timeout=CALL)
    except grpc.RpcError as error:
        code, details = error.code().name, error.details() or ""
    allowed = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"}
    assert code in ({"DEADLINE_EXCEEDED"} if endless else allowed), details
    assert "\n" not in details


def test_the_whole_life_of_a_pod(one: Server, stubs: dict[str, Any], tmp_path: Path) -> None:
    """Every RPC once, in the order of a pod's life, with requests that are to succeed."""
    called: set[str] = set()

    def call(service: str, method: str, **fields: Any) -> Any:
        called.add(method)
        return getattr(stubs[service], method)(request_of(service, method)(**fields), timeout=CALL)

    def runtime(method: str, **fields: Any) -> Any:
        return call("RuntimeService", method, **fields)

    def image(method: str, **fields: Any) -> Any:
        return call("ImageService", method, **fields)

    events = runtime("GetContainerEvents")
    events.initial_metadata()  # it is subscribed
    for method in ("Version", "Status", "RuntimeConfig", "UpdateRuntimeConfig"):
        runtime(method)
    spec = pb.ImageSpec(image=IMAGE)
    assert image("ImageStatus", image=spec).image.id
    assert image("ListImages").images
    assert list(image("StreamImages"))
    image("ImageFsInfo")
    assert image("PullImage", image=spec).image_ref

    pod = runtime("RunPodSandbox", config=one.pod()).pod_sandbox_id
    created = runtime("CreateContainer", pod_sandbox_id=pod, config=one.container())
    container = created.container_id
    runtime("StartContainer", container_id=container)
    status = runtime("PodSandboxStatus", pod_sandbox_id=pod)
    assert [s.id for s in status.containers_statuses] == [container]
    assert status.timestamp > 0
    runtime("ContainerStatus", container_id=container)
    done = runtime("ExecSync", container_id=container, cmd=["echo", "x"], timeout=10)
    assert done.stdout == b"x\n"
    exec_ = runtime("Exec", container_id=container, cmd=["true"], stdout=True)
    attach = runtime("Attach", container_id=container, stdout=True)
    forward = runtime("PortForward", pod_sandbox_id=pod)
    assert all(answer.url.startswith("http://") for answer in (exec_, attach, forward))
    runtime("ReopenContainerLog", container_id=container)
    limits = pb.LinuxContainerResources(cpu_shares=128)
    runtime("UpdateContainerResources", container_id=container, linux=limits)
    runtime("UpdatePodSandboxResources", pod_sandbox_id=pod, resources=limits)
    info = json.loads(runtime("PodSandboxStatus", pod_sandbox_id=pod, verbose=True).info["info"])
    assert info["config"]["linux"]["resources"] == {"cpu_shares": "128"}
    assert runtime("ListPodSandbox").items
    assert runtime("ListContainers").containers
    assert runtime("ContainerStats", container_id=container).stats.attributes.id == container
    assert runtime("PodSandboxStats", pod_sandbox_id=pod).stats.attributes.id == pod
    for method in ("ListContainerStats", "ListPodSandboxStats", "ListPodSandboxMetrics"):
        runtime(method)
    for method in (
        *("StreamPodSandboxes", "StreamContainers", "StreamContainerStats"),
        *("StreamPodSandboxStats",),
    ):
        assert list(runtime(method)), method
    list(runtime("StreamPodSandboxMetrics"))
    assert runtime("ListMetricDescriptors").descriptors
    runtime("StopContainer", container_id=container, timeout=0)
    runtime("RemoveContainer", container_id=container)
    runtime("StopPodSandbox", pod_sandbox_id=pod)
    runtime("RemovePodSandbox", pod_sandbox_id=pod)
    told = [
        (e.container_id, e.container_event_type) for _, e in zip(range(8), events, strict=False)
    ]
    events.cancel()
    assert told == [(pod, 0), (pod, 1), *((container, n) for n in range(4)), (pod, 2), (pod, 3)]
    image("RemoveImage", image=pb.ImageSpec(image="no-such-image"))
    # CheckpointContainer, CheckpointPod and RestorePod: test_checkpoint.py
    assert {name for _, name, _ in METHODS} - called == {
        "CheckpointContainer",
        "CheckpointPod",
        "RestorePod",
    }
