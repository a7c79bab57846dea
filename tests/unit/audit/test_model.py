"""The difference of what is there and what should be."""

from __future__ import annotations

from zos_cri.audit.model import Finding, Kind, Needs, Thing, Verdict, differs, lasting, removable


def thing(kind: Kind, id_: str, **fields: object) -> Thing:
    return Thing(kind, id_, f"/{kind}/{id_}", **fields)  # type: ignore[arg-type]


def test_strays_and_what_is_missing() -> None:
    needs = Needs()
    needs.know("a", "running")
    needs.must(Kind.BUNDLE, "a", "/bundle/a")
    needs.must(Kind.SHIM, "a", "pid 3")
    needs.may("a", Kind.LAYER)
    found = needs.difference(
        [
            thing(Kind.BUNDLE, "a"),
            thing(Kind.LAYER, "a"),
            thing(Kind.FIFO, "a"),
            thing(Kind.FIFO, "b"),
        ]
    )
    assert [(f.verdict, f.kind, f.id, f.why, f.orphan) for f in found] == [
        (Verdict.MISSING, Kind.SHIM, "a", "its record says running", False),
        (Verdict.STRAY, Kind.FIFO, "a", "its record says running", False),
        (Verdict.STRAY, Kind.FIFO, "b", "no record names it", True),
    ]


def test_of_what_changes_nothing_is_said() -> None:
    needs = Needs()
    needs.know("a", "creating")
    needs.must(Kind.SHIM, "a")
    needs.free("a")
    assert needs.difference([thing(Kind.MOUNT, "a")]) == []


def test_what_may_be_anothers_is_listed_and_not_counted() -> None:
    (found,) = Needs().difference([thing(Kind.CGROUP, "a", proved=False)])
    assert found.verdict is Verdict.UNPROVED
    assert not differs([found])
    assert removable([found]) == []


def test_only_what_was_found_twice_lasts() -> None:
    stray = Finding(Verdict.STRAY, Kind.FIFO, "a", "/a")
    gone = Finding(Verdict.STRAY, Kind.FIFO, "b", "/b")
    new = Finding(Verdict.STRAY, Kind.FIFO, "c", "/c")
    assert lasting([stray, gone], [stray, new]) == [stray]


def test_the_remains_of_what_lives_stay() -> None:
    needs = Needs()
    found = needs.difference(
        [
            thing(Kind.CGROUP, "c", live=True, group="p"),
            thing(Kind.MOUNT, "c", group="p"),
            thing(Kind.NETWORK, "p"),
            thing(Kind.SHIM, "q", live=True),
            thing(Kind.LAYER, "d", group="q"),
            thing(Kind.BUNDLE, "e"),
            thing(Kind.MOUNT, "e"),
        ]
    )
    assert [(f.kind, f.id) for f in removable(found)] == [(Kind.MOUNT, "e"), (Kind.BUNDLE, "e")]
