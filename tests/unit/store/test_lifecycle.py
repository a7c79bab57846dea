from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zos_cri.errors import FailedPrecondition
from zos_cri.store.lifecycle import (
    CONTAINER,
    SANDBOX,
    ContainerEvent,
    ContainerState,
    SandboxEvent,
    SandboxState,
    advance,
    allows,
)

TABLES = [(SANDBOX, SandboxState, SandboxEvent), (CONTAINER, ContainerState, ContainerEvent)]
SANDBOX_STEPS = """
    creating: created>ready create_failed>removing remove>removing
    ready: stop>stopping lost>not_ready
    not_ready: stop>stopping lost>not_ready remove>removing
    stopping: stop>stopping stopped>not_ready lost>stopping
    removing: remove>removing lost>removing
"""
CONTAINER_STEPS = """
    creating: created>created remove>removing
    created: start>starting lost>exited remove>removing
    starting: started>running start_failed>exited start_undone>created exited>exited lost>exited
    running: exited>exited lost>unknown
    unknown: found>running exited>exited lost>unknown
    exited: remove>removing
    removing: remove>removing
"""


def parsed(text):
    steps = {}
    for line in text.split("\n"):
        state, _, events = line.strip().partition(":")
        for step in events.split():
            event, _, following = step.partition(">")
            steps[state, event] = following
    return steps


@pytest.mark.parametrize(
    ("kind", "steps"),
    list(zip(TABLES, (parsed(SANDBOX_STEPS), parsed(CONTAINER_STEPS)), strict=True)),
    ids=("sandbox", "container"),
)
def test_every_step_there_is_and_every_other_one_refused(kind, steps):
    table, states, events = kind
    for state in states:
        for event in events:
            following = steps.get((state.value, event.value))
            assert allows(table, state, event) == (following is not None)
            if following is not None:
                assert advance(table, state, event) == following
            else:
                with pytest.raises(
                    FailedPrecondition, match=f"^{event} is not possible while {state}$"
                ):
                    advance(table, state, event)


@pytest.mark.parametrize(("table", "states", "events"), TABLES, ids=("sandbox", "container"))
def test_every_state_is_entered_and_every_event_is_of_use(table, states, events):
    assert set(table) == set(states)
    entered = {to for row in table.values() for to in row.values()}
    assert entered | {states.CREATING} == set(states)
    assert {event for row in table.values() for event in row} == set(events)


@given(st.lists(st.sampled_from(SandboxEvent)))
def test_a_sandbox_can_be_brought_to_its_end_from_wherever_a_walk_leads(events):
    state = walk(SANDBOX, SandboxState.CREATING, events)
    for event in (SandboxEvent.STOP, SandboxEvent.STOPPED, SandboxEvent.REMOVE):
        if allows(SANDBOX, state, event):
            state = advance(SANDBOX, state, event)
    assert state is SandboxState.REMOVING


@given(st.lists(st.sampled_from(ContainerEvent)))
def test_a_container_runs_once_and_can_be_removed_from_wherever_a_walk_leads(events):
    state = ContainerState.CREATING
    ended = False
    for event in events:
        if not allows(CONTAINER, state, event):
            continue
        state = advance(CONTAINER, state, event)
        assert not (ended and state in (ContainerState.STARTING, ContainerState.RUNNING))
        ended = ended or state is ContainerState.EXITED
    for event in (ContainerEvent.EXITED, ContainerEvent.REMOVE):
        if allows(CONTAINER, state, event):
            state = advance(CONTAINER, state, event)
    assert state is ContainerState.REMOVING


@given(st.lists(st.sampled_from(ContainerEvent)))
def test_what_is_being_removed_never_comes_back(events):
    assert walk(CONTAINER, ContainerState.REMOVING, events) is ContainerState.REMOVING


def walk(table, state, events):
    for event in events:
        if allows(table, state, event):
            state = advance(table, state, event)
    return state
