"""Fixtures of tests with a whole cluster."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest

from hack.clusters.cluster import clustered
from tests.cluster.images import load_image
from tests.cluster.objects import Objects, container, is_ready, on

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hack.clusters.cluster import Cluster

# Loaded on node1 before its kubelet starts: they are old enough when it looks the second time.
UNUSED, USED = "localhost/test/unused:1", "localhost/test/used:1"
USER = "user"  # the pod, in the namespace `default`, that uses the one


@pytest.fixture(scope="session")
def cluster(own_network: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One with two nodes. node1's kubelet collects images whenever it looks."""
    with clustered(f"zt{secrets.token_hex(3)}") as running:
        node = running.nodes["node1"]
        for number, name in enumerate((UNUSED, USED)):
            archive: Path = tmp_path_factory.mktemp("image") / "image.tar"
            load_image(node, name, archive, str(number))
        Objects(running, "default").pod(
            USER, container(image=USED, command=["sleep", "infinity"]), **on("node1")
        )
        Objects(running, "default").wait(USER, is_ready, "is ready")
        node.kubelet.end()
        node.settings = {"imageGCHighThresholdPercent": 1, "imageGCLowThresholdPercent": 0}
        node.start_kubelet()
        yield running


@pytest.fixture
def objects(cluster: Cluster) -> Iterator[Objects]:
    """Makes objects in a namespace of the test's own, which goes with them."""
    made = Objects(cluster, f"t{secrets.token_hex(3)}")
    made.kubectl("create", "namespace", made.namespace)
    try:
        yield made
    finally:
        made.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Puts the ends of the logs into the report of a test that failed."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    cluster = getattr(item, "funcargs", {}).get("cluster")
    if report.failed and report.when != "teardown" and cluster is not None:
        for program in cluster.programs():
            text = program.log.read_text(errors="replace")[-4000:]
            report.sections.append((str(program.log), text))
