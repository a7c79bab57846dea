from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from zos_cri._pb import cri_pb2 as pb
from zos_cri._pb import cri_pb2_grpc
from zos_cri.cli.main import main

POD = pb.PodSandboxStatus(metadata=pb.PodSandboxMetadata(name="web", namespace="shop"))


def event(kind, id_="c1" * 32, **fields):
    status = pb.ContainerStatus(
        id="c1" * 32, metadata=pb.ContainerMetadata(name="main"), exit_code=3, reason="Error"
    )
    return pb.ContainerEventResponse(
        container_id=id_,
        container_event_type=getattr(pb, f"CONTAINER_{kind}_EVENT"),
        created_at=1_700_000_000_123_000_000,
        pod_sandbox_status=POD,
        containers_statuses=[status],
        **fields,
    )


class FakeRuntime(cri_pb2_grpc.RuntimeServiceServicer):
    def GetContainerEvents(self, request, context):  # noqa: N802
        yield event("CREATED", id_="p1" * 32)
        yield event("STARTED")
        yield event("STOPPED")
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "7 events were lost")


@pytest.fixture
def call(tmp_path):
    server = grpc.server(ThreadPoolExecutor(2))
    cri_pb2_grpc.add_RuntimeServiceServicer_to_server(FakeRuntime(), server)
    path = str(tmp_path / "sock")
    server.add_insecure_port(f"unix:{path}")
    server.start()
    yield lambda *arguments: main(["events", "--socket", path, *arguments])
    server.stop(0).wait()


def test_a_line_an_event(call, capsys):
    assert call() == 1
    captured = capsys.readouterr()
    pod, started, stopped = captured.out.splitlines()
    assert "created  shop/web  p1p1" in pod
    assert "started  shop/web/main  c1c1" in started
    assert "stopped  shop/web/main  exit code 3, Error  c1c1" in stopped
    assert captured.err == "zos-cri: 7 events were lost\n"


def test_json_of_one_kind(call, capsys):
    assert call("--kind", "stopped", "-o", "json", "--count", "1") == 0
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {
        "time": 1_700_000_000_123_000_000,
        "kind": "stopped",
        "namespace": "shop",
        "pod": "web",
        "container": "main",
        "id": "c1" * 32,
        "exit_code": 3,
        "reason": "Error",
    }


def test_count(call, capsys):
    assert call("--count", "2") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
