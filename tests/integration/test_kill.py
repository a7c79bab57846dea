"""The server is killed again and again amid pods' lifecycles: nothing is lost, nothing is left."""

from __future__ import annotations

import os
import random
import threading
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.integration.server import serving
from tests.integration.test_crictl import wait_for
from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.server import Runtime, Server

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.timeout(600)]

PODS = 20
KILLS = 20
WARM = 3  # shims: fewer than pods, so that both kinds of start are cut off
PATIENCE = 120.0  # seconds for one call, over as many servers as it takes


class Pod(threading.Thread):
    """One pod's client: it goes through its life, asking again whenever the server was killed."""

    def __init__(self, server: Server, number: int, seed: int) -> None:
        super().__init__(name=f"pod {number}", daemon=True)
        self.number = number
        self.container = ""
        self.error: BaseException | None = None
        self.code = number if number % 2 else None  # odd ones exit, with their number
        self.cut_off = False  # the start of the last container: nobody has told how it went
        self._server = server
        self._random = random.Random(seed * 1000 + number)

    def run(self) -> None:
        try:
            self._live()
        except BaseException as error:
            self.error = error

    def _live(self) -> None:
        for cycle in range(3):
            pod = self._call(
                "RunPodSandbox",
                pb.RunPodSandboxRequest(config=self._server.pod(f"p{self.number}-{cycle}")),
            ).pod_sandbox_id
            script = f"sleep 1; exit {self.code}" if self.code else "sleep 1000"
            config = self._server.container("sh", "-c", script)
            self.container = self._call(
                "CreateContainer", pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
            ).container_id
            self.cut_off = False
            self._start()
            if cycle == 2:
                return  # the last one stays, and is looked at when all the killing is over
            time.sleep(self._random.random())
            if self._random.random() < 0.5:
                request = pb.StopContainerRequest(container_id=self.container, timeout=0)
                self._call("StopContainer", request)
            self._call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod))
            self._call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=pod))

    def _start(self) -> None:
        """Starts the container; an answer that was lost may have been a yes."""
        try:
            self._call("StartContainer", pb.StartContainerRequest(container_id=self.container))
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            assert self.status().state in (pb.CONTAINER_RUNNING, pb.CONTAINER_EXITED)
            self.cut_off = True

    def status(self) -> pb.ContainerStatus:
        request = pb.ContainerStatusRequest(container_id=self.container)
        status: pb.ContainerStatus = self._call("ContainerStatus", request).status
        return status

    def _call(self, method: str, request: Any) -> Any:
        return self._server.ask(method, request, patience=PATIENCE)


def kill_amid(server: Server, check: Callable[[list[Pod]], None]) -> None:
    seed = int(os.environ.get("ZOS_CRI_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    print(f"ZOS_CRI_SEED={seed}")
    chance = random.Random(seed)
    pods = [Pod(server, number, seed) for number in range(PODS)]
    for pod in pods:
        pod.start()
    for _ in range(KILLS):
        time.sleep(chance.uniform(0.1, 0.8))
        server.restart()
    for pod in pods:
        pod.join(PATIENCE)
        assert not pod.is_alive(), f"{pod.name} has not come to its end"
    assert [pod.error for pod in pods if pod.error] == []
    check(pods)
    server.remove_pods()
    server.stop()  # ends the warm shims
    assert server.leftovers() == []


def all_is_true(pods: list[Pod]) -> None:
    """Each container runs, or has ended with its own code, or failed as its start was cut off."""
    for pod in pods:
        if pod.cut_off and pod.status().reason == "StartError":
            assert pod.status().exit_code == 128, pod.name
        elif pod.code is None:
            assert pod.status().state == pb.CONTAINER_RUNNING, pod.name
        else:
            wait_for(lambda pod=pod: pod.status().state == pb.CONTAINER_EXITED)
            status = pod.status()
            assert (status.exit_code, status.reason) == (pod.code, "Error"), pod.name
            assert status.started_at < status.finished_at


def test_host_network(runtime: Runtime) -> None:
    with serving(runtime, warm=WARM) as server:
        kill_amid(server, all_is_true)


def test_bridge(runtime: Runtime, own_network: None) -> None:
    with serving(runtime, cni=True, warm=WARM) as server:
        kill_amid(server, all_is_true)
