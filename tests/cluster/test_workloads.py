"""What Kubernetes' controllers make of our nodes: Deployments, DaemonSets, Jobs."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.cluster.objects import TIMEOUT, container, is_ready, on, phase, restarts, spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from hack.clusters.cluster import Cluster
    from tests.cluster.objects import Objects

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go, pytest.mark.timeout(900)]

PODS = 50


def test_nodes_are_ready(cluster: Cluster) -> None:
    nodes = cluster.get("nodes")["items"]
    assert len(nodes) == 2
    for node in nodes:
        information = node["status"]["nodeInfo"]
        assert information["containerRuntimeVersion"].startswith("zos-cri://")
        handlers = {each["name"] for each in node["status"]["runtimeHandlers"]}
        assert {"", "runc", "small"} <= handlers
        # Its pods' network came by UpdateRuntimeConfig.
        name = node["metadata"]["name"]
        (conf,) = (cluster.nodes[name].spot.state / "net.d").iterdir()
        assert node["spec"]["podCIDR"] in conf.read_text()


def test_a_deployment_is_scaled_to_50_pods(
    objects: Objects, record_testsuite_property: Callable[[str, object], None]
) -> None:
    objects.workload("Deployment", "many", spec(), replicas=2)
    objects.rolled_out("deployment", "many")
    begun = time.monotonic()
    objects.kubectl("scale", "deployment/many", f"--replicas={PODS}")
    objects.rolled_out("deployment", "many")
    record_testsuite_property("scaled up, s", round(time.monotonic() - begun, 1))
    pods = objects.pods("many")
    assert len(pods) == PODS
    assert all(is_ready(pod) and restarts(pod) == 0 for pod in pods)
    spread = Counter(pod["spec"]["nodeName"] for pod in pods)
    assert min(spread["node1"], spread["node2"]) >= PODS // 4, spread
    assert len({pod["status"]["podIP"] for pod in pods}) == PODS
    begun = time.monotonic()
    objects.kubectl("scale", "deployment/many", "--replicas=0")
    objects.kubectl(
        "wait", "--for=delete", "pod", "--selector=app=many", "--timeout=180s", timeout=200
    )
    record_testsuite_property("scaled down, s", round(time.monotonic() - begun, 1))


def test_a_rolling_update(objects: Objects) -> None:
    """The new pods are ready before the old ones go."""
    objects.workload("Deployment", "web", spec(container("echo one; exec sleep 1000")), replicas=4)
    objects.rolled_out("deployment", "web")
    before = {pod["metadata"]["name"] for pod in objects.pods("web")}
    objects.kubectl("set", "env", "deployment/web", "COLOUR=blue")
    objects.rolled_out("deployment", "web")
    after = objects.pods("web")
    assert not before & {pod["metadata"]["name"] for pod in after}
    name = after[0]["metadata"]["name"]
    assert objects.kubectl("exec", name, "--", "sh", "-c", "echo $COLOUR") == "blue\n"


def test_pods_of_two_nodes_reach_each_other(objects: Objects) -> None:
    serve = container("hostname >/tmp/index.html; exec httpd -f -p 8080 -h /tmp")
    for node in ("node1", "node2"):
        objects.pod(f"on-{node}", serve, **on(node))
    for here, there in (("node1", "node2"), ("node2", "node1")):
        address = objects.wait(f"on-{there}", is_ready, "is ready")["status"]["podIP"]
        objects.wait(f"on-{here}", is_ready, "is ready")
        get = ("timeout", "20", "wget", "-qO-", f"http://{address}:8080/")
        assert objects.kubectl("exec", f"on-{here}", "--", *get) == f"on-{there}\n"


def test_a_daemon_set_has_a_pod_on_each_node(objects: Objects) -> None:
    objects.workload("DaemonSet", "agent", spec())
    objects.rolled_out("daemonset", "agent")
    assert sorted(pod["spec"]["nodeName"] for pod in objects.pods("agent")) == ["node1", "node2"]


def test_a_job(cluster: Cluster, objects: Objects) -> None:
    """Six times, three at once; one that fails is tried again."""
    pod = spec(container("echo $JOB_COMPLETION_INDEX"), restartPolicy="Never")
    objects.create(
        *("Job", "count", "batch/v1"),
        spec={
            "completions": 6,
            "parallelism": 3,
            "completionMode": "Indexed",
            "template": {"spec": pod},
        },
    )
    # The first try leaves a file on the node: the second finds it.
    again = container(
        "test -e /seen/before || { touch /seen/before; exit 3; }",
        volumeMounts=[{"name": "seen", "mountPath": "/seen"}],
    )
    seen = {"path": f"{cluster.place.state}/seen", "type": "DirectoryOrCreate"}
    volume = {"name": "seen", "hostPath": seen}
    objects.create(
        *("Job", "again", "batch/v1"),
        spec={
            "backoffLimit": 2,
            "template": {"spec": spec(again, volumes=[volume], restartPolicy="Never")},
        },
    )
    wait = ("wait", "--for=condition=complete", f"--timeout={TIMEOUT:g}s")
    objects.kubectl(*wait, "job/count", "job/again", timeout=TIMEOUT * 2)
    ended = objects.get("pods", "--selector=job-name=count")["items"]
    logs = [objects.kubectl("logs", pod["metadata"]["name"]) for pod in ended]
    assert sorted(logs) == [f"{number}\n" for number in range(6)]
    assert all(phase("Succeeded")(pod) for pod in ended)
    tries = objects.get("pods", "--selector=job-name=again")["items"]
    assert sorted(pod["status"]["phase"] for pod in tries) == ["Failed", "Succeeded"]
