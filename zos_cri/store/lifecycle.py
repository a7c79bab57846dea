"""The lifecycles of sandboxes and containers, as tables.

Rule 1: whatever decides on a change of state stands in these tables. Rule 2: a missing entry *is*
the error: `advance` raises FailedPrecondition with the state and the event that don't go together.

docs/lifecycle.md is drawn from the tables by hack/lifecycle-docs; a test holds the two together.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, TypeVar

from zos_cri.errors import FailedPrecondition

if TYPE_CHECKING:
    from collections.abc import Mapping


class SandboxState(enum.StrEnum):
    """Where a pod sandbox stands."""

    CREATING = "creating"  # the intent is recorded; parts of the sandbox may exist
    READY = "ready"
    NOT_READY = "not_ready"
    STOPPING = "stopping"  # what can be released is being released
    REMOVING = "removing"


class SandboxEvent(enum.StrEnum):
    """What can happen to a pod sandbox."""

    CREATED = "created"
    CREATE_FAILED = "create_failed"
    STOP = "stop"
    STOPPED = "stopped"
    LOST = "lost"  # its shim, its namespaces or the whole host went away
    REMOVE = "remove"


class ContainerState(enum.StrEnum):
    """Where a container stands."""

    CREATING = "creating"  # the intent is recorded; parts of the bundle may exist
    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    EXITED = "exited"
    UNKNOWN = "unknown"  # its shim lives but doesn't answer: nobody can tell
    REMOVING = "removing"


class ContainerEvent(enum.StrEnum):
    """What can happen to a container."""

    CREATED = "created"
    START = "start"
    STARTED = "started"
    START_FAILED = "start_failed"
    START_UNDONE = "start_undone"  # the server died before the task was started: as if never asked
    EXITED = "exited"
    LOST = "lost"
    FOUND = "found"  # an unknown one answers again
    REMOVE = "remove"


_S = SandboxState
_SE = SandboxEvent
SANDBOX: Final[Mapping[SandboxState, Mapping[SandboxEvent, SandboxState]]] = {
    _S.CREATING: {
        _SE.CREATED: _S.READY,
        _SE.CREATE_FAILED: _S.REMOVING,
        _SE.REMOVE: _S.REMOVING,
    },
    _S.READY: {_SE.STOP: _S.STOPPING, _SE.LOST: _S.NOT_READY},
    # A sandbox that isn't ready may still hold an address or a mount, so it can be stopped again.
    _S.NOT_READY: {
        _SE.STOP: _S.STOPPING,
        _SE.LOST: _S.NOT_READY,
        _SE.REMOVE: _S.REMOVING,
    },
    _S.STOPPING: {
        _SE.STOP: _S.STOPPING,
        _SE.STOPPED: _S.NOT_READY,
        _SE.LOST: _S.STOPPING,
    },
    _S.REMOVING: {_SE.REMOVE: _S.REMOVING, _SE.LOST: _S.REMOVING},
}

_C = ContainerState
_CE = ContainerEvent
CONTAINER: Final[Mapping[ContainerState, Mapping[ContainerEvent, ContainerState]]] = {
    _C.CREATING: {_CE.CREATED: _C.CREATED, _CE.REMOVE: _C.REMOVING},
    _C.CREATED: {_CE.START: _C.STARTING, _CE.LOST: _C.EXITED, _CE.REMOVE: _C.REMOVING},
    _C.STARTING: {
        _CE.STARTED: _C.RUNNING,
        _CE.START_FAILED: _C.EXITED,
        _CE.START_UNDONE: _C.CREATED,
        _CE.EXITED: _C.EXITED,
        _CE.LOST: _C.EXITED,
    },
    _C.RUNNING: {_CE.EXITED: _C.EXITED, _CE.LOST: _C.UNKNOWN},
    _C.UNKNOWN: {_CE.FOUND: _C.RUNNING, _CE.EXITED: _C.EXITED, _CE.LOST: _C.UNKNOWN},
    _C.EXITED: {_CE.REMOVE: _C.REMOVING},
    _C.REMOVING: {_CE.REMOVE: _C.REMOVING},
}

State = TypeVar("State", bound=enum.StrEnum)
Event = TypeVar("Event", bound=enum.StrEnum)


def advance(table: Mapping[State, Mapping[Event, State]], state: State, event: Event) -> State:
    """The state that follows.

    Raises:
        FailedPrecondition: the table has no entry for this event in this state.
    """
    try:
        return table[state][event]
    except KeyError:
        raise FailedPrecondition(f"{event} is not possible while {state}") from None


def allows(table: Mapping[State, Mapping[Event, State]], state: State, event: Event) -> bool:
    """Whether the table has an entry for this event in this state."""
    return event in table[state]
