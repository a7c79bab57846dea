from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from tests.fakes.shim import until
from zos_cri import errors
from zos_cri._pb import container_pb2, container_pb2_grpc, cri_pb2, cri_pb2_grpc
from zos_cri.cri.rpc import Rpcs
from zos_cri.log import get_log
from zos_cri.metrics import Metrics

CRI = cri_pb2.DESCRIPTOR.services_by_name["RuntimeService"]
MODULE = container_pb2.DESCRIPTOR.services_by_name["ContainerModule"]


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def recovered():
    event = asyncio.Event()
    event.set()
    return event


@pytest.fixture
def serve(metrics, recovered, tmp_path):
    """Serves functions on a socket; gives the two stubs."""

    @asynccontextmanager
    async def serve(unary=None, streams=None, reads=()):
        rpcs = Rpcs(metrics, recovered)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(
            (
                rpcs.service(CRI, unary or {}, reads=reads),
                rpcs.service(MODULE, unary or {}, streams or {}),
            )
        )
        address = f"unix:{tmp_path}/sock"
        server.add_insecure_port(address)
        await server.start()
        async with grpc.aio.insecure_channel(address) as channel:
            yield (
                cri_pb2_grpc.RuntimeServiceStub(channel),
                container_pb2_grpc.ContainerModuleStub(channel),
            )
        await server.stop(0)

    return serve


def raises(error):
    async def call(_):
        raise error

    return call


def sample(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, labels)


async def version(_):
    return cri_pb2.VersionResponse(runtime_name="x")


async def test_an_answer(serve, metrics):
    async with serve({"Version": version}) as (cri, _):
        assert (await cri.Version(cri_pb2.VersionRequest())).runtime_name == "x"
    labels = {"method": "Version", "code": "OK"}
    await until(lambda: sample(metrics, "zos_cri_rpc_duration_seconds_count", **labels))
    assert sample(metrics, "zos_cri_rpcs_in_flight", method="Version") == 0


@pytest.mark.parametrize(
    "cls", [c for c in errors.Error.__subclasses__() if c.__module__ == "zos_cri.errors"]
)
async def test_an_error_is_its_code_and_one_line(serve, metrics, cls):
    async with serve({"Version": raises(cls("what\n  failed"))}) as (cri, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cri.Version(cri_pb2.VersionRequest())
    assert caught.value.code().name == errors.grpc_code(cls())
    assert caught.value.details() == "what failed"
    labels = {"method": "Version", "code": errors.grpc_code(cls())}
    await until(lambda: sample(metrics, "zos_cri_rpc_duration_seconds_count", **labels))


async def test_an_error_that_nobody_expected_is_logged_with_its_traceback(serve, caplog):
    async with serve({"Version": raises(KeyError("x"))}) as (cri, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cri.Version(cri_pb2.VersionRequest())
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    [record] = [r for r in caplog.records if r.message == "rpc failed"]
    assert record.levelname == "ERROR"
    assert record.exc_info is not None


@pytest.mark.parametrize("text", ["x" * 100_000, "\u20ac" * 100_000])
async def test_a_long_message_is_cut_and_its_code_kept(serve, text):
    async with serve({"Version": raises(errors.NotFound(text))}) as (cri, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cri.Version(cri_pb2.VersionRequest())
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert text.startswith(caught.value.details())


async def test_every_method_that_is_not_offered_says_so_by_its_name(serve):
    async with serve() as (cri, module):
        for method in CRI.methods:
            request = cri_pb2.__dict__[method.input_type.name]()
            call = getattr(cri, method.name)(request)
            answer = call.read() if method.server_streaming else call
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await answer
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert caught.value.details() == f"{method.name} is not offered by zos-cri"
        with pytest.raises(grpc.aio.AioRpcError, match="Logs is not offered"):
            await module.Logs(container_pb2.LogsRequest()).read()


async def test_a_caller_that_leaves_is_counted_as_such(serve, metrics):
    entered = asyncio.Event()

    async def hang(_):
        entered.set()
        await asyncio.Event().wait()

    async with serve({"Version": hang}) as (cri, _):
        call = cri.Version(cri_pb2.VersionRequest())
        waiting = asyncio.ensure_future(call)
        await entered.wait()
        assert sample(metrics, "zos_cri_rpcs_in_flight", method="Version") == 1
        call.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        labels = {"method": "Version", "code": "CANCELLED"}
        await until(lambda: sample(metrics, "zos_cri_rpc_duration_seconds_count", **labels))
    assert sample(metrics, "zos_cri_rpcs_in_flight", method="Version") == 0


async def test_the_log_lines_of_an_rpc_carry_what_it_is_about(serve, caplog):
    caplog.set_level("INFO")

    async def stop(_):
        get_log("test").info("inside")
        return cri_pb2.StopContainerResponse()

    async with serve({"StopContainer": stop}) as (cri, _):
        await cri.StopContainer(cri_pb2.StopContainerRequest(container_id="c1"))
    [record] = [r for r in caplog.records if r.message == "inside"]
    assert record.fields == {"rpc": "StopContainer", "container": "c1"}


async def test_a_stream_sends_what_it_has_and_then_its_error(serve, metrics):
    async def logs(_):
        yield container_pb2.LogsResponse(data=b"1")
        yield container_pb2.LogsResponse(data=b"2")
        raise errors.NotFound("gone")

    async with serve(streams={"Logs": logs}) as (_, module):
        call = module.Logs(container_pb2.LogsRequest(ns="n"))
        assert [(await call.read()).data for _ in range(2)] == [b"1", b"2"]
        with pytest.raises(grpc.aio.AioRpcError, match="gone"):
            await call.read()
    labels = {"method": "Logs", "code": "NOT_FOUND"}
    await until(lambda: sample(metrics, "zos_cri_rpc_duration_seconds_count", **labels))


async def test_a_stream_is_closed_when_its_reader_leaves(serve):
    closed = asyncio.Event()

    async def logs(_):
        try:
            while True:
                yield container_pb2.LogsResponse(data=b"x")
                await asyncio.sleep(0.01)
        finally:
            closed.set()

    async with serve(streams={"Logs": logs}) as (_, module):
        call = module.Logs(container_pb2.LogsRequest())
        assert (await call.read()).data == b"x"
        call.cancel()
        async with asyncio.timeout(5):
            await closed.wait()


async def test_changes_wait_for_the_recovery_and_reads_do_not(serve, recovered):
    recovered.clear()

    async def stop(_):
        return cri_pb2.StopContainerResponse()

    async with serve({"Version": version, "StopContainer": stop}, reads={"Version"}) as (cri, _):
        await cri.Version(cri_pb2.VersionRequest())
        stopping = asyncio.ensure_future(cri.StopContainer(cri_pb2.StopContainerRequest()))
        await asyncio.sleep(0.05)
        assert not stopping.done()
        recovered.set()
        await stopping


async def test_a_request_that_is_no_message_is_refused(serve, tmp_path):
    channel = grpc.aio.insecure_channel(f"unix:{tmp_path}/sock")
    async with serve({"Version": version}), channel:
        call: Any = channel.unary_unary("/runtime.v1.RuntimeService/Version")
        with pytest.raises(grpc.aio.AioRpcError):
            await call(b"\xff\xff\xff")
