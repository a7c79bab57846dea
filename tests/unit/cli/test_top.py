from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from zos_cri._pb import container_pb2, container_pb2_grpc, cri_pb2, cri_pb2_grpc
from zos_cri.cli import top
from zos_cri.cli.main import main


class FakeRuntime(cri_pb2_grpc.RuntimeServiceServicer):
    """A pod whose container has used a second of CPU more at each reading, half a second apart."""

    def __init__(self):
        self.readings = 0

    def ListPodSandboxStats(self, request, context):  # noqa: N802
        self.readings += 1
        cpu = cri_pb2.CpuUsage(
            timestamp=self.readings * 500_000_000,
            usage_core_nano_seconds=cri_pb2.UInt64Value(value=self.readings * 10**9),
            usage_nano_cores=cri_pb2.UInt64Value(value=123_000_000),
        )
        container = cri_pb2.ContainerStats(
            attributes=cri_pb2.ContainerAttributes(
                id="c1", metadata=cri_pb2.ContainerMetadata(name="main")
            ),
            cpu=cpu,
            memory=cri_pb2.MemoryUsage(working_set_bytes=cri_pb2.UInt64Value(value=3 << 20)),
            writable_layer=cri_pb2.FilesystemUsage(used_bytes=cri_pb2.UInt64Value(value=1 << 19)),
        )
        pod = cri_pb2.PodSandboxStats(
            attributes=cri_pb2.PodSandboxAttributes(
                id="p1", metadata=cri_pb2.PodSandboxMetadata(name="web", namespace="shop")
            ),
            linux=cri_pb2.LinuxPodSandboxStats(containers=[container]),
        )
        return cri_pb2.ListPodSandboxStatsResponse(stats=[pod])


class FakeModule(container_pb2_grpc.ContainerModuleServicer):
    """Three containers: one runs, one has exited, one ends while it is read."""

    def ListNamespaces(self, request, context):  # noqa: N802
        return container_pb2.ListNamespacesResponse(namespaces=["tenant"])

    def List(self, request, context):  # noqa: N802
        states = {"m1": "RUNNING", "m2": "EXITED", "m3": "RUNNING"}
        return container_pb2.ListResponse(
            containers=[
                container_pb2.InspectResponse(
                    ns=request.ns,
                    container=container_pb2.Container(id=id_, name=f"name-{id_}"),
                    status=container_pb2.Status(state=container_pb2.State.Value(state)),
                )
                for id_, state in states.items()
            ]
        )

    def Stats(self, request, context):  # noqa: N802
        if request.id == "m3":
            context.abort(grpc.StatusCode.NOT_FOUND, "it is gone")
        assert request.id == "m1"
        return container_pb2.StatsResponse(timestamp=7, cpu=5, memory=9 << 20)


@pytest.fixture
def socket(tmp_path):
    server = grpc.server(ThreadPoolExecutor(2))
    cri_pb2_grpc.add_RuntimeServiceServicer_to_server(FakeRuntime(), server)
    container_pb2_grpc.add_ContainerModuleServicer_to_server(FakeModule(), server)
    path = str(tmp_path / "sock")
    server.add_insecure_port(f"unix:{path}")
    server.start()
    yield path
    server.stop(0).wait()


def once(socket, *arguments):
    return main(["top", "--socket", socket, "--once", "--interval", "0", *arguments])


def test_a_table_of_all_that_run_the_busiest_first(socket, capsys):
    assert once(socket) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["NAMESPACE", "POD", "CONTAINER"]
    assert first.split() == ["shop", "web", "main", "2.000", "3.0", "0.5"]
    assert second.split() == ["tenant", "-", "name-m1", "0.000", "9.0", "0.0"]


def test_the_order(socket, capsys):
    assert once(socket, "--sort", "memory") == 0
    assert "name-m1" in capsys.readouterr().out.splitlines()[1]


def test_json(socket, capsys):
    assert once(socket, "-o", "json", "--sort", "name") == 0
    [first, second] = json.loads(capsys.readouterr().out)
    assert (first["pod"], first["cores"], first["memory"]) == ("web", 2.0, 3 << 20)
    assert (second["namespace"], second["id"]) == ("tenant", "m1")


def reading(id_, time, cpu, cores=0.25):
    return top.Reading(id_, "ns", "pod", "c", time, cpu, cores, 0, 0)


def test_rates():
    before = [reading("same", 100, 50), reading("moved", 100, 50), reading("back", 100, 50)]
    now = [reading("same", 100, 50), reading("moved", 200, 100), reading("back", 200, 10)]
    now.append(reading("new", 200, 90))
    assert [each.cores for each in top.rates(before, now)] == [0.25, 0.5, 0.0, 0.25]


def test_no_server(tmp_path, capsys):
    assert once(str(tmp_path / "none")) == 8
    assert "no server answers" in capsys.readouterr().err
