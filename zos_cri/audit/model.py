"""What is found, what is needed, and the difference of the two. Pure: no I/O.

A thing belongs to the id of a pod or a container. A record says of each kind of thing whether it
must be there, may be there, or may not; what no record speaks of may not be there.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Container, Iterable


class Kind(enum.StrEnum):
    """Kinds of things, in the order in which strays of them are removed."""

    SHIM = "shim"
    PROCESS = "process"  # a container's first
    TASK = "task"  # what the OCI runtime keeps of a container
    NETWORK = "network"  # what CNI plugins answered, kept for their DEL
    ADDRESS = "address"  # a reservation of host-local's
    NAMESPACE = "namespace"
    MOUNT = "mount"
    CGROUP = "cgroup"
    SANDBOX = "sandbox"  # a pod's directory
    EXEC = "exec"
    LOG = "log"  # a container that the logger writes for
    FIFO = "fifo"
    BUNDLE = "bundle"
    LAYER = "layer"
    SOCKET = "socket"


ORDER: Final = tuple(Kind)
TEMPORARY: Final = "tmp"  # the id of what shims mount for a moment


class Thing(msgspec.Struct, frozen=True):
    """Something that exists.

    Attributes:
        id: of the pod or container that it is of, by its name or content.
        where: its path, or `pid N`.
        live: a process runs in it, or may do so.
        proved: it is of this installation; False where only its name suggests so.
        group: the id of the pod that a container belongs to, "" where it isn't known.
    """

    kind: Kind
    id: str
    where: str
    live: bool = False
    proved: bool = True
    group: str = ""


class Verdict(enum.StrEnum):
    """What is wrong with a thing."""

    STRAY = "stray"  # it is there and should not be
    MISSING = "missing"  # it should be there and is not
    UNPROVED = "unproved"  # it may be a stray of ours, or another's; no difference is counted


class Finding(msgspec.Struct, frozen=True):
    """One difference, as it is reported."""

    verdict: Verdict
    kind: Kind
    id: str
    where: str
    live: bool = False
    why: str = ""
    orphan: bool = False  # there is no record of this id at all
    group: str = ""


class Needs:
    """What the records say should be there."""

    def __init__(self) -> None:
        self._must: dict[tuple[Kind, str], str] = {}
        self._may: set[tuple[Kind, str]] = set()
        self._free: set[str] = set()
        self._states: dict[str, str] = {}

    def know(self, id_: str, state: str) -> None:
        """There is a record of this id, in this state."""
        self._states[id_] = state

    def knows(self, id_: str) -> bool:
        """Whether there is a record of this id."""
        return id_ in self._states

    def must(self, kind: Kind, id_: str, where: str = "") -> None:
        """A thing has to be there; `where` is told where it isn't."""
        self._must[kind, id_] = where
        self._may.add((kind, id_))

    def may(self, id_: str, *kinds: Kind) -> None:
        """Things can be there or not."""
        self._may.update((kind, id_) for kind in kinds)

    def free(self, id_: str) -> None:
        """Everything of this id can be there or not: it is changing, or nobody can tell."""
        self._free.add(id_)

    def difference(self, things: Iterable[Thing]) -> list[Finding]:
        """What is there and should not be, and what is not there and should."""
        found = []
        there = set()
        for thing in things:
            key = (thing.kind, thing.id)
            there.add(key)
            if key in self._may or thing.id in self._free:
                continue
            state = self._states.get(thing.id)
            found.append(
                Finding(
                    Verdict.STRAY if thing.proved else Verdict.UNPROVED,
                    thing.kind,
                    thing.id,
                    thing.where,
                    thing.live,
                    f"its record says {state}" if state else "no record names it",
                    orphan=state is None,
                    group=thing.group,
                )
            )
        for (kind, id_), where in self._must.items():
            if (kind, id_) not in there and id_ not in self._free:
                why = f"its record says {self._states.get(id_, 'so')}"
                found.append(Finding(Verdict.MISSING, kind, id_, where, why=why))
        return sorted(found, key=_place)


def _place(finding: Finding) -> tuple[int, str, str]:
    return ORDER.index(finding.kind), finding.id, finding.where


def spares(things: Iterable[Thing], ended: Container[str] = ()) -> list[str]:
    """The groups that have a living shim, its bundle, and nothing else: kept warm for a pod.

    Args:
        ended: ids of containers that a shim held, and has no more.
    """
    kinds: dict[str, set[Kind]] = {}
    used = set()
    for thing in things:
        kinds.setdefault(thing.id, set()).add(thing.kind)
        if thing.id not in ended:
            used.add(thing.group)
    warm = {Kind.SHIM, Kind.BUNDLE}
    return sorted(id_ for id_, found in kinds.items() if found == warm and id_ not in used)


def lasting(earlier: Iterable[Finding], later: Iterable[Finding]) -> list[Finding]:
    """What was found both times, as it was found the second time."""
    known = {(f.verdict, f.kind, f.id, f.where) for f in earlier}
    return [f for f in later if (f.verdict, f.kind, f.id, f.where) in known]


def removable(findings: Iterable[Finding]) -> list[Finding]:
    """The strays that are proved ours and dead, in the order in which they are to be removed.

    Of a pod or container of which anything lives nothing is dead: its mounts are in use.
    """
    all_ = list(findings)
    living = {id_ for f in all_ if f.live for id_ in (f.id, f.group) if id_}
    strays = [f for f in all_ if f.verdict is Verdict.STRAY and not {f.id, f.group} & living]
    return sorted(strays, key=_place)


def differs(findings: Iterable[Finding]) -> bool:
    """Whether there is a difference that counts."""
    return any(f.verdict is not Verdict.UNPROVED for f in findings)
