"""Starts, and every other call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.integration.bad_input.rows import (
    INVALID,
    NOT_FOUND,
    PRECONDITION,
    Row,
    ids,
    new_name,
    refused,
)
from zos_cri._pb import cri_pb2 as pb
from zos_cri._pb import cri_pb2_grpc

if TYPE_CHECKING:
    from tests.integration.server import Server

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go]

# Starts: what only the runtime finds out

STARTS: list[Row] = [
    ("no such command", {"command": ["/absent"]}, grpc.StatusCode.UNKNOWN, "/absent"),
    ("a directory", {"command": ["/etc"]}, grpc.StatusCode.UNKNOWN, "/etc"),
    ("working directory", {"working_dir": "/etc/passwd/x"}, grpc.StatusCode.UNKNOWN, "/etc/passwd"),
]


@pytest.mark.parametrize("row", STARTS, ids=ids(STARTS))
def test_starts(node: Server, cri: Any, pod: str, row: Row) -> None:
    """The container is there afterwards, ended, with the message in its status."""
    _, fields, _, says = row
    command = fields.get("command", ("sleep", "1"))
    given = {key: value for key, value in fields.items() if key != "command"}
    config = node.container(*command, name=new_name(), **given)
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    id_ = cri.CreateContainer(request).container_id
    with pytest.raises(grpc.RpcError) as error:
        cri.StartContainer(pb.StartContainerRequest(container_id=id_))
    text = str(error.value.details())
    assert says in text
    assert "\n" not in text
    status = cri.ContainerStatus(pb.ContainerStatusRequest(container_id=id_)).status
    assert (status.exit_code, status.reason) == (128, "StartError")
    assert says in status.message
    cri.RemoveContainer(pb.RemoveContainerRequest(container_id=id_))


# Everything else

NOBODY = "f" * 64
UPDATE = pb.LinuxContainerResources

CALLS: list[Row] = [
    ("StartContainer", pb.StartContainerRequest(container_id=NOBODY), NOT_FOUND, "no container"),
    ("StartContainer", pb.StartContainerRequest(), NOT_FOUND, "no container"),
    ("StopContainer", pb.StopContainerRequest(container_id="{id}", timeout=-1), INVALID, "timeout"),
    ("ContainerStatus", pb.ContainerStatusRequest(container_id=NOBODY), NOT_FOUND, "no container"),
    ("ContainerStatus", pb.ContainerStatusRequest(), NOT_FOUND, "no container"),
    (
        "PodSandboxStatus",
        pb.PodSandboxStatusRequest(pod_sandbox_id=NOBODY),
        NOT_FOUND,
        "no sandbox",
    ),
    ("ContainerStats", pb.ContainerStatsRequest(container_id=NOBODY), NOT_FOUND, "no container"),
    ("PodSandboxStats", pb.PodSandboxStatsRequest(pod_sandbox_id=NOBODY), NOT_FOUND, "sandbox"),
    (
        "ReopenContainerLog",
        pb.ReopenContainerLogRequest(container_id=NOBODY),
        NOT_FOUND,
        "no container",
    ),
    ("ExecSync", pb.ExecSyncRequest(container_id=NOBODY, cmd=["x"]), NOT_FOUND, "no container"),
    ("ExecSync", pb.ExecSyncRequest(container_id="{id}"), INVALID, "cmd: is empty"),
    (
        "ExecSync",
        pb.ExecSyncRequest(container_id="{id}", cmd=["x"], timeout=-1),
        INVALID,
        "timeout",
    ),
    ("ExecSync", pb.ExecSyncRequest(container_id="{id}", cmd=["a\0"]), INVALID, "cmd"),
    ("Exec", pb.ExecRequest(container_id="{id}", cmd=["x"]), INVALID, "stdin, stdout, stderr"),
    ("Exec", pb.ExecRequest(container_id="{id}", stdout=True), INVALID, "cmd: is empty"),
    (
        "Exec",
        pb.ExecRequest(container_id="{id}", cmd=["x"], tty=True, stdout=True, stderr=True),
        INVALID,
        "stderr",
    ),
    (
        "Exec",
        pb.ExecRequest(container_id=NOBODY, cmd=["x"], stdout=True),
        NOT_FOUND,
        "no container",
    ),
    ("Attach", pb.AttachRequest(container_id="{id}"), INVALID, "stdin, stdout, stderr"),
    ("Attach", pb.AttachRequest(container_id=NOBODY, stdout=True), NOT_FOUND, "no container"),
    ("PortForward", pb.PortForwardRequest(pod_sandbox_id=NOBODY), NOT_FOUND, "no sandbox"),
    (
        "PortForward",
        pb.PortForwardRequest(pod_sandbox_id="{pod}", port=[70_000]),
        INVALID,
        "port",
    ),
    (
        "UpdateContainerResources",
        pb.UpdateContainerResourcesRequest(container_id=NOBODY),
        NOT_FOUND,
        "no container",
    ),
    (
        "UpdateContainerResources",
        pb.UpdateContainerResourcesRequest(container_id="{id}", linux=UPDATE(cpu_shares=1)),
        INVALID,
        "linux.cpu_shares",
    ),
    (
        "UpdateContainerResources",
        pb.UpdateContainerResourcesRequest(container_id="{id}", linux=UPDATE(oom_score_adj=9999)),
        INVALID,
        "linux.oom_score_adj",
    ),
    (
        "UpdateContainerResources",
        pb.UpdateContainerResourcesRequest(container_id="{id}", linux=UPDATE(cpuset_cpus="x")),
        INVALID,
        "linux.cpuset_cpus",
    ),
    (
        "UpdateRuntimeConfig",
        pb.UpdateRuntimeConfigRequest(
            runtime_config=pb.RuntimeConfig(network_config=pb.NetworkConfig(pod_cidr="10.0.0.0/99"))
        ),
        INVALID,
        "pod_cidr",
    ),
]
IMAGES: list[Row] = [
    ("PullImage", pb.PullImageRequest(), INVALID, "image.image: is empty"),
    (
        "PullImage",
        pb.PullImageRequest(image=pb.ImageSpec(image="UP PER")),
        INVALID,
        "UP PER",
    ),
    (
        "PullImage",
        pb.PullImageRequest(
            image=pb.ImageSpec(image="127.0.0.1:9/x"), auth=pb.AuthConfig(auth="!")
        ),
        INVALID,
        "auth",
    ),
    ("ImageStatus", pb.ImageStatusRequest(), INVALID, "image.image: is empty"),
    ("RemoveImage", pb.RemoveImageRequest(), INVALID, "image.image: is empty"),
]


@pytest.mark.parametrize("row", CALLS, ids=[f"{row[0]} {row[3]}" for row in CALLS])
def test_calls(cri: Any, pod: str, running: str, row: Row) -> None:
    method, template, code, says = row
    request = type(template)()
    request.CopyFrom(template)
    for field, value in (("container_id", running), ("pod_sandbox_id", pod)):
        if getattr(request, field, "") in ("{id}", "{pod}"):
            setattr(request, field, value)
    refused(getattr(cri, method), request, code, says)


@pytest.mark.parametrize("row", IMAGES, ids=[f"{row[0]} {row[3]}" for row in IMAGES])
def test_images(node: Server, row: Row) -> None:
    method, request, code, says = row
    with node.channel() as channel:
        stub = cri_pb2_grpc.ImageServiceStub(channel)
        refused(getattr(stub, method), request, code, says)


def test_a_running_container_is_not_started_again(cri: Any, running: str) -> None:
    request = pb.StartContainerRequest(container_id=running)
    refused(cri.StartContainer, request, PRECONDITION, f"container {running}")
