"""The Stream* RPCs against their List twins, on a server with more than fits in one message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.server import UPSTREAM, Server, serving
from zos_cri._pb import cri_pb2 as pb
from zos_cri._pb import cri_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go]

LARGE = {"large": "x" * 200_000}  # Kubernetes allows 256 KiB of annotations


@pytest.fixture(scope="module")
def crowded() -> Iterator[Server]:
    """Six pods; one has seven containers, of which one runs."""
    with serving(UPSTREAM) as server, server.cri() as cri:
        pods = [
            server.run_pod(cri, f"p{n}", labels={"n": str(n)}, annotations=LARGE) for n in range(6)
        ]
        for n in range(7):
            config = server.container(name=f"c{n}", labels={"n": str(n)}, annotations=LARGE)
            cri.CreateContainer(pb.CreateContainerRequest(pod_sandbox_id=pods[0], config=config))
        first = cri.ListContainers(pb.ListContainersRequest()).containers[0]
        cri.StartContainer(pb.StartContainerRequest(container_id=first.id))
        yield server


@pytest.fixture
def stubs(crowded: Server) -> Iterator[tuple[Any, Any]]:
    with crowded.channel() as channel:
        yield cri_pb2_grpc.RuntimeServiceStub(channel), cri_pb2_grpc.ImageServiceStub(channel)


def parts(stream: Any) -> list[Any]:
    """The answers; each has something in it and is under 1 MiB."""
    answers = list(stream)
    for answer in answers:
        assert answer.ByteSize() < 1 << 20
        assert len(answer.ListFields()[0][1]) > 0
    return answers


def test_pods(stubs: tuple[Any, Any]) -> None:
    cri, _ = stubs
    listed = cri.ListPodSandbox(pb.ListPodSandboxRequest()).items
    answers = parts(cri.StreamPodSandboxes(pb.StreamPodSandboxesRequest()))
    assert len(answers) > 1
    assert [pod for answer in answers for pod in answer.pod_sandboxes] == list(listed)


def test_containers(stubs: tuple[Any, Any]) -> None:
    cri, _ = stubs
    listed = cri.ListContainers(pb.ListContainersRequest()).containers
    answers = parts(cri.StreamContainers(pb.StreamContainersRequest()))
    assert len(answers) > 1
    assert [c for answer in answers for c in answer.containers] == list(listed)


@pytest.mark.parametrize("label", ["3", "nothing has this"])
def test_filters(stubs: tuple[Any, Any], label: str) -> None:
    cri, _ = stubs
    selector = {"n": label}
    count = int(label == "3")
    containers = cri.StreamContainers(
        pb.StreamContainersRequest(filter=pb.ContainerFilter(label_selector=selector))
    )
    assert [len(answer.containers) for answer in containers] == [1] * count
    pods = cri.StreamPodSandboxes(
        pb.StreamPodSandboxesRequest(filter=pb.PodSandboxFilter(label_selector=selector))
    )
    assert [len(answer.pod_sandboxes) for answer in pods] == [1] * count
    stats = cri.StreamPodSandboxStats(
        pb.StreamPodSandboxStatsRequest(filter=pb.PodSandboxStatsFilter(label_selector=selector))
    )
    assert [len(answer.pod_sandbox_stats) for answer in stats] == [1] * count
    running = cri.StreamContainerStats(
        pb.StreamContainerStatsRequest(filter=pb.ContainerStatsFilter(label_selector=selector))
    )
    assert list(running) == []  # neither runs


def test_stats(stubs: tuple[Any, Any]) -> None:
    cri, _ = stubs
    listed = cri.ListContainerStats(pb.ListContainerStatsRequest()).stats
    streamed = parts(cri.StreamContainerStats(pb.StreamContainerStatsRequest()))
    assert [s.attributes for a in streamed for s in a.container_stats] == [
        s.attributes for s in listed
    ]
    assert streamed[0].container_stats[0].memory.working_set_bytes.value > 0

    pods = cri.ListPodSandboxStats(pb.ListPodSandboxStatsRequest()).stats
    answers = parts(cri.StreamPodSandboxStats(pb.StreamPodSandboxStatsRequest()))
    assert len(answers) > 1
    assert [p.attributes for a in answers for p in a.pod_sandbox_stats] == [
        p.attributes for p in pods
    ]


def test_metrics(stubs: tuple[Any, Any]) -> None:
    cri, _ = stubs
    listed = cri.ListPodSandboxMetrics(pb.ListPodSandboxMetricsRequest()).pod_metrics
    answers = parts(cri.StreamPodSandboxMetrics(pb.StreamPodSandboxMetricsRequest()))
    streamed = [pod for answer in answers for pod in answer.pod_sandbox_metrics]
    assert [pod.pod_sandbox_id for pod in streamed] == [pod.pod_sandbox_id for pod in listed]
    assert len(streamed) == 6


def test_images(stubs: tuple[Any, Any]) -> None:
    _, images = stubs
    listed = images.ListImages(pb.ListImagesRequest()).images
    answers = parts(images.StreamImages(pb.StreamImagesRequest()))
    assert [image for answer in answers for image in answer.images] == list(listed)
    assert len(listed) == 1
    none = pb.ImageFilter(image=pb.ImageSpec(image="no-such-image"))
    assert list(images.StreamImages(pb.StreamImagesRequest(filter=none))) == []
