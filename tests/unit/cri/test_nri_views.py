from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tests.fakes.pods import pod_config
from tests.unit.cri.test_views import container
from zos_cri._pb import cri_pb2 as cri
from zos_cri._pb import nri_pb2 as pb
from zos_cri.cri.nri_views import NriViews
from zos_cri.cri.views import Views
from zos_cri.store.db import Record
from zos_cri.store.lifecycle import ContainerState, SandboxState
from zos_cri.store.model import SandboxMeta, SandboxStatus

SPEC = {"process": {"args": ["x"]}, "annotations": {"from": "spec", "note": "no"}}


@pytest.fixture
def inits():
    return {}


@pytest.fixture
def views(inits):
    containers: Any = SimpleNamespace(get=inits.get)
    return NriViews(Views(), containers)


def sandbox(**status):
    config = pod_config(labels={"a": "b"}, annotations={"c": "d"})
    config.linux.cgroup_parent = "/pods/x"
    config.linux.overhead.cpu_shares = 3
    meta = SandboxMeta(
        id="p",
        name="pod",
        config=config.SerializeToString(),
        handler="runc",
        created_at=1,
        netns="/run/p/net",
        ipcns="/run/p/ipc",
        cgroup="/pods/x",
    )
    return Record(meta, SandboxStatus(**{"state": SandboxState.READY, **status}))


def test_a_pod(views):
    pod = views.pod(sandbox(ips=("10.0.0.1", "fd00::1")))
    assert (pod.id, pod.name, pod.namespace, pod.uid) == ("p", "pod", "ns", "uid")
    assert (dict(pod.labels), dict(pod.annotations)) == ({"a": "b"}, {"c": "d"})
    assert (pod.runtime_handler, list(pod.ips), pod.pid) == ("runc", ["10.0.0.1", "fd00::1"], 0)
    assert (pod.linux.cgroup_parent, pod.linux.cgroups_path) == ("/pods/x", "/pods/x")
    assert pod.linux.pod_overhead.cpu.shares.value == 3
    assert {n.type: n.path for n in pod.linux.namespaces} == {
        "network": "/run/p/net",
        "ipc": "/run/p/ipc",
    }


def test_addresses_that_are_not_recorded_yet(views):
    assert list(views.pod(sandbox(), ("10.0.0.9",)).ips) == ["10.0.0.9"]


def test_a_pod_whose_namespaces_are_gone(views):
    assert not views.pod(sandbox(network_released=True)).linux.namespaces


def test_resources_that_were_updated(views):
    updated = cri.LinuxContainerResources(cpu_shares=8).SerializeToString()
    assert views.pod(sandbox(resources=updated)).linux.pod_resources.cpu.shares.value == 8


def test_a_pod_with_an_init(views, inits):
    inits["p"] = container("p", pid=77)
    pod = views.pod(sandbox())
    assert pod.pid == 77
    assert "/proc/77/ns/pid" in [n.path for n in pod.linux.namespaces]


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (ContainerState.CREATED, pb.CONTAINER_CREATED),
        (ContainerState.STARTING, pb.CONTAINER_CREATED),
        (ContainerState.RUNNING, pb.CONTAINER_RUNNING),
        (ContainerState.UNKNOWN, pb.CONTAINER_UNKNOWN),
        (ContainerState.EXITED, pb.CONTAINER_STOPPED),
        (ContainerState.REMOVING, pb.CONTAINER_STOPPED),
    ],
)
def test_states(views, state, told):
    assert views.container(container(state=state), {}).state == told


def test_a_container(views):
    record = container(pid=5, started_at=2, finished_at=3, exit_code=4, reason="r", message="m")
    found = views.container(record, SPEC)
    assert (found.id, found.pod_sandbox_id, found.name) == ("a" * 64, "p" * 64, "main")
    assert (found.created_at, found.started_at, found.finished_at) == (5, 2, 3)
    assert (found.pid, found.exit_code) == (5, 4)
    assert (found.status_reason, found.status_message) == ("r", "m")
    assert dict(found.labels) == {"app": "web", "tier": "front"}
    assert dict(found.annotations) == {"from": "spec", "note": "kept\nas it is"}
    assert (found.image.name, found.image.config_digest) == ("busybox:1", "sha256:1")
    assert list(found.args) == ["x"]


def test_a_pid_that_is_not_recorded_yet(views):
    assert views.container(container(state=ContainerState.STARTING), {}, pid=9).pid == 9


def test_a_container_that_is_being_made(views):
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="n"),
        image=cri.ImageSpec(image="i"),
        CDI_devices=[cri.CDIDevice(name="v/c=d")],
    )
    seccomp = config.linux.security_context.seccomp
    seccomp.profile_type = cri.SecurityProfile.Localhost
    seccomp.localhost_ref = "/x"
    found = views.new("c", "p", config, "sha256:2", SPEC)
    assert (found.id, found.pod_sandbox_id, found.name) == ("c", "p", "n")
    assert (found.image.name, found.image.config_digest) == ("i", "sha256:2")
    assert [each.name for each in found.CDI_devices] == ["v/c=d"]
    profile = found.linux.seccomp_profile
    assert (profile.profile_type, profile.localhost_ref) == (pb.SecurityProfile.LOCALHOST, "/x")
    assert msgspec.json.encode(SPEC)  # untouched
