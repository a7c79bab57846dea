"""Two rounds of looking; strays are removed, others are not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.unit.audit.test_expected import container
from zos_cri.audit import check
from zos_cri.audit.expected import Records
from zos_cri.audit.model import Finding, Kind, Thing, Verdict
from zos_cri.errors import Unavailable
from zos_cri.linux.cgroup import Cgroups
from zos_cri.store.lifecycle import ContainerState

if TYPE_CHECKING:
    from pathlib import Path


class Looks:
    """A look that sees something else each time."""

    warm = 1

    def __init__(self, *things: list[Thing]) -> None:
        self._things = list(things)

    def things(self, _: Records) -> list[Thing]:
        return self._things.pop(0)


class Hands:
    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[tuple[str, str]] = []
        self._error = error

    async def _do(self, what: str, id_: str) -> None:
        self.calls.append((what, id_))
        if self._error is not None:
            raise self._error

    async def detach(self, pod_id: str) -> None:
        await self._do("detach", pod_id)

    async def release(self, container_id: str) -> None:
        await self._do("release", container_id)

    async def forget(self, container_id: str) -> None:
        await self._do("forget", container_id)


async def no_records() -> Records:
    return Records()


async def audit(*things: list[Thing]) -> list[Finding]:
    looks: Any = Looks(*things)
    return await check.audit(looks, no_records, settle=0)


async def test_what_is_clean_is_looked_at_once() -> None:
    assert await audit([]) == []


async def test_what_was_only_passing_is_not_told() -> None:
    passing, stray = (Thing(Kind.FIFO, id_, f"/{id_}") for id_ in "ab")
    found = await audit([passing, stray], [stray])
    assert [f.id for f in found] == ["b"]


async def test_shims_that_are_kept_warm_are_no_strays() -> None:
    def shim(id_: str) -> list[Thing]:
        live = Thing(Kind.SHIM, id_, "pid 7", live=True)
        return [live, Thing(Kind.BUNDLE, id_, f"/{id_}")]

    assert await audit(shim("a")) == []
    both = [*shim("a"), *shim("b")]  # one is wanted
    assert [f.id for f in await audit(both, both)] == ["b", "b"]
    used = [*shim("a"), Thing(Kind.BUNDLE, "c", "/c", group="a")]
    assert {f.id for f in await audit(used, used)} == {"a", "c"}


async def test_a_shim_is_kept_warm_after_containers_that_have_ended() -> None:
    things = [
        Thing(Kind.SHIM, "a", "pid 7", live=True),
        Thing(Kind.BUNDLE, "a", "/a"),
        Thing(Kind.BUNDLE, "c", "/c", group="a"),
    ]
    looks: Any = Looks(things)

    async def records() -> Records:
        return Records((), (container(ContainerState.EXITED, group="a"),))

    assert await check.audit(looks, records, settle=0) == []


def findings(*things: tuple[Kind, str, Path]) -> list[Finding]:
    return [Finding(Verdict.STRAY, kind, id_, str(path)) for kind, id_, path in things]


async def test_strays_go_in_their_order(tmp_path: Path) -> None:
    for name in ("fifo", "bundle", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "fifo/stdout").touch()
    (tmp_path / "socket").touch()
    hands = Hands()
    done = await check.fix(
        findings(
            (Kind.SOCKET, "s", tmp_path / "socket"),
            (Kind.LAYER, "a", tmp_path),
            (Kind.BUNDLE, "a", tmp_path / "bundle"),
            (Kind.BUNDLE, "hidden", tmp_path / ".hidden"),
            (Kind.FIFO, "a", tmp_path / "fifo"),
            (Kind.LOG, "a", tmp_path),
            (Kind.NETWORK, "p", tmp_path),
        ),
        hands,
        Cgroups(),
    )
    assert done.failed == ()
    assert [f.kind for f in done.removed][:2] == [Kind.NETWORK, Kind.LOG]
    assert hands.calls == [("detach", "p"), ("forget", "a"), ("release", "a")]
    assert list(tmp_path.iterdir()) == []


async def test_one_that_stays_holds_up_no_other(tmp_path: Path) -> None:
    (tmp_path / "fifo").mkdir()
    done = await check.fix(
        findings((Kind.NETWORK, "p", tmp_path), (Kind.FIFO, "a", tmp_path / "fifo")),
        Hands(Unavailable("no plugin")),
        Cgroups(),
    )
    assert [(f.id, why) for f, why in done.failed] == [("p", "no plugin")]
    assert [f.id for f in done.removed] == ["a"]
    assert not (tmp_path / "fifo").exists()
