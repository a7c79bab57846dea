"""How the server ends and begins anew: what is under way, and who calls meanwhile.

`ZOS_CRI_PODS=100 hack/netns run --pids PYTHON -m pytest -s -k pods
tests/integration/test_restart.py` prints how soon a killed server answers again.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.conftest import ROOT
from tests.integration.server import UPSTREAM, Server, serving
from tests.integration.test_crictl import wait_for
from zos_cri._pb import cri_pb2 as pb
from zos_cri._pb import cri_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

PODS = int(os.environ.get("ZOS_CRI_PODS") or 4)
CALLERS = 4

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.timeout(180 + PODS)]

# As systemd hands a socket over: descriptor 3, and the environment that says so.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[2], sys.argv[2:])
"""


class Caller(threading.Thread):
    """Calls on and on over one channel, and over new ones, and doesn't ask again.

    But where its call reached the server in the very moment it ended: gRPC's library has taken it
    then, and gives it back as CANCELLED instead of having the client's library send it anew.
    """

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self.calls = 0
        self.errors: list[str] = []
        self.ends = threading.Event()
        self._server = server

    def run(self) -> None:
        with self._server.channel() as channel:
            cri = cri_pb2_grpc.RuntimeServiceStub(channel)
            while not self.ends.is_set():
                self._call(cri)
                with self._server.cri() as other:
                    self._call(other)

    def _call(self, cri: Any) -> None:
        try:
            cri.ListContainers(pb.ListContainersRequest(), timeout=60)
            self.calls += 1
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.CANCELLED:
                self.errors.append(f"{error.code()}: {error.details()}")


@contextmanager
def callers(server: Server) -> Iterator[list[Caller]]:
    threads = [Caller(server) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    yield threads
    for thread in threads:
        thread.ends.set()
    for thread in threads:
        thread.join(60)
        assert thread.errors == []
        assert thread.calls > 2


def called_again(threads: list[Caller]) -> None:
    """All have been answered since."""
    before = [thread.calls for thread in threads]
    wait_for(
        lambda: all(
            thread.calls > number + 2 or thread.errors
            for thread, number in zip(threads, before, strict=True)
        ),
        timeout=60,
    )


def failing(server: Server, point: str, action: str) -> None:
    server.config.write_text(
        server.config.read_text() + f'\n[failpoints]\n"{point}" = "{action}"\n'
    )


class Answer(threading.Thread):
    """One RunPodSandbox, and what became of it."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._server = server
        self.pod = ""
        self.error: grpc.RpcError | None = None
        self.start()

    def run(self) -> None:
        try:
            with self._server.cri() as cri:
                self.pod = self._server.run_pod(cri, "under-way")
        except grpc.RpcError as error:
            self.error = error


def wait_for_point(server: Server, point: str) -> None:
    wait_for(lambda: f"point={point} action" in server.log.read_text())


@pytest.fixture
def node() -> Iterator[Server]:
    with serving(UPSTREAM) as server:
        yield server


def runs_on(server: Server, id_: str, started: int) -> bool:
    status = server.ask("ContainerStatus", pb.ContainerStatusRequest(container_id=id_)).status
    return bool((status.state, status.started_at) == (pb.CONTAINER_RUNNING, started))


def test_what_is_under_way_is_finished(node: Server) -> None:
    with node.cri() as cri:
        container = node.run_container(cri, node.run_pod(cri))
        request = pb.ContainerStatusRequest(container_id=container)
        started = cri.ContainerStatus(request).status.started_at
    node.kill()
    failing(node, "shim.adopt.before", "delay:2")
    node.start()
    answer = Answer(node)
    wait_for_point(node, "shim.adopt.before")
    process = node.process
    node.stop()
    answer.join(60)
    assert answer.error is None
    assert answer.pod
    assert process is not None
    assert process.returncode == 0
    node.start()
    with node.cri() as cri:
        pods = {pod.id: pod.state for pod in cri.ListPodSandbox(pb.ListPodSandboxRequest()).items}
    assert pods[answer.pod] == pb.SANDBOX_READY
    assert runs_on(node, container, started)


def test_what_does_not_end_is_left_to_the_next(node: Server) -> None:
    text = node.config.read_text()
    node.kill()
    failing(node, "shim.adopt.before", "delay:600")
    node.start()
    answer = Answer(node)
    wait_for_point(node, "shim.adopt.before")
    process = node.process
    node.stop()
    answer.join(60)
    assert answer.error is not None
    assert process is not None
    assert process.returncode == 0
    assert "stopped amid what didn't end" in node.log.read_text()
    node.config.write_text(text)
    node.start()
    assert node.audit() == []
    assert node.leftovers() == []


@contextmanager
def activated() -> Iterator[Server]:
    """One whose socket systemd would have, not yet started."""
    listening = socket.socket(socket.AF_UNIX)
    server = Server(UPSTREAM, before=(sys.executable, "-c", ACTIVATE, str(listening.fileno())))
    server.pass_fds = (listening.fileno(),)
    listening.bind(str(server.socket))
    server.socket.chmod(0o600)
    listening.listen(1024)
    try:
        yield server
    finally:
        server.destroy()
        listening.close()


def test_a_restart_by_systemd_drops_no_call() -> None:
    with activated() as server:
        with callers(server) as threads:  # before there is a server at all
            server.start()
            with server.cri() as cri:
                server.run_container(cri, server.run_pod(cri))
            for _ in range(2):
                called_again(threads)
                server.stop()
                server.start()
            called_again(threads)
        assert server.socket.stat().st_mode & 0o777 == 0o600
        # A killed one leaves its dead socket; the next finds the held one all the same.
        server.restart()
        with callers(server) as threads:
            server.stop()
            server.start()
            called_again(threads)


def test_who_calls_after_a_kill_waits_where_systemd_tidies_up() -> None:
    """By what the unit has it do after any end of the server, before it starts the next."""
    unit = (ROOT / "packaging/systemd/zos-cri.service").read_text().replace("\\\n", "")
    (command,) = re.findall(r"^ExecStopPost=(.*)$", unit, re.MULTILINE)
    with activated() as server:
        assert "cd /run/zos-cri &&" in command
        assert server.socket.name == "zos-cri.sock"
        tidy = shlex.split(command.replace("/run/zos-cri", str(server.socket.parent), 1))
        subprocess.run(tidy, check=True)  # nothing is aside yet
        server.start()
        for _ in range(2):
            server.kill()
            subprocess.run(tidy, check=True)
            with callers(server) as threads:
                server.start()
                called_again(threads)
            server.stop()
            subprocess.run(tidy, check=True)  # it has given the name back itself
            with callers(server) as threads:
                server.start()
                called_again(threads)


def test_who_just_connects_amid_a_restart_is_answered() -> None:
    """As programs do that make one call each; nothing is allowed to be CANCELLED."""
    alone = [("grpc.use_local_subchannel_pool", 1)]
    ends = threading.Event()

    def calls_once_at_a_time() -> int:
        calls = 0
        while not ends.is_set():
            with grpc.insecure_channel(f"unix:{server.socket}", options=alone) as channel:
                cri = cri_pb2_grpc.RuntimeServiceStub(channel)
                cri.ListContainers(pb.ListContainersRequest(), timeout=60)
            calls += 1
        return calls

    with activated() as server, ThreadPoolExecutor(2 * CALLERS) as pool:
        server.start()
        callers = [pool.submit(calls_once_at_a_time) for _ in range(2 * CALLERS)]
        try:
            for _ in range(4):
                server.stop()
                server.start()
                server.crictl("pods")
        finally:
            ends.set()
        assert all(caller.result(60) for caller in callers)


def _answered(server: Server) -> dict[str, int]:
    """Waits until the server answers: its containers, with their states."""
    while True:
        try:
            with server.cri() as cri:
                found = cri.ListContainers(pb.ListContainersRequest(), timeout=10)
                return {container.id: container.state for container in found.containers}
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            assert server.process is not None
            assert server.process.poll() is None
        time.sleep(0.01)


def test_a_killed_server_with_pods_answers_before_it_has_recovered(node: Server) -> None:
    def run(number: int) -> tuple[str, str]:
        with node.cri() as cri:
            pod = node.run_pod(cri, f"p{number}")
            return pod, node.run_container(cri, pod)

    with ThreadPoolExecutor(4) as pool:
        pods = dict(pool.map(run, range(PODS)))
    running = dict.fromkeys(pods.values(), pb.CONTAINER_RUNNING)
    for _ in range(3):
        node.kill()
        killed = time.monotonic()
        offset = node.launch()
        assert _answered(node) == running
        answered = time.monotonic() - killed
        node.wait_until_ready(offset)
        ready = time.monotonic() - killed
        print(f"{PODS} pods: answers after {answered:.2f} s, ready after {ready:.2f} s")
    # One that hangs holds the recovery up until its deadline, and no read.
    hung = next(iter(pods))
    (shim,) = (pid for pid, line in node.processes() if "-shim-" in line and hung in line)
    os.kill(shim, signal.SIGSTOP)
    try:
        node.kill()
        offset = node.launch()
        assert _answered(node) == running
        assert not node.is_ready(offset)
        node.wait_until_ready(offset)
        states = _answered(node)
        assert states.pop(pods[hung]) == pb.CONTAINER_UNKNOWN
        assert set(states.values()) == {pb.CONTAINER_RUNNING}
        with node.cri() as cri:
            node.run_container(cri, node.run_pod(cri, "well"))
    finally:
        os.kill(shim, signal.SIGCONT)
    wait_for(lambda: _answered(node)[pods[hung]] == pb.CONTAINER_RUNNING, timeout=60)
    node.remove_pods()
    assert node.leftovers() == []
    assert node.audit() == []


def test_sighup(node: Server) -> None:
    with node.cri() as cri:
        container = node.run_container(cri, node.run_pod(cri))
        request = pb.ContainerStatusRequest(container_id=container)
        started = cri.ContainerStatus(request).status.started_at
    assert node.process is not None
    good = node.config.read_text()
    with callers(node) as threads:
        node.config.write_text(good.replace("default_handler", "no_such_setting"))
        node.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "configuration not reloaded" in node.log.read_text())
        assert "no_such_setting" in node.log.read_text()
        called_again(threads)
        for number in (3, 4):  # anew, and anew from a server that began so
            offset = node.log.stat().st_size
            node.config.write_text(f"{good}\n[exec]\ndrain_timeout = {number}\n")
            node.process.send_signal(signal.SIGHUP)
            node.wait_until_ready(offset)
            called_again(threads)
    assert node.process.poll() is None
    assert os.readlink(f"/proc/{node.process.pid}/exe")
    assert node.socket.stat().st_mode & 0o777 == 0o600
    assert runs_on(node, container, started)
    node.remove_pods()
    assert node.leftovers() == []
