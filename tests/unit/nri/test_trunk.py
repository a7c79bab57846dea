"""The connection: both ways at once, and that one end's trouble ends all of it."""

from __future__ import annotations

import asyncio

from tests.fakes.nri_plugin import FakePlugin
from tests.fakes.shim import until
from zos_cri._pb import nri_pb2 as pb
from zos_cri.nri import events


async def test_large_messages_go_both_ways_at_once(bench):
    big = "x" * (3 << 20)
    fake = await bench.join(
        Configure=pb.ConfigureResponse(events=events.CREATE.mask),
        CreateContainer=pb.CreateContainerResponse(adjust=pb.ContainerAdjustment(args=[big])),
    )
    request = pb.CreateContainerRequest(container=pb.Container(id="c", args=[big]))
    update = pb.UpdateContainersRequest(update=[pb.ContainerUpdate(container_id=big)])
    adjust, _ = await asyncio.gather(
        bench.plugins.create(request), fake.call("UpdateContainers", update)
    )
    assert list(adjust.args) == [big]
    assert fake.last("CreateContainer").container.args[0] == big
    assert bench.runtime.updates[0].container_id == big


async def test_the_end_of_one_side_is_the_end_of_both(bench):
    fake = await bench.join()
    (plugin,) = bench.plugins._plugins
    plugin.close()
    await until(lambda: fake.runtime.closed)
    assert plugin.closed


async def test_a_channel_looks_like_a_transport(bench):
    fake = FakePlugin()
    plugin = await bench.connected(fake)
    channel = plugin._connection._transport
    assert channel.get_extra_info("socket") is not None
    assert channel.get_extra_info("nothing", 7) == 7
    channel.pause_reading()
    registering = asyncio.create_task(fake.register())
    channel.resume_reading()
    await registering
    channel.close()
    assert channel.is_closing()
    await until(lambda: plugin.closed)
    assert not bench.plugins.wants(events.RUN_POD)
