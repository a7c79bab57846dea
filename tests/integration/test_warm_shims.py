"""Warm shims, real ones: used by pods, replaced, taken over by the next server, ended."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.integration.server import Runtime, Server, serving
from tests.integration.test_crictl import wait_for
from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.timeout(120)]
WARM = 2


@pytest.fixture
def node(runtime: Runtime) -> Iterator[Server]:
    with serving(runtime, warm=WARM) as server:
        yield server


def shims(server: Server) -> dict[str, int]:
    """The shims' processes by their group."""
    found = {}
    for pid, line in server.processes():
        words = line.split()
        if "-shim-" in words[0] and "start" not in words:
            found[words[words.index("-id") + 1]] = pid
    return found


def filled(server: Server, beside: int = 0) -> dict[str, int]:
    """The shims, once there are as many as there should be, and their records have their pids.

    One whose record has none yet is one that a killed server was about to start.
    """

    def known(group: str, pid: int) -> bool:
        record = server.run / "bundles" / group / "shim.json"
        return record.exists() and json.loads(record.read_bytes())["pid"] == pid

    def full() -> bool:
        found = shims(server)
        return len(found) == WARM + beside and all(known(*item) for item in found.items())

    wait_for(full)
    return shims(server)


def test_a_pod_takes_a_warm_shim_and_another_one_is_started(node: Server) -> None:
    before = filled(node)
    with node.cri() as cri:
        pod = node.run_pod(cri)
        assert pod in before
        container = node.run_container(cri, pod)
        after = filled(node, 1)
        assert after[pod] == before[pod]
        request = pb.ContainerStatusRequest(container_id=container)
        assert cri.ContainerStatus(request).status.state == pb.CONTAINER_RUNNING
    node.remove_pods()
    filled(node)
    node.stop()
    assert node.leftovers() == []


def test_a_killed_servers_are_taken_over(node: Server) -> None:
    before = filled(node)
    with node.cri() as cri:
        pod = node.run_pod(cri)
        node.run_container(cri, pod)
    before = filled(node, 1)
    node.restart()
    assert shims(node) == before
    with node.cri() as cri:
        assert node.run_pod(cri, "another") in before
    node.remove_pods()
    node.stop()
    assert node.leftovers() == []


def test_one_that_dies_is_replaced_whether_or_not_a_server_sees_it(node: Server) -> None:
    before = filled(node)
    dead, other = before
    os.kill(before[dead], signal.SIGKILL)
    wait_for(lambda: dead not in shims(node) and len(shims(node)) == WARM)
    after = shims(node)
    assert other in after
    wait_for(lambda: not (node.run / "bundles" / dead).exists())
    node.kill()
    os.kill(after[other], signal.SIGKILL)
    node.start()
    assert other not in filled(node)
    node.stop()
    assert node.leftovers() == []


def test_a_pod_that_is_refused_costs_no_shim(node: Server) -> None:
    before = filled(node)
    with node.cri() as cri:
        config = node.pod()
        config.linux.sysctls["vm.swappiness"] = "1"
        for _ in range(WARM + 1):
            with pytest.raises(Exception, match=r"vm\.swappiness"):
                cri.RunPodSandbox(pb.RunPodSandboxRequest(config=config))
        assert shims(node) == before
        assert node.run_pod(cri) in before
    node.remove_pods()
