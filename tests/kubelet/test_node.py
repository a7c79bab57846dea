"""A kubelet's own doings: log rotation, stats, restarts, events."""

from __future__ import annotations

import gzip
import re
from typing import TYPE_CHECKING

import pytest

from tests.kubelet.node import (
    POD_TIMEOUT,
    Node,
    container,
    is_running,
    node_running,
    restarts,
    statuses,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go, pytest.mark.timeout(600)]

LINES = 4000


@pytest.fixture(scope="module", params=[False, True], ids=["relisting", "events"])
def node(request: pytest.FixtureRequest, own_network: None) -> Iterator[Node]:
    """A kubelet that rotates small logs and takes stats from us: relisting, and told by events."""
    gates = {"PodAndContainerStatsFromCRI": True, "EventedPLEG": request.param}
    logs = {"containerLogMaxSize": "16Ki", "containerLogMaxFiles": 20}
    logs["containerLogMonitorInterval"] = "3s"
    with node_running(featureGates=gates, **logs) as running:
        running.evented = request.param
        yield running


def test_the_kubelet_is_told_by_events(node: Node) -> None:
    def value(name: str) -> float:
        found = re.search(rf"^{name} (\S+)$", node.get("/metrics"), re.MULTILINE)
        return float(found[1]) if found else 0.0

    node.add("short", container("exit 0"), restartPolicy="Never")
    node.wait("short", lambda pod: pod["status"]["phase"] == "Succeeded", "has succeeded")
    if node.evented:
        assert value("kubelet_evented_pleg_connection_success_count") >= 1
        assert value("kubelet_evented_pleg_connection_error_count") == 0
    node.remove("short")


def test_log_rotation(node: Node) -> None:
    """The kubelet renames the log and has it opened anew; no line is lost or written twice."""
    script = f"i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i; "
    script += "[ $((i % 500)) != 0 ] || sleep 2; done; exec sleep 1000"
    node.add("rotated", container(script))
    node.wait("rotated", is_running, "runs")

    def rotated() -> bool:
        paths = files(node, "rotated")
        return len(paths) > 2 and lines_of(paths)[-1:] == [f"line {LINES}"]

    wait_for(rotated, POD_TIMEOUT, "the log is rotated, and all is written")
    assert lines_of(files(node, "rotated")) == [f"line {number + 1}" for number in range(LINES)]
    node.remove("rotated")


def files(node: Node, name: str) -> list[Path]:
    """The logs of a pod's only container, the oldest first: 0.log is the newest."""
    found = (node.root / "logs").glob(f"default_{name}-node_*/main/*")
    kept = [path for path in found if not path.name.endswith(".tmp")]
    return sorted(kept, key=lambda path: (path.name == "0.log", path.name))


def lines_of(paths: list[Path]) -> list[str]:
    text = ""
    for path in paths:
        try:
            raw = path.read_bytes()
        except FileNotFoundError:  # packed meanwhile
            return []
        text += (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    return [line.split(" ", 3)[3] for line in text.splitlines()]


def test_stats(node: Node) -> None:
    node.add("busy", container("dd if=/dev/zero of=/file bs=1M count=4; while :; do :; done"))
    node.wait("busy", is_running, "runs")

    def measured() -> bool:
        pods = {pod["podRef"]["name"]: pod for pod in node.summary()["pods"]}
        pod = pods.get("busy-node")
        if pod is None or not pod.get("containers"):
            return False
        main = pod["containers"][0]
        return (
            main["cpu"].get("usageNanoCores", 0) > 0
            and main["memory"].get("workingSetBytes", 0) > 0
            and main["rootfs"].get("usedBytes", 0) >= 4 << 20
            and "usedBytes" in main["logs"]
            and pod["cpu"].get("usageNanoCores", 0) > 0
            and pod["network"].get("rxBytes") is not None
            and pod["ephemeral-storage"].get("usedBytes", 0) >= 4 << 20
            and pod["process_stats"]["process_count"] >= 1
        )

    try:
        wait_for(measured, POD_TIMEOUT, "/stats/summary has all of the pod")
    except AssertionError as error:
        raise AssertionError(f"{error}: {node.summary()['pods']}") from None
    metrics = node.get("/metrics/cadvisor")
    for name in (
        "cpu_usage_seconds_total",
        "memory_working_set_bytes",
        "processes",
        "fs_usage_bytes",
    ):
        labels = r'[^}]*container="main"[^}]*pod="busy-node"'
        assert re.search(rf"^container_{name}{{{labels}", metrics, re.MULTILINE), name
    assert re.search(r'^container_network_receive_bytes_total{[^}]*pod="busy-node"', metrics, re.M)
    node.remove("busy")


def test_kubelet_and_server_are_restarted_in_turn(node: Node) -> None:
    node.add("lasting", container(), container(name="other"))
    before = statuses(node.wait("lasting", is_running, "runs"))
    for restart in (node.restart, node.server.restart, node.restart, node.server.restart):
        restart()
        after = node.wait("lasting", is_running, "runs on")
        assert {name: status["containerID"] for name, status in statuses(after).items()} == {
            name: status["containerID"] for name, status in before.items()
        }
        assert restarts(after) == 0
    # Both still see what comes and goes.
    node.add("after", container("exit 0"), restartPolicy="Never")
    node.wait("after", lambda pod: pod["status"]["phase"] == "Succeeded", "has succeeded")
    node.remove("after")
    node.remove("lasting")
    assert node.server.crictl("pods", "-q", "--state", "ready") == ""
