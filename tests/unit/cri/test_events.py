from __future__ import annotations

import asyncio
import os
import time
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import grpc
import msgspec
import pytest

from tests.fakes.containers import new
from tests.fakes.pods import pod_config
from tests.fakes.shim import until
from zos_cri._pb import cri_pb2 as pb
from zos_cri._pb import cri_pb2_grpc
from zos_cri.cri.events import MAX_SUBSCRIBERS, RING_BYTES, RING_EVENTS, Events, Subscription
from zos_cri.cri.get_container_events import get_container_events
from zos_cri.cri.rpc import Rpcs
from zos_cri.cri.views import OWNER, CriContainer, Views
from zos_cri.errors import ResourceExhausted, Unavailable
from zos_cri.module.types import ContainerEventKind, ContainerNotice
from zos_cri.store.lifecycle import SandboxState
from zos_cri.store.model import SandboxMeta, SandboxStatus

A, B = "a" * 64, "b" * 64
RING = 64
CREATED, STARTED = pb.CONTAINER_CREATED_EVENT, pb.CONTAINER_STARTED_EVENT
STOPPED, DELETED = pb.CONTAINER_STOPPED_EVENT, pb.CONTAINER_DELETED_EVENT


@pytest.fixture
def views():
    return Views()


@pytest.fixture
def events(bench, views):
    bench.containers.own(OWNER, bench.owner)
    return Events(
        containers=bench.containers,
        pods=bench.db.sandboxes,
        views=views,
        metrics=bench.metrics,
        ring=RING,
    )


def cri_container(id_, pod, **fields):
    config = pb.ContainerConfig(metadata=pb.ContainerMetadata(name=id_[:1]))
    extra = CriContainer(config=config.SerializeToString(), image_id="i", image_ref="i")
    base = {"ns": pod, "group": pod, "owner": OWNER, "extra": msgspec.msgpack.encode(extra)}
    return new(id_, **{**base, **fields})


def taken(subscription):
    """What is in a ring now."""
    found = [pb.ContainerEventResponse.FromString(e) for e in subscription._ring]
    subscription._ring.clear()
    return found


def short(event):
    states = {s.metadata.name: s.state for s in event.containers_statuses}
    return event.container_id, event.container_event_type, event.pod_sandbox_status.state, states


# ---- what is told


@pytest.mark.root
async def test_a_life_is_told_in_order_with_the_pod_as_it_was_at_each_moment(bench, events):
    ready, ended = pb.SANDBOX_READY, pb.SANDBOX_NOTREADY
    made, runs, dead = pb.CONTAINER_CREATED, pb.CONTAINER_RUNNING, pb.CONTAINER_EXITED
    with events.subscribe() as subscription:
        pod = await bench.sandboxes.run(pod_config(host=True), "")
        await bench.containers.create(cri_container(A, pod))
        await bench.containers.create(cri_container(B, pod))
        await bench.containers.start(A)
        bench.tasks.end(A, 3)
        await until(lambda: "stopped" in bench.told())
        await bench.containers.remove(A)
        await bench.containers.start(B)
        await bench.sandboxes.stop(pod)
        await bench.sandboxes.remove(pod)
        told = taken(subscription)
    assert [short(event) for event in told] == [
        (pod, CREATED, ready, {}),
        (pod, STARTED, ready, {}),
        (A, CREATED, ready, {"a": made}),
        (B, CREATED, ready, {"a": made, "b": made}),
        (A, STARTED, ready, {"a": runs, "b": made}),
        (A, STOPPED, ready, {"a": dead, "b": made}),
        (A, DELETED, ready, {"b": made}),
        (B, STARTED, ready, {"b": runs}),
        (B, STOPPED, ended, {"b": dead}),
        (pod, STOPPED, ended, {"b": dead}),
        (B, DELETED, ended, {}),
        (pod, DELETED, ended, {}),
    ]
    assert told[5].containers_statuses[0].exit_code == 3
    assert all(event.pod_sandbox_status.metadata.name == "pod" for event in told)
    times = [event.created_at for event in told]
    assert times == sorted(set(times))


@pytest.mark.root
async def test_a_start_that_fails_is_an_end(bench, events):
    pod = await bench.sandboxes.run(pod_config(host=True), "")
    await bench.containers.create(cri_container(A, pod))
    bench.tasks.fail("create", Unavailable("no"))
    with events.subscribe() as subscription:
        with pytest.raises(Unavailable):
            await bench.containers.start(A)
        (event,) = taken(subscription)
    assert short(event)[:2] == (A, STOPPED)
    assert event.containers_statuses[0].reason == "StartError"
    await bench.containers.remove(A)


@pytest.mark.root
async def test_a_pod_that_never_was_ready_is_not_told_of(bench, events):
    bench.shims.fail("start", Unavailable("no"))
    with events.subscribe() as subscription:
        with pytest.raises(Unavailable):
            await bench.sandboxes.run(pod_config(host=True), "")
        assert len(bench.db.sandboxes) == 0
        assert taken(subscription) == []
    assert events._unborn == set()


@pytest.mark.root
async def test_a_pod_that_is_lost_has_stopped(bench, events):
    pod = await bench.sandboxes.run(pod_config(host=True), "")
    with events.subscribe() as subscription:
        await bench.sandboxes.lost(pod)
        await bench.sandboxes.lost(pod)
        assert [short(e)[:2] for e in taken(subscription)] == [(pod, STOPPED)]


@pytest.mark.root
async def test_others_containers_are_nobodys_business(bench, events):
    """The module's own containers, and the init of a pod that shares its pid namespace."""
    with events.subscribe() as subscription:
        pod = await bench.sandboxes.run(pod_config(shared_pid=True), "")
        await bench.run("c" * 64, ns="of the module")
        told = taken(subscription)
    assert {event.container_id for event in told} == {pod}
    assert all(not event.containers_statuses for event in told)
    await bench.containers.remove("c" * 64)


@pytest.mark.root
async def test_nothing_is_kept_of_what_is_gone(bench, events, views):
    with events.subscribe():
        pod = await bench.sandboxes.run(pod_config(host=True), "")
        await bench.containers.create(cri_container(A, pod))
        await bench.sandboxes.remove(pod)
        views.forget(A)  # as the owner does it
    assert (events._of_pod, views._sandboxes, views._containers) == ({}, {}, {})


async def test_containers_from_before_a_restart_are_known(bench, views):
    await bench.containers.create(cri_container(A, "p" * 64))
    again = Events(
        containers=bench.containers, pods=bench.db.sandboxes, views=views, metrics=bench.metrics
    )
    told = pb.ContainerEventResponse.FromString(again.container_statuses("p" * 64, 5))
    assert [status.id for status in told.containers_statuses] == [A]


async def test_timestamps_only_grow_when_the_clock_goes_back(events, monkeypatch):
    now = events.timestamp()
    monkeypatch.setattr("time.time_ns", lambda: 5)
    assert [events.timestamp(), events.timestamp()] == [now + 1, now + 2]


# ---- the rings


async def test_a_full_ring_loses_the_oldest_and_says_how_many():
    ring = Subscription()
    assert sum(ring.put(b"%d" % n) for n in range(RING_EVENTS + 3)) == 3
    stream = ring.events()
    assert [await anext(stream) for _ in range(RING_EVENTS)] == [
        b"%d" % n for n in range(3, RING_EVENTS + 3)
    ]
    with pytest.raises(ResourceExhausted, match="3 events were dropped"):
        await anext(stream)


async def test_a_ring_is_bounded_in_bytes_too():
    ring = Subscription()
    large = b"x" * (RING_BYTES // 4)
    assert [ring.put(large) for _ in range(6)] == [0, 0, 0, 0, 1, 1]
    assert ring.put(b"x" * (2 * RING_BYTES)) == 4  # the latest always stays


async def test_taken_events_make_room():
    ring = Subscription()
    events = ring.events()
    for n in range(3 * RING_EVENTS):
        assert ring.put(b"%d" % n) == 0
        assert await anext(events) == b"%d" % n
    await events.aclose()


async def test_a_stream_waits_for_events_and_ends_with_the_server(events):
    with events.subscribe() as subscription:
        stream = subscription.events()
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        subscription.put(b"1")
        assert await waiting == b"1"
        subscription.put(b"2")
        events.close()
        assert await anext(stream) == b"2"
        with pytest.raises(Unavailable, match="stopping"):
            await anext(stream)


async def test_subscribers_are_limited_and_leave_nothing(bench, events):
    with ExitStack() as stack:
        for _ in range(MAX_SUBSCRIBERS):
            stack.enter_context(events.subscribe())
        with pytest.raises(ResourceExhausted, match="already"), events.subscribe():
            pass
        assert bench.metric("zos_cri_event_subscribers") == MAX_SUBSCRIBERS
    assert bench.metric("zos_cri_event_subscribers") == 0


# ---- over gRPC


@pytest.fixture
async def served(bench, events, tmp_path):
    rpcs = Rpcs(bench.metrics, bench.containers.recovered)
    services: Any = SimpleNamespace(events=events)
    server = grpc.aio.server()
    descriptor = pb.DESCRIPTOR.services_by_name["RuntimeService"]
    stream = {"GetContainerEvents": lambda request: get_container_events(services, request)}
    server.add_generic_rpc_handlers((rpcs.service(descriptor, {}, stream),))
    address = f"unix:{tmp_path}/sock"
    server.add_insecure_port(address)
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield cri_pb2_grpc.RuntimeServiceStub(channel)
    await server.stop(0)


def notices(bench, count):
    """Tells of that many starts of one container."""
    record = bench.containers.find(A)
    for _ in range(count):
        notice = ContainerNotice(ContainerEventKind.STARTED, record, 0)
        for subscriber in bench.containers._subscribers:
            subscriber(notice)


async def one_container(bench, large=50_000):
    """Its pod is so large that a client's buffers are soon full."""
    config = pb.PodSandboxConfig(annotations={"large": "x" * large}).SerializeToString()
    meta = SandboxMeta(id="p" * 64, name="p", config=config, handler="runc", created_at=1)
    await bench.db.sandboxes.insert(meta, SandboxStatus(state=SandboxState.READY))
    await bench.containers.create(cri_container(A, meta.id))


async def test_the_headers_say_that_nothing_is_missed_any_more(events, served):
    call = served.GetContainerEvents(pb.GetEventsRequest())
    await call.initial_metadata()
    assert len(events._subscriptions) == 1
    call.cancel()


async def test_fifty_subscribers_have_every_event_but_the_one_that_does_not_read(
    bench, events, served
):
    """In bursts of `RING`, as many as ZOS_CRI_TEST_EVENTS says."""
    await one_container(bench, large=0)
    bursts = int(os.environ.get("ZOS_CRI_TEST_EVENTS", "8"))
    calls = [served.GetContainerEvents(pb.GetEventsRequest()) for _ in range(50)]
    *quick, slow = calls
    for call in calls:
        await call.initial_metadata()
    last, begun = 0, time.perf_counter()
    for _ in range(bursts):
        notices(bench, RING)
        told = await asyncio.gather(*(read(call, RING) for call in quick))
        assert all(times == told[0] for times in told)
        assert [last, *told[0]] == sorted({last, *told[0]})
        last = told[0][-1]
    rate = bursts * RING / (time.perf_counter() - begun)
    print(f"{rate:.0f} events a second to each of 50 subscribers")
    assert sum(subscription.lost > 0 for subscription in events._subscriptions) <= 1
    for call in calls:
        call.cancel()
    await until(lambda: not events._subscriptions)
    assert slow.cancelled()


async def read(call, count):
    return [(await call.read()).created_at for _ in range(count)]


async def test_a_slow_subscriber_is_told_and_holds_up_nobody(bench, events, served):
    await one_container(bench)
    quick, slow = (served.GetContainerEvents(pb.GetEventsRequest()) for _ in range(2))
    await until(lambda: len(events._subscriptions) == 2)
    count, read = 10 * RING, 0
    while read < count:  # the slow one reads nothing meanwhile
        notices(bench, RING)
        for _ in range(RING):
            event = await quick.read()
            read += 1
    assert event.containers_statuses[0].id == A
    assert bench.metric("zos_cri_events_lost_total") > RING
    lost = int(bench.metric("zos_cri_events_lost_total"))
    times = [(await slow.read()).created_at for _ in range(count - lost)]
    assert times == sorted(set(times))
    with pytest.raises(grpc.aio.AioRpcError, match=f"{lost} events were dropped") as failed:
        await slow.read()
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert times[-1] == event.created_at  # the newest are those it got
    quick.cancel()
    await until(lambda: not events._subscriptions)
