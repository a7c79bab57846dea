"""What records say should be there."""

from __future__ import annotations

from typing import Any

import pytest

from zos_cri.audit.expected import Records, needs
from zos_cri.audit.model import TEMPORARY, Kind, Thing, Verdict
from zos_cri.store.lifecycle import ContainerState, SandboxState
from zos_cri.store.model import (
    ContainerMeta,
    ContainerStatus,
    NotedExit,
    SandboxMeta,
    SandboxStatus,
    Stdio,
)

POD = {Kind.SHIM, Kind.BUNDLE, Kind.SANDBOX, Kind.NAMESPACE, Kind.NETWORK}
CONTAINER = {Kind.BUNDLE, Kind.PROCESS, Kind.CGROUP, Kind.FIFO, Kind.LOG}


def sandbox(
    state: SandboxState, *, shim: str = "", **status: Any
) -> tuple[SandboxMeta, SandboxStatus]:
    meta = SandboxMeta(
        id="p",
        name="p",
        config=b"",
        handler="runc",
        created_at=1,
        netns="/p/net",
        cgroup="/pods/p",
        shim=shim,
    )
    return meta, SandboxStatus(state=state, **status)


def container(
    state: ContainerState, *, group: str = "p", **status: Any
) -> tuple[ContainerMeta, ContainerStatus]:
    meta = ContainerMeta(
        id="c",
        ns="p",
        name="c",
        group=group,
        handler="runc",
        created_at=1,
        bundle="/b/c",
        cgroup="/pods/p/c",
        stdio=Stdio(stdout="/run/fifo/c/stdout"),
        owner="cri",
    )
    return meta, ContainerStatus(state=state, **status)


def missing(records: Records) -> set[tuple[Kind, str]]:
    return {(f.kind, f.id) for f in needs(records).difference([]) if f.verdict is Verdict.MISSING}


def strays(records: Records, id_: str) -> set[Kind]:
    things = [Thing(kind, id_, "/x") for kind in Kind]
    return {f.kind for f in needs(records).difference(things) if f.verdict is Verdict.STRAY}


def test_a_ready_pod() -> None:
    records = Records((sandbox(SandboxState.READY),))
    assert missing(records) == {(kind, "p") for kind in POD}
    assert strays(records, "p") == set(Kind) - POD - {Kind.MOUNT, Kind.ADDRESS}


def test_a_pod_whose_shim_is_not_named_for_it() -> None:
    records = Records((sandbox(SandboxState.READY, shim="s"),))
    of_shim = {Kind.SHIM, Kind.BUNDLE}
    assert missing(records) == {(kind, "p") for kind in POD - of_shim} | {
        (kind, "s") for kind in of_shim
    }
    assert strays(records, "s") == set(Kind) - of_shim
    assert strays(Records((sandbox(SandboxState.STOPPING, shim="s"),)), "s") == set()
    stopped = sandbox(SandboxState.NOT_READY, shim="s", network_released=True)
    ended = container(ContainerState.EXITED, group="s")
    assert strays(Records((stopped,), (ended,)), "s") == set(Kind)


def test_a_stopped_pod_holds_nothing() -> None:
    records = Records((sandbox(SandboxState.NOT_READY, network_released=True),))
    assert missing(records) == set()
    assert strays(records, "p") == set(Kind)


@pytest.mark.parametrize(
    "state", [SandboxState.CREATING, SandboxState.STOPPING, SandboxState.REMOVING]
)
def test_of_a_changing_pod_nothing_is_said(state: SandboxState) -> None:
    records = Records((sandbox(state),))
    assert missing(records) == set()
    assert strays(records, "p") == set()


def test_a_lost_pod_may_hold_things_until_it_is_stopped() -> None:
    assert strays(Records((sandbox(SandboxState.NOT_READY),)), "p") == set()


def test_a_running_container() -> None:
    records = Records((sandbox(SandboxState.READY),), (container(ContainerState.RUNNING, pid=7),))
    assert {id_kind for id_kind in missing(records) if id_kind[1] == "c"} == {
        (kind, "c") for kind in CONTAINER
    }
    assert strays(records, "c") == {
        *(Kind.SHIM, Kind.SANDBOX, Kind.NAMESPACE, Kind.NETWORK, Kind.ADDRESS, Kind.SOCKET)
    }


def test_an_exited_container_keeps_its_files_only() -> None:
    records = Records((sandbox(SandboxState.READY),), (container(ContainerState.EXITED),))
    assert not any(id_ == "c" for _, id_ in missing(records))
    assert strays(records, "c") == set(Kind) - {Kind.BUNDLE, Kind.LAYER, Kind.FIFO, Kind.LOG}


def test_of_an_exit_that_is_being_recorded_nothing_is_said() -> None:
    noted = container(ContainerState.RUNNING, pid=7, noted_exit=NotedExit(0, 1))
    records = Records((sandbox(SandboxState.READY),), (noted,))
    assert strays(records, "c") == set()
    assert not any(id_ == "c" for _, id_ in missing(records))


def test_a_container_with_a_shim_of_its_own() -> None:
    records = Records((), (container(ContainerState.RUNNING, group="c", pid=7),))
    assert (Kind.SHIM, "c") in missing(records)
    records = Records((), (container(ContainerState.EXITED, group="c"),))
    assert Kind.SHIM not in strays(records, "c")


def test_shims_mount_for_a_moment_while_containers_change() -> None:
    changing = Records((), (container(ContainerState.STARTING),))
    assert Kind.MOUNT not in strays(changing, TEMPORARY)
    assert Kind.MOUNT in strays(Records(), TEMPORARY)


def test_damaged_records_may_want_anything() -> None:
    assert strays(Records(damaged=("x",)), "x") == set()


def test_where_to_look() -> None:
    records = Records((sandbox(SandboxState.READY),), (container(ContainerState.RUNNING, pid=7),))
    assert records.pids() == {"c": 7}
    assert records.cgroups() == {"c": "/pods/p/c"}
    assert records.cgroup_parents() == {"/pods/p"}
