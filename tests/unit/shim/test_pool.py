"""Warm shims over fake ones: taken, replaced, taken over, ended."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.fakes.shim import until
from tests.fakes.tasks import FakeShims
from zos_cri.errors import NotFound, Unavailable
from zos_cri.shim import bundle, pool
from zos_cri.shim.handler import Handler
from zos_cri.shim.pool import SURPLUS, WarmShims

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HANDLERS = {"runc": Handler(name="runc"), "other": Handler(name="other", runtime="crun")}


class Fixture:
    def __init__(self, tmp_path: Path) -> None:
        self.shims = FakeShims(tmp_path / "bundles")
        self.pools: list[WarmShims] = []

    def pool(self, *, rest: float = 0.0, surplus_time: float = 60.0, **sizes: int) -> WarmShims:
        made = WarmShims(
            self.shims,  # type: ignore[arg-type]
            sizes,
            HANDLERS,
            rest=rest,
            surplus_time=surplus_time,
        )
        self.pools.append(made)
        return made

    def hold_starts(self) -> asyncio.Event:
        """Starts of shims wait from now on until the event is set."""
        gate, start = asyncio.Event(), self.shims.start

        async def slow(*arguments: object, **fields: object) -> object:
            await gate.wait()
            return await start(*arguments, **fields)  # type: ignore[arg-type]

        self.shims.start = slow  # type: ignore[method-assign, assignment]
        return gate

    async def filled(self, **sizes: int) -> WarmShims:
        made = self.pool(**sizes)
        made.start()
        await until(lambda: made.count() == {name: size for name, size in sizes.items() if size})
        return made


@pytest.fixture
async def fixture(tmp_path: Path) -> AsyncIterator[Fixture]:
    fixture = Fixture(tmp_path)
    yield fixture
    for made in fixture.pools:
        await made.close()


async def test_as_many_as_are_wanted_are_started_and_one_that_is_taken_is_replaced(
    fixture: Fixture,
) -> None:
    warm = await fixture.filled(runc=2, other=1)
    first = set(warm.groups)
    taken = warm.take("runc")
    assert taken in first
    assert fixture.shims.shims[taken].handler == HANDLERS["runc"]
    await until(lambda: warm.count() == {"runc": 2, "other": 1})
    assert taken not in warm.groups
    assert taken in fixture.shims.shims
    await warm.close()
    assert set(fixture.shims.shims) == {taken}


async def test_a_burst_and_a_handler_without_any_get_none(fixture: Fixture) -> None:
    warm = await fixture.filled(runc=1, other=0)
    with warm.making():
        assert warm.take("runc")
        assert warm.take("runc") is None
        assert warm.take("other") is None


async def test_none_is_started_while_a_pod_is_made(fixture: Fixture) -> None:
    warm = await fixture.filled(runc=1)
    fixture.shims.calls.clear()
    with warm.making():
        with warm.making():
            warm.take("runc")
        for _ in range(100):
            await asyncio.sleep(0)
        assert fixture.shims.calls == []
    await until(lambda: warm.count() == {"runc": 1})


async def test_one_whose_pod_is_not_made_is_kept(fixture: Fixture) -> None:
    warm = await fixture.filled(runc=1)
    taken = warm.take("runc")
    assert taken is not None
    warm.give_back(taken)
    warm.give_back("0" * 64)  # never one of these
    assert warm.take("runc") == taken


async def test_some_more_are_kept_of_those_that_pods_have_left(fixture: Fixture) -> None:
    warm = await fixture.filled(runc=1)
    taken = warm.take("runc")
    await until(lambda: warm.count() == {"runc": 1})
    more = [f"left{n}" for n in range(SURPLUS - 2)]
    for group in (*more, "cold"):
        fixture.shims.add(group, HANDLERS["runc"])
    fixture.shims.add("other", HANDLERS["other"])
    assert taken
    assert [await warm.keep(group) for group in (taken, *more)] == [True] * (SURPLUS - 1)
    assert [await warm.keep(group) for group in ("cold", "other", "none")] == [False] * 3
    assert warm.groups[1:] == [taken, *more]
    starts = [method for method, _ in fixture.shims.calls].count("start")
    assert warm.take("runc")
    for _ in range(100):
        await asyncio.sleep(0)
    assert [method for method, _ in fixture.shims.calls].count("start") == starts


async def test_one_that_is_being_started_counts_among_them(fixture: Fixture) -> None:
    gate = fixture.hold_starts()
    warm = fixture.pool(runc=1)
    warm.start()
    await until(lambda: warm._starting)
    assert warm.take("runc") is None
    left = [f"left{n}" for n in range(SURPLUS)]
    for group in left:
        fixture.shims.add(group, HANDLERS["runc"])
    assert [await warm.keep(group) for group in left] == [True] * (SURPLUS - 1) + [False]
    warm.give_back(left[-1])
    gate.set()
    await until(lambda: ("stop", left[-1]) in fixture.shims.calls)
    assert len(warm.groups) == SURPLUS
    assert set(left[:-1]) < set(warm.groups)


async def test_none_is_started_where_pods_have_left_enough_while_it_waited(
    fixture: Fixture,
) -> None:
    """Another one would be beyond what may wait, and a stray for whoever counts them."""
    warm = await fixture.filled(runc=1)
    fixture.shims.calls.clear()
    with warm.making():
        assert warm.take("runc")
        for _ in range(100):
            await asyncio.sleep(0)  # it waits for the pod to be made
        for group in "ab":
            fixture.shims.add(group, HANDLERS["runc"])
            assert await warm.keep(group)
    for _ in range(100):
        await asyncio.sleep(0)
    assert warm.groups == ["a", "b"]
    assert fixture.shims.calls == []


async def test_those_beyond_what_is_wanted_end_when_no_pod_has_come_for_a_while(
    fixture: Fixture,
) -> None:
    warm = fixture.pool(surplus_time=0.05, runc=2)
    for group in "abc":
        fixture.shims.add(group, HANDLERS["runc"])
        assert await warm.keep(group)
    warm.start()
    await until(lambda: set(fixture.shims.shims) == {"b", "c"})
    assert warm.groups == ["b", "c"]
    assert fixture.shims.calls == [("stop", "a")]


async def test_one_that_has_died_is_replaced_and_its_bundle_goes(fixture: Fixture) -> None:
    warm = await fixture.filled(runc=2)
    dead, other = warm.groups
    fixture.shims.lose(dead)
    assert warm.lost(dead)
    assert not warm.lost("0" * 64)
    await until(lambda: warm.count() == {"runc": 2})
    assert ("stop", dead) in fixture.shims.calls
    assert other in warm.groups


async def test_one_whose_death_nobody_has_told_of_is_not_handed_out(fixture: Fixture) -> None:
    warm = await fixture.filled(runc=2)
    dead, other = warm.groups
    fixture.shims.shims[dead].die()
    assert warm.take("runc") == other
    assert warm.lost(dead)
    await until(lambda: ("stop", dead) in fixture.shims.calls)


async def test_what_can_not_be_started_is_tried_again(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "RETRY", 0.01)
    fixture.shims.fail("start", NotFound("no such shim"))
    fixture.shims.fail("start", Unavailable("not now"))
    await fixture.filled(runc=1)
    failed = [group for method, group in fixture.shims.calls if method == "start"][:2]
    assert [("stop", group) in fixture.shims.calls for group in failed] == [True, True]


async def test_those_of_a_killed_server_are_taken_over_as_far_as_they_are_wanted(
    fixture: Fixture,
) -> None:
    for group in "abc":
        fixture.shims.add(group, HANDLERS["runc"])
    warm = fixture.pool(runc=2)
    assert await warm.adopt(["a", "b", "c"]) == {"a", "b"}
    assert warm.groups == ["a", "b"]
    warm.start()
    assert [call for call in fixture.shims.calls if call[0] == "start"] == []


async def test_one_that_a_pod_has_left_is_not_taken_over_as_well(fixture: Fixture) -> None:
    """As when what a killed server had begun is undone before strays are looked for."""
    for group in "ab":
        fixture.shims.add(group, HANDLERS["runc"])
    warm = fixture.pool(runc=1)
    assert await warm.keep("b")
    assert await warm.keep("a")
    assert await warm.adopt("ab") == {"a", "b"}
    assert warm.groups == ["b", "a"]


async def test_only_a_shim_that_is_as_a_new_one_would_be_is_taken_over(fixture: Fixture) -> None:
    shims = fixture.shims
    shims.add("container", HANDLERS["runc"])
    path = bundle.create(shims.bundles, "1" * 64, group="container")
    annotations = {bundle.GROUP_ANNOTATION: "container"}
    bundle.write_config(path, {"process": {}, "annotations": annotations})
    shims.tasks.add("1" * 64)
    shims.add("changed", Handler(name="runc", runtime="crun"))
    shims.add("unwanted", HANDLERS["other"])
    shims.add("unknown", Handler(name="gone"))
    shims.add("upgraded", HANDLERS["runc"])
    shims.outdated.add("upgraded")
    shims.add("dead", HANDLERS["runc"]).die()
    strays = [*shims.shims, "never started"]
    assert await fixture.pool(runc=9).adopt(strays) == set()


async def test_a_shim_that_does_not_answer_is_not_taken_over(fixture: Fixture) -> None:
    fixture.shims.add("a", HANDLERS["runc"])
    fixture.shims.tasks.fail("state", Unavailable("hangs"))
    assert await fixture.pool(runc=1).adopt(["a"]) == set()


async def test_one_that_is_being_started_at_the_end_is_ended_too(fixture: Fixture) -> None:
    fixture.hold_starts()
    warm = fixture.pool(runc=1)
    warm.start()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.01):
            await until(lambda: warm.groups)
    (begun,) = warm._starting.values()
    assert begun
    await warm.close()
    assert ("stop", begun) in fixture.shims.calls


async def test_an_end_that_fails_holds_up_no_other(fixture: Fixture) -> None:
    warm = await fixture.filled(runc=2)
    fixture.shims.fail("stop", Unavailable("stuck"))
    await warm.close()
    assert [method for method, _ in fixture.shims.calls].count("stop") == 2
