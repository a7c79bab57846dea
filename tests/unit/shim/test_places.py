"""Pods' places in fake shims: alone, several in one, one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fakes.shim import until
from tests.fakes.tasks import FakeShims
from zos_cri.errors import Unavailable
from zos_cri.shim import places as module
from zos_cri.shim.handler import Handler
from zos_cri.shim.places import Places
from zos_cri.shim.pool import SURPLUS, WarmShims

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HANDLERS = {"runc": Handler(name="runc")}


class Fixture:
    def __init__(self, tmp_path: Path) -> None:
        self.shims = FakeShims(tmp_path / "bundles")
        self.warm: list[WarmShims] = []

    async def places(self, *, warm: int = 0, pods: int = 1) -> Places:
        pool = WarmShims(self.shims, {"runc": warm}, HANDLERS, rest=0)  # type: ignore[arg-type]
        self.warm.append(pool)
        pool.start()
        await until(lambda: len(pool.groups) == warm)
        return Places(self.shims, pool, {"runc": pods})  # type: ignore[arg-type]

    async def begun(self, places: Places) -> tuple[str, str]:
        """A pod whose shim runs."""
        id_, group = places.take("runc")
        await self.shims.start(group, HANDLERS["runc"])
        return id_, group


@pytest.fixture
async def fixture(tmp_path: Path) -> AsyncIterator[Fixture]:
    fixture = Fixture(tmp_path)
    yield fixture
    for pool in fixture.warm:
        await pool.close()
    assert not fixture.shims.shims


async def test_a_shim_for_a_pod_alone_is_named_for_it_and_ends_with_it(fixture: Fixture) -> None:
    places = await fixture.places()
    id_, group = await fixture.begun(places)
    assert id_ == group
    await places.leave(id_, group, [])
    await places.leave(id_, group, [])
    assert fixture.shims.calls == [("start", group), ("stop", group), ("stop", group)]


async def test_a_shim_that_its_pod_has_left_is_the_next_ones(fixture: Fixture) -> None:
    places = await fixture.places(warm=1)
    with places.warm.making():  # no other is started meanwhile
        pod, group = places.take("runc")
        assert pod != group
        assert places.groups == {group}
        fixture.shims.tasks.tasks.clear()
        await places.leave(pod, group, ["ended", "never-started"])
        await places.leave(pod, group, [])
        assert places.warm.groups == [group]
        other, again = places.take("runc")
        assert again == group
        assert other not in {pod, group}
        await places.leave(pod, group, [])
        assert places.groups == {group}
        await places.leave(other, group, [])
    assert ("stop", group) not in fixture.shims.calls


async def test_a_shim_with_a_task_left_is_ended(fixture: Fixture) -> None:
    places = await fixture.places(warm=1)
    pod, group = places.take("runc")
    fixture.shims.tasks.add("stuck")
    await places.leave(pod, group, ["gone", "stuck"])
    assert group not in places.warm.groups
    assert ("stop", group) in fixture.shims.calls


async def test_a_shim_that_does_not_answer_is_ended(fixture: Fixture) -> None:
    places = await fixture.places(warm=1)
    pod, group = places.take("runc")
    fixture.shims.tasks.fail("state", Unavailable("hangs"))
    await places.leave(pod, group, ["container"])
    assert ("stop", group) in fixture.shims.calls


async def test_a_shim_is_ended_where_enough_wait(fixture: Fixture) -> None:
    places = await fixture.places(warm=1)
    with places.warm.making():
        taken = [await fixture.begun(places) for _ in range(SURPLUS + 1)]
        for pod, group in taken:
            await places.leave(pod, group, [])
        assert places.warm.groups == [group for _, group in taken[:-1]]
        assert ("stop", taken[-1][1]) in fixture.shims.calls


async def test_a_shim_of_an_upgraded_binary_is_ended(fixture: Fixture) -> None:
    places = await fixture.places(warm=1)
    with places.warm.making():
        pod, group = places.take("runc")
        fixture.shims.outdated.add(group)
        await places.leave(pod, group, [])
    assert ("stop", group) in fixture.shims.calls


async def test_a_shim_has_so_many_pods_in_its_life(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PODS", 3)
    places = await fixture.places(warm=1)
    with places.warm.making():
        groups = []
        for _ in range(3):
            pod, group = places.take("runc")
            groups.append(group)
            await places.leave(pod, group, [])
    assert len(set(groups)) == 1
    assert fixture.shims.calls.count(("stop", group)) == 1


async def test_several_pods_share_a_shim_that_ends_with_the_last(fixture: Fixture) -> None:
    places = await fixture.places(pods=2)
    taken = [await fixture.begun(places) for _ in range(3)]
    groups = [group for _, group in taken]
    assert groups[0] == groups[1] != groups[2]
    assert len({id_ for id_, _ in taken} | set(groups)) == 5
    await places.leave(*taken[0], [])
    assert ("stop", groups[0]) not in fixture.shims.calls
    third = await fixture.begun(places)
    assert third[1] == groups[0]
    for place in (taken[1], third, taken[2]):
        await places.leave(*place, [])
    assert places.groups == set()
    assert [call for call in fixture.shims.calls if call[0] == "stop"] == [
        ("stop", groups[0]),
        ("stop", groups[2]),
    ]


async def test_no_pod_goes_where_a_shim_was_lost(fixture: Fixture) -> None:
    places = await fixture.places(pods=9)
    pod, group = await fixture.begun(places)
    fixture.shims.lose(group)
    places.lost(group)
    places.lost("unknown")
    other, elsewhere = await fixture.begun(places)
    assert elsewhere != group
    await places.leave(pod, group, [])
    await places.leave(other, elsewhere, [])


async def test_a_pod_that_is_not_made_gives_its_place_back(fixture: Fixture) -> None:
    places = await fixture.places(warm=1, pods=2)
    with places.warm.making():
        pod, group = places.take("runc")
        other, _ = places.take("runc")
        places.give_back(other, group)
        assert places.groups == {group}
        places.give_back(pod, group)
        assert places.warm.groups == [group]
    assert places.groups == set()


async def test_pods_of_an_earlier_server_have_their_places(fixture: Fixture) -> None:
    places = await fixture.places(pods=2)
    await fixture.shims.start("s", HANDLERS["runc"])
    for pod in "ab":
        places.hold(pod, "s", "runc")
    assert places.take("runc")[1] != "s"
    await places.leave("a", "s", [])
    assert ("stop", "s") not in fixture.shims.calls
    await places.leave("b", "s", [])
    assert ("stop", "s") in fixture.shims.calls


async def test_a_shim_that_can_not_be_ended_is_tried_again(fixture: Fixture) -> None:
    places = await fixture.places()
    pod, group = await fixture.begun(places)
    fixture.shims.fail("stop", Unavailable("stuck"))
    with pytest.raises(Unavailable):
        await places.leave(pod, group, [])
    await places.leave(pod, group, [])
    assert group not in fixture.shims.shims
