"""All plugins together: their order, how one joins amid others' requests, and what they change."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes.nri_plugin import HANG, Bench, FakePlugin, joined
from tests.fakes.shim import until
from zos_cri import errors
from zos_cri._pb import nri_pb2 as pb
from zos_cri.nri import events
from zos_cri.nri.owners import Conflict
from zos_cri.nri.plugin import Timeouts
from zos_cri.nri.plugins import MAX_PLUGINS

POD = pb.PodSandbox(id="p")


def create(id_: str = "c") -> pb.CreateContainerRequest:
    return pb.CreateContainerRequest(pod=POD, container=pb.Container(id=id_))


async def run() -> pb.RunPodSandboxRequest:
    return pb.RunPodSandboxRequest(pod=POD)


async def stopped() -> pb.StopContainerRequest:
    return pb.StopContainerRequest(pod=POD, container=pb.Container(id="c"))


def env(name: str, value: str = "1") -> pb.CreateContainerResponse:
    pair = pb.KeyValue(key=name, value=value)
    return pb.CreateContainerResponse(adjust=pb.ContainerAdjustment(env=[pair]))


def shares(id_: str, number: int = 7) -> pb.ContainerUpdate:
    update = pb.ContainerUpdate(container_id=id_)
    update.linux.resources.cpu.shares.value = number
    return update


async def test_nobody_wants_anything(bench):
    assert not bench.plugins.wants(*events.RPCS.values())
    assert (await bench.plugins.create(create())).ByteSize() == 0
    await bench.plugins.tell(events.RUN_POD, run)


async def test_they_are_called_in_the_order_of_their_indexes(bench):
    order: list[str] = []

    def note(name):
        return lambda _: order.append(name)

    for name, index in (("c", "30"), ("a", "05"), ("b", "10"), ("0", "10")):
        await bench.join(name, index, RunPodSandbox=note(name))
    assert bench.plugins.names == ["05-a", "10-0", "10-b", "30-c"]
    await bench.plugins.tell(events.RUN_POD, run)
    assert order == ["a", "0", "b", "c"]
    assert bench.metric("active_plugins") == 4


async def test_one_that_refuses_ends_it(bench):
    await bench.join("a", "10", RunPodSandbox=errors.PermissionDenied("no"))
    late = await bench.join("b", "20")
    with pytest.raises(errors.PermissionDenied, match=r"NRI plugin 10-a: .*: no"):
        await bench.plugins.tell(events.RUN_POD, run)
    assert late.names() == []


async def test_what_there_is_is_told_and_what_is_wanted_is_done(bench):
    bench.runtime.pods = [POD]
    bench.runtime.containers = [pb.Container(id="c")]
    fake = await bench.join(Synchronize=pb.SynchronizeResponse(update=[shares("c")]))
    request = fake.last("Synchronize")
    assert ([p.id for p in request.pods], [c.id for c in request.containers]) == (["p"], ["c"])
    assert bench.runtime.updates == [shares("c")]


async def test_what_happens_while_one_joins_is_told_to_it(bench):
    """Nothing falls between its snapshot and its first event."""
    reached, go_on = asyncio.Event(), asyncio.Event()
    snapshot = bench.runtime.snapshot

    async def slow():
        found = await snapshot()
        reached.set()
        await go_on.wait()
        return found

    bench.runtime.snapshot = slow
    fake = FakePlugin()
    joining = asyncio.create_task(joined(bench.plugins, fake, await bench.connected(fake)))
    await reached.wait()
    assert bench.plugins.wants(events.RUN_POD)  # though nobody is there yet
    telling = asyncio.create_task(bench.plugins.tell(events.RUN_POD, run))
    go_on.set()
    await asyncio.gather(joining, telling)
    assert fake.names() == ["RunPodSandbox"]


async def test_one_request_at_a_time():
    bench = Bench(Timeouts(5.0, 0.2))
    await bench.join(RunPodSandbox=HANG)
    one, two = (asyncio.create_task(bench.plugins.tell(events.RUN_POD, run)) for _ in range(2))
    await asyncio.gather(one, two)
    # The first has closed it, the second found nobody.
    labels = {"plugin": "10-fake", "operation": "RunPodSandbox", "status": "error"}
    labels["error"] = "deadline_exceeded"
    assert bench.metric("plugin_invocations_total", **labels) == 1
    await bench.aclose()


async def test_adjustments_are_merged_and_updates_made(bench):
    one, two = env("A"), env("B")
    one.update.append(shares("other"))
    two.evict.add(container_id="victim", reason="why")
    await bench.join("a", "10", CreateContainer=one)
    last = await bench.join("b", "20", CreateContainer=two)
    adjust = await bench.plugins.create(create())
    assert [pair.key for pair in adjust.env] == ["A", "B"]
    assert list(last.last("CreateContainer").container.env) == ["A=1"]
    assert bench.runtime.updates == [shares("other")]
    assert [each.container_id for each in bench.runtime.evictions] == ["victim"]


async def test_a_conflict_changes_nothing(bench):
    one = env("A")
    one.update.append(shares("other"))
    await bench.join("a", "10", CreateContainer=one)
    await bench.join("b", "20", CreateContainer=env("A"))
    with pytest.raises(Conflict, match='NRI plugins "20-b" and "10-a" both set Env A'):
        await bench.plugins.create(create())
    assert bench.runtime.updates == []


async def test_validators_see_all_of_it_and_may_refuse(bench):
    await bench.join("a", "10", CreateContainer=env("A"), Configure=subscribed(events.CREATE))
    guard = await bench.join("b", "90", Configure=subscribed(events.VALIDATE))
    await bench.plugins.create(create())
    seen = guard.last("ValidateContainerAdjustment")
    assert list(seen.container.env) == []  # as it was before
    assert [pair.key for pair in seen.adjust.env] == ["A"]
    assert seen.owners.owners["c"].compound[pb.Env].owners["A"] == "10-a"
    assert [(p.index, p.name) for p in seen.plugins] == [("10", "a"), ("90", "b")]
    no = pb.ValidateContainerAdjustmentResponse(reject=True, reason="because")
    guard.answers["ValidateContainerAdjustment"] = no
    with pytest.raises(errors.FailedPrecondition, match=r"NRI plugin 90-b refuses .*: because"):
        await bench.plugins.create(create())


def subscribed(*rpcs: events.Rpc) -> pb.ConfigureResponse:
    return pb.ConfigureResponse(events=sum(rpc.mask for rpc in rpcs))


async def test_a_validator_that_does_not_answer_is_a_no():
    bench = Bench(Timeouts(5.0, 0.1))
    await bench.join(Configure=subscribed(events.VALIDATE), ValidateContainerAdjustment=HANG)
    with pytest.raises(errors.DeadlineExceeded):
        await bench.plugins.create(create())
    assert bench.plugins.names == []
    assert (await bench.plugins.create(create())).ByteSize() == 0
    await bench.aclose()


@pytest.mark.parametrize("asked", [True, False])
async def test_a_validator_that_is_none(bench, asked):
    """One that wants all events may be older than validation; one that asks for it isn't."""
    wants = subscribed(events.CREATE, events.VALIDATE) if asked else pb.ConfigureResponse()
    no = errors.Unimplemented("unknown method")
    fake = await bench.join(Configure=wants, ValidateContainerAdjustment=no)
    if asked:
        with pytest.raises(errors.Unimplemented):
            await bench.plugins.create(create())
    else:
        for _ in range(2):
            await bench.plugins.create(create())
        assert fake.names().count("ValidateContainerAdjustment") == 1


async def test_an_update_and_what_follows_from_it(bench):
    answer = pb.UpdateContainerResponse(update=[shares("c", 9), shares("other")])
    answer.evict.add(container_id="victim")
    await bench.join(UpdateContainer=answer)
    request = pb.UpdateContainerRequest(pod=POD, container=pb.Container(id="c"))
    wanted = await bench.plugins.update(request)
    assert wanted.cpu.shares.value == 9
    assert bench.runtime.updates == [shares("other")]
    assert [each.container_id for each in bench.runtime.evictions] == ["victim"]


async def test_an_end_and_what_follows_from_it(bench):
    await bench.join(StopContainer=pb.StopContainerResponse(update=[shares("other")]))
    await bench.plugins.stop(stopped)
    assert bench.runtime.updates == [shares("other")]


async def test_updates_that_a_plugin_wants_by_itself(bench):
    fake = await bench.join()
    bench.runtime.failed = [shares("b")]
    request = pb.UpdateContainersRequest(update=[shares("a"), shares("b")])
    request.evict.add(container_id="victim")
    answer = pb.UpdateContainersResponse.FromString(await fake.call("UpdateContainers", request))
    assert [each.container_id for each in answer.failed] == ["b"]
    assert bench.runtime.updates == [shares("a"), shares("b")]
    assert [each.container_id for each in bench.runtime.evictions] == ["victim"]


async def test_updates_that_it_wants_while_it_is_asked(bench):
    """It waits for them before it answers: that must not be for each other."""
    fake = FakePlugin()
    asked: list[asyncio.Task[bytes]] = []

    def ask(_):
        request = pb.UpdateContainersRequest(update=[shares("a")])
        asked.append(asyncio.create_task(fake.call("UpdateContainers", request)))

    fake.answers["RunPodSandbox"] = ask
    await joined(bench.plugins, fake, await bench.connected(fake))
    await bench.plugins.tell(events.RUN_POD, run)
    await asked[0]
    assert bench.runtime.updates == [shares("a")]


async def test_one_that_goes_away_is_forgotten(bench):
    fake = await bench.join()
    fake.close()
    await until(lambda: bench.plugins.names == [])
    assert bench.metric("active_plugins") == 0
    assert not bench.plugins.wants(events.RUN_POD)


async def test_there_are_not_more_than_so_many(bench):
    for _ in range(MAX_PLUGINS):
        bench.plugins.plugin()
    with pytest.raises(errors.ResourceExhausted, match=f"there are {MAX_PLUGINS} NRI plugins"):
        bench.plugins.plugin()
