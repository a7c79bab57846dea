"""Warm shims and those of several pods, real ones: used, used again, replaced, taken over."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
from typing import TYPE_CHECKING, Any

import grpc
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
        words = line.split()  # none of a process that is just ending
        if words and "-shim-" in words[0] and "start" not in words:
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


def shim_of(cri: Any, pod: str) -> str:
    request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
    return str(json.loads(cri.PodSandboxStatus(request).info["info"])["shim"])


def stop(cri: Any, pod: str) -> None:
    cri.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))


def remove(cri: Any, pod: str) -> None:
    cri.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))


def state(cri: Any, container: str) -> int:
    request = pb.ContainerStatusRequest(container_id=container)
    return int(cri.ContainerStatus(request).status.state)


def test_a_pod_takes_a_warm_shim_and_another_one_is_started(node: Server) -> None:
    before = filled(node)
    with node.cri() as cri:
        pod = node.run_pod(cri)
        shim = shim_of(cri, pod)
        assert shim in before
        container = node.run_container(cri, pod)
        after = filled(node, 1)
        assert after[shim] == before[shim]
        assert state(cri, container) == pb.CONTAINER_RUNNING
    node.remove_pods()
    assert filled(node, 1) == after  # the pod's waits for another pod
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
        assert shim_of(cri, node.run_pod(cri, "another")) in before
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
        assert shim_of(cri, node.run_pod(cri)) in before
    node.remove_pods()


def test_pods_one_after_the_other_are_in_the_same_shims(node: Server) -> None:
    with node.cri() as cri:
        before = filled(node)
        used = set()
        for n in range(3 * WARM):
            pod = node.run_pod(cri, f"pod{n}")
            node.run_container(cri, pod)
            used.add(shim_of(cri, pod))
            stop(cri, pod)
            remove(cri, pod)
        assert len(used) <= 2 * WARM
        after = shims(node)
        assert after.items() >= before.items()
        assert used <= set(after)
    node.stop()
    assert node.leftovers() == []


def test_a_shim_that_a_pod_has_left_serves_another_though_the_first_is_listed(node: Server) -> None:
    with node.cri() as cri:
        filled(node)
        first = node.run_pod(cri, "first")
        ended = node.run_container(cri, first)
        shim = shim_of(cri, first)
        filled(node, 1)
        stop(cri, first)
        assert node.audit() == []
        pods: dict[str, str] = {}
        while shim not in pods:
            assert len(pods) <= WARM
            pod = node.run_pod(cri, f"pod{len(pods)}")
            pods[shim_of(cri, pod)] = pod
        container = node.run_container(cri, pods[shim])
    node.restart()
    assert node.audit() == []
    with node.cri() as cri:
        assert state(cri, ended) == pb.CONTAINER_EXITED
        remove(cri, first)
        assert state(cri, container) == pb.CONTAINER_RUNNING
        assert shim_of(cri, pods[shim]) == shim
        with pytest.raises(grpc.RpcError, match="no container"):
            state(cri, ended)
    node.remove_pods()
    node.stop()
    assert node.leftovers() == []


def test_pods_of_the_first_format_go_on_and_later_ones_are_in_other_shims(
    runtime: Runtime,
) -> None:
    """Version 1 of records knew no shim but one of the pod's own name."""
    with serving(runtime) as node:
        with node.cri() as cri:
            old = node.run_pod(cri, "old")
            container = node.run_container(cri, old)
        before = shims(node)
        assert set(before) == {old}
        node.stop()
        with contextlib.closing(sqlite3.connect(node.state / "state.db")) as database, database:
            for table in ("sandbox", "container"):
                for column in ("meta", "status"):
                    ((id_, text),) = database.execute(f"SELECT id, {column} FROM {table}")
                    record = {**json.loads(text), "version": 1}
                    record.pop("shim", None)
                    values = (json.dumps(record).encode(), id_)
                    database.execute(f"UPDATE {table} SET {column} = ? WHERE id = ?", values)
        node.config.write_text(
            node.config.read_text().replace("warm_shims = 0", f"warm_shims = {WARM}")
        )
        node.start()
        after = filled(node, 1)
        assert after.items() > before.items()
        assert node.audit() == []
        with node.cri() as cri:
            assert shim_of(cri, old) == old
            assert state(cri, container) == pb.CONTAINER_RUNNING
            assert shim_of(cri, node.run_pod(cri, "new")) in set(after) - {old}
        node.remove_pods()
        node.stop()
        assert node.leftovers() == []


@pytest.fixture
def shared(runtime: Runtime) -> Iterator[Server]:
    with serving(runtime, extra="pods_per_shim = 2") as server:
        yield server


def test_pods_share_a_shim(shared: Server) -> None:
    with shared.cri() as cri:
        pods = [shared.run_pod(cri, name) for name in "abc"]
        groups = [shim_of(cri, pod) for pod in pods]
        assert groups[0] == groups[1] != groups[2]
        containers = [shared.run_container(cri, pod) for pod in pods]
        assert set(shims(shared)) == set(groups)
        shared.kill()
        shared.start()
    with shared.cri() as cri:
        stop(cri, pods[0])
        remove(cri, pods[0])
        assert [state(cri, container) for container in containers[1:]] == [pb.CONTAINER_RUNNING] * 2
        request = pb.ExecSyncRequest(container_id=containers[1], cmd=["true"], timeout=10)
        assert cri.ExecSync(request).exit_code == 0
        again = shared.run_pod(cri, "d")
        assert shim_of(cri, again) == groups[0]
        assert shared.audit() == []
    shared.remove_pods()
    assert shims(shared) == {}
    shared.stop()
    assert shared.leftovers() == []


def test_a_shared_shim_that_dies_takes_its_pods_and_no_others(shared: Server) -> None:
    with shared.cri() as cri:
        pods = [shared.run_pod(cri, name) for name in "abc"]
        containers = [shared.run_container(cri, pod) for pod in pods]
        os.kill(shims(shared)[shim_of(cri, pods[0])], signal.SIGKILL)

        def ready(pod: str) -> bool:
            status = cri.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=pod)).status
            return bool(status.state == pb.SANDBOX_READY)

        wait_for(lambda: not ready(pods[0]) and not ready(pods[1]))
        wait_for(lambda: state(cri, containers[1]) == pb.CONTAINER_EXITED)
        assert state(cri, containers[0]) == pb.CONTAINER_EXITED
        assert ready(pods[2])
        assert state(cri, containers[2]) == pb.CONTAINER_RUNNING
    shared.remove_pods()
    shared.stop()
    assert shared.leftovers() == []
