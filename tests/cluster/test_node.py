"""What a kubelet does with an API server over it, and can't with static pods."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cluster.conftest import UNUSED, USED, USER
from tests.cluster.images import image_names
from tests.cluster.objects import (
    TIMEOUT,
    Objects,
    cgroup,
    container,
    container_ids,
    is_ready,
    on,
    phase,
    restarts,
)
from tests.integration.server import IMAGE
from zos_cri.linux.cgroup import Cgroups

if TYPE_CHECKING:
    from collections.abc import Callable

    from hack.clusters.cluster import Cluster
    from tests.cluster.objects import Pod

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go, pytest.mark.timeout(900)]

GC_TIMEOUT = 420.0  # the kubelet looks every five minutes


def until(done: Callable[[], bool], timeout: float, what: str) -> None:
    deadline = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.5)


@pytest.fixture
def runtime_class(cluster: Cluster, objects: Objects) -> Callable[[str], str]:
    """Makes RuntimeClasses for handlers; they have no namespace."""

    def make(handler: str) -> str:
        name = f"{handler}-{objects.namespace}"
        objects.create("RuntimeClass", name, "node.k8s.io/v1", handler=handler)
        return name

    return make


def test_a_runtime_class_chooses_the_handler(
    cluster: Cluster, objects: Objects, runtime_class: Callable[[str], str]
) -> None:
    objects.pod("small", runtimeClassName=runtime_class("small"))
    objects.pod("plain")
    limits = {}
    for name in ("small", "plain"):
        pod = objects.wait(name, is_ready, "is ready")
        parent = cluster.nodes[pod["spec"]["nodeName"]].spot.cgroup
        where = Cgroups().paths(cgroup(pod, parent, "besteffort")).of("pids")
        limits[name] = Path(f"{where}/pids.max").read_text().strip()
    assert limits == {"small": "64", "plain": "max"}


def test_a_runtime_class_without_a_handler(
    objects: Objects, runtime_class: Callable[[str], str]
) -> None:
    objects.pod("lost", runtimeClassName=runtime_class("nowhere"))
    until(lambda: "nowhere" in objects.events("lost"), TIMEOUT, "an event names the handler")
    assert objects.get("pod", "lost")["status"]["phase"] == "Pending"


def test_resources_are_resized_in_place(cluster: Cluster, objects: Objects) -> None:
    before = {"cpu": "100m", "memory": "64Mi"}
    after = {"cpu": "250m", "memory": "96Mi"}
    objects.pod("grows", container(resources={"requests": before, "limits": before}))
    pod = objects.wait("grows", is_ready, "is ready")
    ids = container_ids(pod)
    where = Cgroups().paths(cgroup(pod, cluster.nodes[pod["spec"]["nodeName"]].spot.cgroup))
    assert limits_of(where) == (10_000, 64 << 20)
    patch = '{"spec":{"containers":[{"name":"main","resources":{"requests":%s,"limits":%s}}]}}'
    values = str(after).replace("'", '"')
    objects.kubectl(
        "patch", "pod", "grows", "--subresource=resize", f"-p={patch % (values, values)}"
    )

    def resized(pod: Pod) -> bool:
        return bool(
            pod["status"]["containerStatuses"][0].get("resources", {}).get("limits") == after
        )

    pod = objects.wait("grows", resized, "is resized")
    assert limits_of(where) == (25_000, 96 << 20)
    assert container_ids(pod) == ids
    assert restarts(pod) == 0


def limits_of(where: object) -> tuple[int, int]:
    """A cgroup's CPU quota in µs for 100 ms, and its memory limit in bytes."""
    cpu, memory = where.of("cpu"), where.of("memory")  # type: ignore[attr-defined]
    if Path(f"{cpu}/cpu.max").exists():
        quota, limit = Path(f"{cpu}/cpu.max"), Path(f"{memory}/memory.max")
    else:
        quota = Path(f"{cpu}/cpu.cfs_quota_us")
        limit = Path(f"{memory}/memory.limit_in_bytes")
    return int(quota.read_text().split()[0]), int(limit.read_text())


def test_pods_are_evicted_for_memory(cluster: Cluster, objects: Objects) -> None:
    """One takes nearly all that its node has for pods, and goes; one within its request stays."""
    fits = {"requests": {"memory": "32Mi"}}
    objects.pod("modest", container(resources=fits), **on("node2"))
    objects.wait("modest", is_ready, "is ready")
    hog = container(
        "dd if=/dev/zero of=/memory/data bs=1M count=2000; exec sleep 1000",
        volumeMounts=[{"name": "memory", "mountPath": "/memory"}],
    )
    volume = {"name": "memory", "emptyDir": {"medium": "Memory"}}
    objects.pod("hog", hog, volumes=[volume], **on("node2"))
    pod = objects.wait("hog", phase("Failed"), "is evicted")
    assert pod["status"]["reason"] == "Evicted", pod["status"]
    assert "memory" in pod["status"]["message"]
    assert restarts(pod) == 0
    until(lambda: cluster.conditions("node2")["MemoryPressure"] == "False", TIMEOUT, "enough again")
    modest = objects.get("pod", "modest")
    assert is_ready(modest)
    assert restarts(modest) == 0


def test_unused_images_are_collected(cluster: Cluster) -> None:
    """Not one in use, nor the built-in one, which is pinned."""
    node = cluster.nodes["node1"]
    until(lambda: UNUSED not in image_names(node), GC_TIMEOUT, "the unused image is removed")
    assert {USED, IMAGE} <= image_names(node)
    assert is_ready(Objects(cluster, "default").get("pod", USER))
