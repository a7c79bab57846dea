from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha import reflection_pb2

from zos_cri._pb import cri_pb2
from zos_cri.app.grpc_services import Health, reflection_handlers
from zos_cri.errors import NotFound

CRI = tuple(cri_pb2.DESCRIPTOR.services_by_name.values())
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN


@pytest.fixture
def recovered():
    return asyncio.Event()


@pytest.fixture
def health(recovered):
    return Health(recovered, ["a.Service"])


@pytest.mark.parametrize("name", ["", "a.Service"])
async def test_serving_is_from_the_recovery_to_the_stop(health, recovered, name):
    request = HealthCheckRequest(service=name)
    statuses = [(await health.check(request)).status]
    recovered.set()
    statuses.append((await health.check(request)).status)
    health.close()
    statuses.append((await health.check(request)).status)
    assert statuses == [NOT_SERVING, SERVING, NOT_SERVING]


async def test_an_unknown_service_is_not_found(health):
    with pytest.raises(NotFound, match='no service "b"'):
        await health.check(HealthCheckRequest(service="b"))
    watched = health.watch(HealthCheckRequest(service="b"))
    assert (await anext(watched)).status == SERVICE_UNKNOWN
    health.close()
    assert [answer async for answer in watched] == []


@pytest.mark.parametrize("ready", [False, True])
async def test_who_watches_hears_of_each_change(health, recovered, ready):
    if ready:
        recovered.set()
    watched = health.watch(HealthCheckRequest())
    told = [(await anext(watched)).status]
    if not ready:
        waiting = asyncio.ensure_future(anext(watched))
        await asyncio.sleep(0)
        recovered.set()
        told.append((await waiting).status)
    waiting = asyncio.ensure_future(anext(watched))
    await asyncio.sleep(0)
    health.close()
    told.append((await waiting).status)
    assert [answer async for answer in watched] == []
    assert told == ([] if ready else [NOT_SERVING]) + [SERVING, NOT_SERVING]


async def test_a_server_that_stops_while_it_recovers(health):
    watched = health.watch(HealthCheckRequest())
    assert (await anext(watched)).status == NOT_SERVING
    health.close()
    assert {answer.status async for answer in watched} <= {NOT_SERVING}


@pytest.fixture
async def ask():
    """Asks the reflection service, over a socket of its own."""
    services = [service.full_name for service in CRI]
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(reflection_handlers(services))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:

        async def ask_one(version="v1", **fields):
            call = channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )(iter([reflection_pb2.ServerReflectionRequest(**fields)]), timeout=30)
            (answer,) = [answer async for answer in call]
            return answer

        yield ask_one
    await server.stop(0)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_all_services_are_listed(ask, version):
    answer = await ask(version, list_services="")
    assert [service.name for service in answer.list_services_response.service] == [
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "runtime.v1.ImageService",
        "runtime.v1.RuntimeService",
    ]


@pytest.mark.parametrize(
    "symbol", ["runtime.v1.RuntimeService", "runtime.v1.PodSandboxConfig.LabelsEntry"]
)
async def test_a_symbols_file(ask, symbol):
    answer = await ask(file_containing_symbol=symbol)
    (content,) = answer.file_descriptor_response.file_descriptor_proto
    assert descriptor_pb2.FileDescriptorProto.FromString(content).name == cri_pb2.DESCRIPTOR.name


async def test_what_is_not_there(ask):
    assert (await ask(file_containing_symbol="no.Such")).error_response.error_code == 5
