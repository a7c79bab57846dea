"""A node's zos-cri is upgraded while its pods come, go and talk."""

from __future__ import annotations

import re
import shutil
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.cluster.objects import TIMEOUT, container, container_ids, restarts, spec
from tests.conftest import ROOT
from zos_cri import __version__

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hack.clusters.cluster import Cluster
    from tests.cluster.objects import Objects

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go, pytest.mark.timeout(900)]

NEWER = "99.0"
STEADY = 10
COUNTING = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done"


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """A copy of the source tree with another version."""
    shutil.copytree(ROOT / "zos_cri", tmp_path / "zos_cri")
    init = tmp_path / "zos_cri" / "__init__.py"
    init.write_text(init.read_text().replace(__version__, NEWER))
    return tmp_path


class Load:
    """Threads that keep the cluster at work; what failed is in `errors`."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._over = threading.Event()
        self.rounds = 0
        self.errors: list[str] = []
        self._threads = [
            threading.Thread(target=self._repeat, args=(each,))
            for each in (self._churn, self._exec)
        ]
        for thread in self._threads:
            thread.start()

    def _repeat(self, work: Callable[[int], None]) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            try:
                work(number)
            except AssertionError as error:
                self.errors.append(str(error))

    def _churn(self, number: int) -> None:
        """Pods come and go."""
        self._objects.kubectl("scale", "deployment/churn", f"--replicas={2 + 6 * (number % 2)}")
        self._objects.rolled_out("deployment", "churn")
        self.rounds += 1

    def _exec(self, number: int) -> None:
        pod = self._objects.pods("steady")[number % STEADY]["metadata"]["name"]
        try:
            self._objects.kubectl("exec", pod, "--", "true")
        except AssertionError as error:
            # While there is no server there is no exec; anything else is an error.
            if not re.search("navailable|connection refused|connection error|EOF", str(error)):
                raise

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_an_upgrade_under_load(
    cluster: Cluster, objects: Objects, newer: Path, end: signal.Signals
) -> None:
    """No pod restarts, none fails, no line of a log is lost; in the end the node is back."""
    node = cluster.nodes["node1"]
    objects.workload("Deployment", "steady", spec(container(COUNTING)), replicas=STEADY)
    objects.workload("Deployment", "churn", spec(), replicas=2)
    objects.rolled_out("deployment", "steady")
    before = {pod["metadata"]["name"]: container_ids(pod) for pod in objects.pods("steady")}
    load = Load(objects)
    try:
        for tree in (newer, ROOT):
            rounds = load.rounds
            node.server.end(end)
            node.start_server(tree)
            _wait_until(lambda then=rounds: load.rounds >= then + 2)  # type: ignore[misc]
            if tree is newer:
                _wait_until(lambda: _version(cluster) == f"zos-cri://{NEWER}")
    finally:
        load.end()
    assert load.errors == []
    objects.rolled_out("deployment", "churn")
    pods = objects.pods()
    assert [pod["metadata"]["name"] for pod in pods if restarts(pod)] == []
    after = {pod["metadata"]["name"]: container_ids(pod) for pod in objects.pods("steady")}
    assert after == before
    for name in before:
        numbers = [int(line) for line in objects.kubectl("logs", name).split()]
        assert numbers == list(range(len(numbers)))
    assert cluster.conditions("node1")["Ready"] == "True"


def _version(cluster: Cluster) -> str:
    node = cluster.get("node", "node1")
    return str(node["status"]["nodeInfo"]["containerRuntimeVersion"])


def _wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.5)
