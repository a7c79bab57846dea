"""The server fails or is killed before and after each side effect: nothing is lost, nothing left.

For each failpoint and each of error and kill, one pod goes through its life, its client asking
again as a kubelet does; then all of it is removed. The audit finds nothing, every time, and the
container that ran before all of it has not been touched.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.conftest import TOOLS
from tests.fakes.registry import Registry, tar_of
from tests.integration.server import DEBIAN, UPSTREAM, Server, serving
from tests.integration.test_crictl import wait_for
from zos_cri import config
from zos_cri._pb import cri_pb2 as pb
from zos_cri._pb import cri_pb2_grpc
from zos_cri.audit import check, records
from zos_cri.audit.present import Look
from zos_cri.failpoints import STEPS
from zos_cri.linux.cgroup import Cgroups

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from zos_cri.audit.expected import Records
    from zos_cri.audit.model import Finding

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.timeout(900)]

ALL = os.environ.get("ZOS_CRI_TEST_ALL") == "1"
RUNTIMES = (UPSTREAM, DEBIAN) if ALL else (UPSTREAM,)
SIDES = ("before", "after")
CHOSEN = os.environ.get("ZOS_CRI_TEST_FAILPOINTS", "")  # only those that begin so
TRIES = 20  # of one call; each failure but the first is one too many, yet removals retry by design
ENDED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
# What only the death of a shim leads to, and what only pulls do.
SHIM_DEATH = {"shim.delete"}
SANDBOXER = {name for name in STEPS if name.startswith("sandboxer.")}
HANDLER = f"""
[handlers.sandbox]
shim = "{TOOLS / "containerd-shim-zos-sandbox-v1"}"
runtime = "{UPSTREAM.runtime}"
sandboxer = "shim"
"""
PULLS = {name for name in STEPS if name.startswith("pull.")}


class Node:
    """A server, what its configuration says goes wrong, and a client that asks again."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._plain = server.config.read_text()

    def arm(self, point: str, action: str) -> None:
        self.server.config.write_text(f'{self._plain}\n[failpoints]\n"{point}" = "{action}"\n')
        self._reload()

    def disarm(self) -> None:
        self.server.config.write_text(self._plain)
        if self.alive:
            self._reload()

    def _reload(self) -> None:
        process = self.server.process
        assert process is not None
        with self.server.log.open("rb") as log:
            log.seek(0, os.SEEK_END)
            process.send_signal(signal.SIGHUP)
            seen = b""

            def reloaded() -> bool:
                nonlocal seen
                seen += log.read()
                return b"configuration reloaded" in seen or not self.alive

            wait_for(reloaded)

    @property
    def alive(self) -> bool:
        process = self.server.process
        return process is not None and process.poll() is None

    def revive(self) -> None:
        """Starts the server where it was killed, without its failpoints."""
        if not self.alive:
            self.server.process = None
            self.disarm()
            self.server.start()

    def call(self, method: str, request: Any, timeout: float = 30) -> Any:
        """One RPC: asked again until it succeeds. The first failure ends the failpoint."""
        for attempt in range(TRIES):
            try:
                with self.server.channel() as channel:
                    service = (
                        cri_pb2_grpc.ImageServiceStub
                        if "Image" in method
                        else cri_pb2_grpc.RuntimeServiceStub
                    )
                    return getattr(service(channel), method)(request, timeout=timeout)
            except grpc.RpcError as error:
                if attempt == TRIES - 1:
                    raise
                if error.code() in ENDED and self._died():
                    self.revive()
                elif "failpoint" in (error.details() or ""):
                    self.disarm()
                else:
                    raise
        raise AssertionError("not reached")

    def _died(self) -> bool:
        """Whether the server is gone: the connection ends a moment before the process."""
        assert self.server.process is not None
        try:
            self.server.process.wait(2)
        except Exception:
            return False
        return True


@contextmanager
def bystander(node: Node) -> Iterator[Callable[[], None]]:
    """A container that runs all the while; gives what checks that it does."""
    with node.server.cri() as cri:
        pod = node.server.run_pod(cri, "bystander")
        script = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done"
        id_ = node.server.run_container(cri, pod, "sh", "-c", script)
        first = cri.ContainerStatus(pb.ContainerStatusRequest(container_id=id_)).status
    log = node.server.logs / "bystander" / "main.log"

    def check() -> None:
        status = node.call("ContainerStatus", pb.ContainerStatusRequest(container_id=id_)).status
        assert (status.state, status.started_at) == (pb.CONTAINER_RUNNING, first.started_at)

    yield check
    check()
    numbers = [int(line.split()[-1]) for line in log.read_text().splitlines()]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 10


def live(node: Node, name: str, handler: str = "") -> None:
    """A pod's life: a container that exits by itself, one that is stopped, one unused; an exec."""
    server = node.server
    pod_config = server.pod(name, pid=pb.NODE)
    request = pb.RunPodSandboxRequest(config=pod_config, runtime_handler=handler)
    pod = node.call("RunPodSandbox", request).pod_sandbox_id
    assert _create(node, pod, server.container("true", name="unused"))
    code = _create(node, pod, server.container("sh", "-c", "echo it was; exit 7", name="exits"))
    _start(node, code)
    wait_for(lambda: _status(node, code).state == pb.CONTAINER_EXITED)
    assert _status(node, code).exit_code in (7, 128)  # 128: its start was what failed
    # On the host's pid namespace the runtime, not we, ends all of its processes.
    host_pids = pb.LinuxContainerConfig(
        security_context=pb.LinuxContainerSecurityContext(
            namespace_options=pb.NamespaceOption(pid=pb.NODE)
        )
    )
    stays = _create(node, pod, server.container("sleep", "1000", name="stays", linux=host_pids))
    _start(node, stays)
    if _status(node, stays).state == pb.CONTAINER_RUNNING:
        execution = pb.ExecSyncRequest(container_id=stays, cmd=["echo", "hello"], timeout=10)
        assert node.call("ExecSync", execution).stdout == b"hello\n"
    node.call("StopContainer", pb.StopContainerRequest(container_id=stays, timeout=0))
    node.call("RemoveContainer", pb.RemoveContainerRequest(container_id=code))
    node.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod))
    node.call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=pod))


def lose_a_shim(node: Node, name: str) -> None:
    """A pod whose shim dies: its container ends with it."""
    server = node.server
    request = pb.RunPodSandboxRequest(config=server.pod(name))
    pod = node.call("RunPodSandbox", request).pod_sandbox_id
    id_ = _create(node, pod, server.container("sleep", "1000"))
    _start(node, id_)
    (shim,) = (pid for pid, line in server.processes() if "-shim-" in line and pod in line)
    os.kill(shim, signal.SIGKILL)

    def ended() -> bool:
        node.revive()
        status = _status(node, id_)
        if status.state != pb.CONTAINER_EXITED:
            return False
        assert status.exit_code in (137, 255)
        return True

    wait_for(ended)
    node.disarm()
    node.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod))
    node.call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=pod))


def pull(node: Node, registry: Registry, name: str) -> None:
    registry.add_image(name, "1", [tar_of({"name": name.encode() * 1000})])
    image = pb.ImageSpec(image=f"{registry.address}/{name}:1")
    node.call("PullImage", pb.PullImageRequest(image=image))
    assert node.call("ImageStatus", pb.ImageStatusRequest(image=image)).image.id
    node.call("RemoveImage", pb.RemoveImageRequest(image=image))
    assert list((node.server.state / "images" / "ingest").iterdir()) == []


def _create(node: Node, pod: str, config: pb.ContainerConfig) -> str:
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    return str(node.call("CreateContainer", request).container_id)


def _start(node: Node, id_: str) -> None:
    """Starts it. One whose start has failed has ended; a lost answer may have been a yes."""
    try:
        node.call("StartContainer", pb.StartContainerRequest(container_id=id_))
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
            raise
        assert _status(node, id_).state in (pb.CONTAINER_RUNNING, pb.CONTAINER_EXITED)


def _status(node: Node, id_: str) -> pb.ContainerStatus:
    request = pb.ContainerStatusRequest(container_id=id_)
    status: pb.ContainerStatus = node.call("ContainerStatus", request).status
    return status


def differences(server: Server) -> list[Finding]:
    """What `zos-cri audit` lists, without a Python of its own each time."""
    settings = config.load(server.config)

    async def look() -> list[Finding]:
        async def read() -> Records:
            return await asyncio.to_thread(records.read, settings.state_dir / "state.db")

        return await check.audit(Look(settings, Cgroups()), read)

    return asyncio.run(look())


def pods_left(node: Node) -> list[str]:
    items = node.call("ListPodSandbox", pb.ListPodSandboxRequest()).items
    return [pod.metadata.name for pod in items if pod.metadata.name != "bystander"]


@pytest.mark.parametrize("action", ["error", "kill"])
@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda runtime: runtime.name)
def test_every_point(runtime: Any, action: str, own_network: None) -> None:
    points = [f"{step}.{side}" for step in sorted(STEPS) for side in SIDES]
    with Registry() as registry, serving(runtime, cni=True, extra=HANDLER) as server:
        node = Node(server)
        with bystander(node) as undisturbed:
            for number, point in enumerate(points):
                if point.startswith(CHOSEN):
                    goes_wrong(node, registry, number, point, action)
                    undisturbed()
            assert server.audit() == []
        server.remove_pods()
        assert server.leftovers() == []
        assert server.audit() == []


def goes_wrong(node: Node, registry: Registry, number: int, point: str, action: str) -> None:
    """One failpoint's turn."""
    server = node.server
    step = point.rpartition(".")[0]
    begun = time.monotonic()
    node.arm(point, action)
    offset = server.log.stat().st_size
    try:
        if step in SANDBOXER:
            live(node, f"p{number}", handler="sandbox")
        elif step in PULLS:
            pull(node, registry, f"p{number}-{action}")
        elif step in SHIM_DEATH:
            lose_a_shim(node, f"p{number}")
        else:
            live(node, f"p{number}")
        # A shim's end comes after the answer to what it ended for.
        wait_for(lambda: f"point={point} action".encode() in server.log.read_bytes()[offset:])
        node.revive()
        node.disarm()
        assert pods_left(node) == []
        assert differences(server) == []
    except BaseException:
        print(f"at {point} = {action}")
        raise
    print(f"{point} {action}: {time.monotonic() - begun:.1f} s")
