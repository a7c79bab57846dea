from __future__ import annotations

import json

import pytest

from tests.fakes.nri import nri_over
from tests.unit.cri.test_nri import EXTRA, ID
from zos_cri import errors
from zos_cri._pb import cri_pb2 as cri
from zos_cri._pb import nri_pb2 as pb
from zos_cri.cri.views import Views


@pytest.fixture
async def limits(bench):
    nri = nri_over(bench, Views())
    await bench.create(ID, extra=EXTRA)
    return nri._limits


async def update(limits, bench, more, **fields):
    record = bench.containers.find(ID)
    await limits.update(record, cri.LinuxContainerResources(**fields), more)
    spec = json.loads((bench.shims.bundles / ID / "config.json").read_bytes())
    reported = cri.LinuxContainerResources.FromString(bench.status(ID).resources)
    return spec["linux"]["resources"], reported


async def test_what_plugins_want_comes_on_top(limits, bench):
    more = pb.LinuxResources()
    more.cpu.shares.value = 9
    more.memory.reservation.value = 4096
    found, reported = await update(limits, bench, more, cpu_shares=5, cpu_quota=2000)
    assert found["cpu"] == {"quota": 2000, "shares": 9}
    assert found["memory"] == {"reservation": 4096}
    assert (reported.cpu_shares, reported.cpu_quota) == (9, 2000)


async def test_without_plugins(limits, bench):
    found, reported = await update(limits, bench, None, cpu_shares=5)
    assert found["cpu"] == {"shares": 5}
    assert reported.cpu_shares == 5


@pytest.mark.parametrize("field", ["rdt_class", "devices"])
async def test_what_is_chosen_when_a_container_is_made(limits, bench, field):
    more = pb.LinuxResources()
    if field == "devices":
        more.devices.add(allow=True)
    else:
        more.rdt_class.value = "x"
    with pytest.raises(errors.FailedPrecondition, match=f"linux.resources.{field}: .*when a"):
        await update(limits, bench, more)
