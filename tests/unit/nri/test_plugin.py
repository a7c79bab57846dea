"""One plugin: how it joins, and what becomes of it and of requests when it misbehaves."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import pytest

from tests.fakes.nri_plugin import GARBAGE, HANG, Bench, FakePlugin, joined
from tests.fakes.shim import until
from zos_cri import errors
from zos_cri._pb import nri_pb2 as pb
from zos_cri.nri import events
from zos_cri.nri.plugin import Identity, Timeouts, Unusable, identity, sync_requests
from zos_cri.wire import nrimux

RUN = pb.RunPodSandboxRequest(pod=pb.PodSandbox(id="p"))


@pytest.fixture
async def hasty():
    """For those that don't answer."""
    bench = Bench(Timeouts(0.1, 0.1))
    yield bench
    await bench.aclose()


# ---- names


@pytest.mark.parametrize("index", ["", "1", "100", "a1", "-1", "١٢"])
def test_indexes_are_two_digits(index):
    with pytest.raises(errors.InvalidArgument, match=r"plugin_idx: .* is not two digits"):
        identity(index, "name")


@pytest.mark.parametrize("name", ["", "a/b", "a b", "x" * 129, "../x"])
def test_names_are_words(name):
    with pytest.raises(errors.InvalidArgument, match="plugin_name: "):
        identity("10", name)


def test_an_identity():
    assert str(identity("07", "a-b_c.d+e")) == "07-a-b_c.d+e"


# ---- joining


async def test_what_a_plugin_is_told_first(bench):
    fake = FakePlugin()
    plugin = await bench.connected(fake, Identity("01", "known"), "its configuration")
    await joined(bench.plugins, fake, plugin, "another", "99")
    request = fake.last("Configure")
    assert (request.config, request.runtime_name) == ("its configuration", "zos-cri")
    assert (request.registration_timeout, request.request_timeout) == (5000, 5000)
    assert plugin.name == "01-known"  # what it says of itself isn't looked at
    assert plugin.events == events.ALL_EVENTS


@pytest.mark.parametrize(
    ("name", "index", "why"),
    [("", "10", "plugin_name"), ("x", "1", "plugin_idx"), ("x/y", "10", "plugin_name")],
)
async def test_one_that_is_named_wrongly_is_refused(bench, name, index, why):
    fake = FakePlugin()
    joining = asyncio.create_task(bench.plugins.join(await bench.connected(fake)))
    with pytest.raises(errors.InvalidArgument, match=why):
        await fake.register(name, index)
    with pytest.raises(Unusable, match=why):
        await joining
    await until(lambda: fake.runtime.closed)
    assert bench.plugins.names == []


async def test_one_that_does_not_register(hasty):
    fake = FakePlugin()
    plugin = await hasty.connected(fake)
    with pytest.raises(Unusable, match=r"not registered within 0\.1 s"):
        await hasty.plugins.join(plugin)
    await until(lambda: fake.runtime.closed)


async def test_one_that_goes_away_before(bench):
    fake = FakePlugin()
    joining = asyncio.create_task(bench.plugins.join(await bench.connected(fake)))
    fake.close()
    with pytest.raises(Unusable, match="has closed its connection"):
        await joining


async def test_one_registers_once(bench):
    fake = await bench.join()
    with pytest.raises(errors.FailedPrecondition, match="registered already"):
        await fake.register()


async def test_updates_before_registration_are_refused(bench):
    fake = FakePlugin()
    await bench.connected(fake)
    with pytest.raises(errors.FailedPrecondition, match="isn't registered"):
        await fake.call("UpdateContainers", pb.UpdateContainersRequest())
    assert bench.runtime.updates == []


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ({"Configure": errors.Internal("no")}, "Configure: no"),
        ({"Configure": pb.ConfigureResponse(events=1 << 20)}, "events: 0x100000 has unknown ones"),
        ({"Configure": pb.ConfigureResponse(events=-1)}, "has unknown ones"),
        ({"Configure": GARBAGE}, "Configure: its answer is none"),
        ({"Synchronize": errors.Internal("no")}, "not synchronized: .*: no"),
        ({"Synchronize": GARBAGE}, "not synchronized: .* its answer is none"),
    ],
)
async def test_one_that_cannot_be_used(bench, answers, why):
    fake = FakePlugin(**answers)
    joining = asyncio.create_task(bench.plugins.join(await bench.connected(fake)))
    await fake.register()
    with pytest.raises(Unusable, match=why):
        await joining
    await until(lambda: fake.runtime.closed)
    assert not bench.plugins.wants(events.CREATE)


@pytest.mark.parametrize("method", ["Configure", "Synchronize"])
async def test_one_that_hangs_while_it_joins(hasty, method):
    answers: dict[str, Any] = {method: HANG}
    fake = FakePlugin(**answers)
    joining = asyncio.create_task(hasty.plugins.join(await hasty.connected(fake)))
    await fake.register()
    with pytest.raises(Unusable, match=f"{method}: no answer within"):
        await joining
    assert not hasty.plugins.wants(events.CREATE)


# ---- synchronization in parts


def test_one_message_where_all_fits():
    (request,) = sync_requests([pb.PodSandbox(id="p")], [pb.Container(id="c")])
    assert ([p.id for p in request.pods], [c.id for c in request.containers]) == (["p"], ["c"])
    assert not request.more


def test_nothing_is_one_message_too():
    assert list(sync_requests([], [])) == [pb.SynchronizeRequest()]


def test_parts_are_below_the_limit_and_have_all_of_it():
    pods = [pb.PodSandbox(id=f"p{n}", name="x" * 50) for n in range(20)]
    containers = [pb.Container(id=f"c{n}", name="x" * 90) for n in range(20)]
    requests = list(sync_requests(pods, containers, limit=300))
    assert all(request.ByteSize() <= 302 for request in requests)
    assert [request.more for request in requests] == [True] * (len(requests) - 1) + [False]
    assert [pod for request in requests for pod in request.pods] == pods
    assert [each for request in requests for each in request.containers] == containers


async def test_many_containers_come_in_parts(bench):
    bench.runtime.containers = [pb.Container(id=str(n), args=["x" * (1 << 20)]) for n in range(10)]
    fake = await bench.join()
    requests = [request for name, request in fake.calls if name == "Synchronize"]
    assert [request.more for request in requests] == [True, True, True, False]
    assert sum(len(request.containers) for request in requests) == 10


async def test_one_that_cannot_take_parts(bench):
    bench.runtime.containers = [pb.Container(id=str(n), args=["x" * (1 << 20)]) for n in range(5)]
    fake = FakePlugin(Synchronize=pb.SynchronizeResponse())
    joining = asyncio.create_task(bench.plugins.join(await bench.connected(fake)))
    await fake.register()
    with pytest.raises(Unusable, match="can't be told of so many containers in parts"):
        await joining


# ---- calls


async def test_only_events_that_it_wants(bench):
    fake = await bench.join(Configure=pb.ConfigureResponse(events=events.STOP_POD.mask))
    (plugin,) = bench.plugins._plugins
    assert await plugin.call(events.RUN_POD, RUN) is None
    await plugin.call(events.STOP_POD, pb.StopPodSandboxRequest())
    assert fake.names() == ["StopPodSandbox"]
    assert bench.plugins.wants(events.STOP_POD)
    assert not bench.plugins.wants(events.RUN_POD)


async def test_an_older_one_is_told_by_state_change(bench):
    fake = FakePlugin(old=True)
    await joined(bench.plugins, fake, await bench.connected(fake))
    (plugin,) = bench.plugins._plugins
    request = pb.StartContainerRequest(pod=pb.PodSandbox(id="p"), container=pb.Container(id="c"))
    for _ in range(2):
        await plugin.call(events.START, request)
    assert fake.names() == ["StateChange", "StateChange"]
    told = fake.last("StateChange")
    assert (told.event, told.pod.id, told.container.id) == (pb.START_CONTAINER, "p", "c")


async def test_an_error_fails_the_request_and_keeps_the_plugin(bench):
    await bench.join(RunPodSandbox=errors.FailedPrecondition("not here"))
    (plugin,) = bench.plugins._plugins
    with pytest.raises(errors.FailedPrecondition, match=r"NRI plugin 10-fake: .*: not here"):
        await plugin.call(events.RUN_POD, RUN)
    assert bench.plugins.names == ["10-fake"]
    labels = {"plugin": "10-fake", "operation": "RunPodSandbox"}
    labels |= {"status": "error", "error": "failed_precondition"}
    assert bench.metric("plugin_invocations_total", **labels) == 1


async def test_one_that_hangs_is_left_out_and_closed(hasty):
    fake = await hasty.join(RunPodSandbox=HANG)
    (plugin,) = hasty.plugins._plugins
    assert await plugin.call(events.RUN_POD, RUN) is None
    assert hasty.plugins.names == []
    await until(lambda: fake.runtime.closed)
    assert await plugin.call(events.RUN_POD, RUN) is None  # and isn't asked again
    assert fake.names() == ["RunPodSandbox"]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("fail", [False, True])
async def test_what_a_plugin_asks_for_when_it_is_late(hasty, fail, keep):
    policy = pb.FailurePolicy(fail_request=fail, keep_connected=keep)
    await hasty.join(Configure=pb.ConfigureResponse(failure_policy=policy), RunPodSandbox=HANG)
    (plugin,) = hasty.plugins._plugins
    if fail:
        with pytest.raises(errors.DeadlineExceeded, match="NRI plugin 10-fake"):
            await plugin.call(events.RUN_POD, RUN)
    else:
        assert await plugin.call(events.RUN_POD, RUN) is None
    assert hasty.plugins.names == (["10-fake"] if keep else [])


@pytest.mark.parametrize("fail", [False, True])
async def test_one_that_goes_away_amid_a_request(bench, fail):
    fake = FakePlugin(
        Configure=pb.ConfigureResponse(failure_policy=pb.FailurePolicy(fail_request=fail)),
    )
    fake.answers["RunPodSandbox"] = lambda _: fake.close()
    await joined(bench.plugins, fake, await bench.connected(fake))
    (plugin,) = bench.plugins._plugins
    if fail:
        with pytest.raises(errors.Unavailable):
            await plugin.call(events.RUN_POD, RUN)
    else:
        assert await plugin.call(events.RUN_POD, RUN) is None
    assert bench.plugins.names == []


LIES = {
    "a frame that is too large": struct.pack(">II", 1, nrimux.MAX_PAYLOAD + 1),
    "no ttrpc": nrimux.frames(nrimux.PLUGIN_SERVICE, b"\xff" * 40),
    "a request on the plugin's channel": nrimux.frames(1, struct.pack(">IIBB", 0, 1, 1, 0)),
    "a response on the runtime's": nrimux.frames(2, struct.pack(">IIBB", 0, 1, 2, 0)),
    "a ttrpc frame that is too large": nrimux.frames(2, struct.pack(">IIBB", 5 << 20, 1, 1, 0)),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_one_that_lies_is_closed_and_the_request_goes_on(bench, lie):
    fake = FakePlugin()

    def answer(_):
        assert fake.trunk._transport is not None
        fake.trunk._transport.write(lie)

    fake.answers["RunPodSandbox"] = answer
    fake.answers["CreateContainer"] = GARBAGE
    await joined(bench.plugins, fake, await bench.connected(fake))
    (plugin,) = bench.plugins._plugins
    await plugin.call(events.RUN_POD, RUN)
    await until(lambda: plugin.closed)
    assert bench.plugins.names == []


async def test_an_answer_that_is_none_is_a_failure_of_the_plugin(bench):
    await bench.join(CreateContainer=GARBAGE)
    (plugin,) = bench.plugins._plugins
    assert await plugin.call(events.CREATE, pb.CreateContainerRequest()) is None
    assert bench.plugins.names == []


async def test_what_it_changes_is_counted(bench):
    answer = pb.CreateContainerResponse(
        adjust=pb.ContainerAdjustment(args=["x"]),
        update=[pb.ContainerUpdate(container_id="c")] * 2,
        evict=[pb.ContainerEviction(container_id="d")],
    )
    await bench.join(
        CreateContainer=answer,
        UpdateContainer=pb.UpdateContainerResponse(update=answer.update),
        StopContainer=pb.StopContainerResponse(update=answer.update),
    )
    (plugin,) = bench.plugins._plugins
    await plugin.call(events.CREATE, pb.CreateContainerRequest())
    await plugin.call(events.UPDATE, pb.UpdateContainerRequest())
    await plugin.call(events.STOP, pb.StopContainerRequest())

    def counted(operation, kind):
        labels = {"plugin": "10-fake", "operation": operation, "type": kind}
        return bench.metric("plugin_adjustments_total", **labels)

    assert [counted("CreateContainer", kind) for kind in ("adjust", "update", "evict")] == [1, 2, 1]
    assert counted("UpdateContainer", "update") == 2
    assert counted("StopContainer", "update") == 2
