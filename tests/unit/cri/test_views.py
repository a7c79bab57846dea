from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tests.fakes.pods import pod_config
from zos_cri._pb import cri_pb2 as pb
from zos_cri.cri.list_containers import list_containers
from zos_cri.cri.list_pod_sandbox import list_pod_sandbox
from zos_cri.cri.views import OWNER, CriContainer, Views
from zos_cri.store.db import Record
from zos_cri.store.lifecycle import ContainerState, SandboxState
from zos_cri.store.model import ContainerMeta, ContainerStatus, SandboxMeta, SandboxStatus

CONFIG = pb.ContainerConfig(
    metadata=pb.ContainerMetadata(name="main", attempt=2),
    image=pb.ImageSpec(image="busybox", user_specified_image="busybox:1"),
    labels={"app": "web", "tier": "front"},
    annotations={"note": "kept\nas it is"},
    linux=pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(cpu_shares=7)),
    mounts=[pb.Mount(container_path="/x", host_path="/y")],
)


def container(id_="a" * 64, ns="p" * 64, owner=OWNER, config=CONFIG, **status):
    extra = CriContainer(
        config=config.SerializeToString(),
        image_id="sha256:1",
        image_ref="busybox",
        log_path="/log",
        stop_signal=3,
    )
    meta = ContainerMeta(
        id=id_,
        ns=ns,
        name=id_,
        group=ns,
        handler="runc",
        created_at=5,
        bundle="/b",
        cgroup="",
        owner=owner,
        extra=msgspec.msgpack.encode(extra),
    )
    return Record(meta, ContainerStatus(**{"state": ContainerState.RUNNING, **status}))


def sandbox(id_="p" * 64, state=SandboxState.READY, ips=(), **fields):
    config = pod_config(labels={"app": "web"}, annotations={"a": "b"}, **fields)
    meta = SandboxMeta(
        id=id_, name=id_, config=config.SerializeToString(), handler="runc", created_at=9
    )
    return Record(meta, SandboxStatus(state=state, ips=ips))


@pytest.fixture
def views():
    return Views()


def test_a_container_as_it_was_given(views):
    seen = views.container(container())
    assert (seen.id, seen.pod_sandbox_id) == ("a" * 64, "p" * 64)
    assert seen.metadata == CONFIG.metadata
    assert (seen.labels, seen.annotations) == (CONFIG.labels, CONFIG.annotations)
    assert (seen.image_ref, seen.image_id, seen.created_at) == ("sha256:1", "sha256:1", 5)


@pytest.mark.parametrize(
    ("state", "seen"),
    [
        (ContainerState.CREATED, pb.CONTAINER_CREATED),
        (ContainerState.STARTING, pb.CONTAINER_CREATED),
        (ContainerState.RUNNING, pb.CONTAINER_RUNNING),
        (ContainerState.EXITED, pb.CONTAINER_EXITED),
        (ContainerState.UNKNOWN, pb.CONTAINER_UNKNOWN),
        (ContainerState.REMOVING, pb.CONTAINER_EXITED),
    ],
    ids=str,
)
def test_states(views, state, seen):
    assert views.container(container(state=state)).state == seen
    assert views.container_status(container(state=state)).state == seen


def test_a_containers_status(views):
    seen = views.container_status(
        container(started_at=6, finished_at=7, exit_code=3, reason="Error", message="m")
    )
    assert (seen.started_at, seen.finished_at, seen.exit_code) == (6, 7, 3)
    assert (seen.reason, seen.message, seen.log_path) == ("Error", "m", "/log")
    assert seen.image.image == "busybox"
    assert seen.image.user_specified_image == "busybox:1"
    assert seen.mounts == CONFIG.mounts
    assert seen.resources.linux.cpu_shares == 7
    assert seen.stop_signal == 3


def test_the_last_update_is_what_is_reported(views):
    updated = pb.LinuxContainerResources(cpu_shares=9).SerializeToString()
    assert views.container_status(container(resources=updated)).resources.linux.cpu_shares == 9


def test_a_pod_and_its_status(views):
    record = sandbox(ips=("10.0.0.7", "fd00::7"), hostname="h")
    seen = views.sandbox(record)
    assert (seen.id, seen.state, seen.created_at) == ("p" * 64, pb.SANDBOX_READY, 9)
    assert (seen.labels, seen.annotations) == ({"app": "web"}, {"a": "b"})
    status = views.sandbox_status(record)
    assert status.network.ip == "10.0.0.7"
    assert [ip.ip for ip in status.network.additional_ips] == ["fd00::7"]
    assert status.linux.namespaces.options.pid == pb.NamespaceMode.CONTAINER
    assert status.runtime_handler == "runc"
    assert views.sandbox_status(sandbox()).network.ip == ""


@pytest.mark.parametrize("state", [s for s in SandboxState if s is not SandboxState.READY])
def test_every_other_pod_is_not_ready(views, state):
    assert views.sandbox(sandbox(state=state)).state == pb.SANDBOX_NOTREADY


def test_configurations_are_parsed_once_and_forgotten(views):
    record, pod = container(), sandbox()
    assert views.parts(record) is views.parts(record)
    assert views.config(pod.meta) is views.config(pod.meta)
    views.forget(record.meta.id)
    views.forget(pod.meta.id)
    views.forget("never seen")
    assert not views._containers
    assert not views._sandboxes


# ---- filters


def running(value):
    return pb.ContainerStateValue(state=value)


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        ({}, "abc"),
        ({"id": "a"}, "a"),
        ({"id": "a" * 64}, "a"),
        ({"id": "f"}, ""),
        ({"pod_sandbox_id": "q"}, "c"),
        ({"state": running(pb.CONTAINER_CREATED)}, "b"),
        ({"state": running(pb.CONTAINER_RUNNING)}, "ac"),
        ({"label_selector": {"app": "web"}}, "abc"),
        ({"label_selector": {"app": "web", "tier": "back"}}, ""),
        ({"label_selector": {"absent": ""}}, ""),
        ({"id": "a", "pod_sandbox_id": "q"}, ""),
    ],
)
async def test_the_filter_of_containers(views, wanted, ids):
    records = [
        container("a" * 64),
        container("b" * 64, state=ContainerState.CREATED),
        container("c" * 64, ns="q" * 64),
        container("d" * 64, state=ContainerState.CREATING),
        container("e" * 64, owner="module"),
    ]
    services: Any = SimpleNamespace(views=views, containers=records)
    request = pb.ListContainersRequest(filter=pb.ContainerFilter(**wanted))
    answer = pb.ListContainersResponse.FromString(await list_containers(services, request))
    assert "".join(each.id[0] for each in answer.containers) == ids


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        ({}, "ab"),
        ({"id": "b"}, "b"),
        ({"state": pb.PodSandboxStateValue(state=pb.SANDBOX_READY)}, "a"),
        ({"state": pb.PodSandboxStateValue(state=pb.SANDBOX_NOTREADY)}, "b"),
        ({"label_selector": {"app": "web"}}, "ab"),
        ({"label_selector": {"app": "db"}}, ""),
    ],
)
async def test_the_filter_of_pods(views, wanted, ids):
    records = [
        sandbox("a" * 64),
        sandbox("b" * 64, state=SandboxState.STOPPING),
        sandbox("c" * 64, state=SandboxState.CREATING),
    ]
    services: Any = SimpleNamespace(views=views, sandboxes=SimpleNamespace(table=records))
    request = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(**wanted))
    answer = pb.ListPodSandboxResponse.FromString(await list_pod_sandbox(services, request))
    assert "".join(each.id[0] for each in answer.items) == ids


def test_nothing_is_held_for_a_record_that_is_gone(views):
    record = container()
    views.statuses.get(record)
    views.follow(None, record)
    views.follow(record, record)
    assert len(views.statuses) == 1
    views.follow(record, None)
    assert len(views.statuses) == 0
    assert not views._containers
