"""The kubelet's own client, k8s.io/cri-client, reads our streams of lists and of events."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ROOT, TOOLS
from tests.integration.server import UPSTREAM, Server, serving
from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go]

DEADLINE = 90.0
PODS = 3


@pytest.fixture(scope="module")
def client() -> str:
    """The Go program; built where that hasn't been done, or from other sources."""
    build = [sys.executable, str(ROOT / "hack" / "tools" / "build"), "criclient"]
    subprocess.run(build, check=True, timeout=600, stdout=subprocess.DEVNULL)
    return str(TOOLS / "criclient")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(UPSTREAM) as started:
        yield started


def answer(client: str, server: Server, command: str) -> Any:
    done = subprocess.run(
        [client, command, f"unix://{server.socket}"],
        capture_output=True,
        check=False,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"falling back" not in done.stderr
    return json.loads(done.stdout)


def lists(client: str, server: Server, command: str) -> dict[str, list[str]]:
    return {name: sorted(ids) for name, ids in answer(client, server, command).items()}


def test_the_streams_of_lists_have_what_the_lists_have(client: str, server: Server) -> None:
    with server.cri() as cri:
        pods = sorted(server.run_pod(cri, name=f"pod{n}") for n in range(PODS))
        containers = sorted(server.run_container(cri, pod) for pod in pods)
    streamed = lists(client, server, "lists")
    assert (streamed["pods"], streamed["containers"]) == (pods, containers)
    assert len(streamed["images"]) == 1
    unary = lists(client, server, "unary")
    for name in ("pods", "containers", "images"):
        assert streamed[name] == unary[name]
    # What is sampled comes a second later at most, and then it is all of them.
    for name, ids in (("pod stats", pods), ("pod metrics", pods), ("container stats", containers)):
        assert set(streamed[name]) <= set(unary[name]) <= set(ids)


def test_the_stream_of_events_tells_a_pods_life(client: str, server: Server) -> None:
    reader = subprocess.Popen(
        [client, "events", f"unix://{server.socket}", "8"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert reader.stdout is not None
        assert json.loads(reader.stdout.readline()) == "subscribed"
        with server.cri() as cri:
            pod = server.run_pod(cri)
            container = server.run_container(cri, pod)
            cri.StopContainer(pb.StopContainerRequest(container_id=container, timeout=0))
            cri.RemoveContainer(pb.RemoveContainerRequest(container_id=container))
            cri.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
            cri.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
        out, _ = reader.communicate(timeout=DEADLINE)
    finally:
        reader.kill()
        reader.wait()
    told: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines()]
    kinds = [(e["container"], e["kind"].removeprefix("CONTAINER_").split("_")[0]) for e in told]
    assert kinds == [
        (pod, "CREATED"),
        (pod, "STARTED"),
        *((container, kind) for kind in ("CREATED", "STARTED", "STOPPED", "DELETED")),
        (pod, "STOPPED"),
        (pod, "DELETED"),
    ]
    assert {event["pod"] for event in told} == {pod}
    assert [event["containers"] for event in told[2:6]] == [
        ["CONTAINER_CREATED"],
        ["CONTAINER_RUNNING"],
        ["CONTAINER_EXITED"],
        [],
    ]
    times = [event["time"] for event in told]
    assert times == sorted(set(times))


def test_health_and_reflection_as_go_has_them(client: str, server: Server) -> None:
    told = answer(client, server, "services")
    assert told["status"] == "SERVING"
    assert {"runtime.v1.RuntimeService", "runtime.v1.ImageService"} < set(told["services"])
    assert {"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"} < set(told["services"])
    assert told["messages"] == len(pb.DESCRIPTOR.message_types_by_name)
    assert told["missing"] == 5  # NOT_FOUND
    port = server.metrics_url().removesuffix("/metrics")
    for path in ("healthz", "readyz"):
        with urllib.request.urlopen(f"{port}/{path}", timeout=10) as response:
            assert response.read() == b"ok\n"
