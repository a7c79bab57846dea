"""A hung shim, a hung CNI plugin and a hung mount at once hold up what is theirs and nothing else.

`ZOS_CRI_HUNG_SECONDS=10 hack/netns run --pids PYTHON -m pytest -s tests/integration/test_hung.py`
prints how long the calls took that a kubelet makes all the time.
"""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.fakes.cni import FakeCni
from tests.fakes.fuse import HangingFuse
from tests.integration.server import DEBIAN, UPSTREAM, Server, serving
from tests.integration.test_crictl import wait_for
from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECONDS = float(os.environ.get("ZOS_CRI_HUNG_SECONDS", "2"))
PATIENCE = 10.0  # of a read; what hangs does so for longer

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.timeout(120 + SECONDS)]

OTHER = f"""
[handlers.other]
shim = "{DEBIAN.shim}"
runtime = "{DEBIAN.runtime}"
"""


@pytest.fixture
def cni(tmp_path: Path) -> FakeCni:
    fake = FakeCni(tmp_path)
    fake.plugin("fake")
    fake.network("net", "fake")
    return fake


@pytest.fixture
def node(cni: FakeCni) -> Iterator[Server]:
    settings = f'bin_dirs = ["{cni.bin}"]'
    with serving(UPSTREAM, cni=True, cni_settings=settings, extra=OTHER) as server:
        for path in server.conf_dir.iterdir():
            path.unlink()
        (server.conf_dir / "10-net.conflist").write_bytes(
            (cni.conf / "10-net.conflist").read_bytes()
        )
        yield server


class Hung(threading.Thread):
    """A call that isn't answered for now."""

    def __init__(self, server: Server, method: str, request: Any) -> None:
        super().__init__(name=method, daemon=True)
        self._work = (server, method, request)
        self.error: grpc.RpcError | None = None
        self.start()

    def run(self) -> None:
        server, method, request = self._work
        try:
            with server.cri() as cri:
                getattr(cri, method)(request, timeout=60)
        except grpc.RpcError as error:
            self.error = error


def test_reads_and_other_pods_go_on(node: Server, cni: FakeCni, tmp_path: Path) -> None:
    with node.cri() as cri, HangingFuse(tmp_path / "dead") as fuse:
        wait_for(lambda: _network_ready(cri))
        stopped = node.run_pod(cri, "stopped")
        held = node.run_container(cri, stopped)
        mounts = node.run_pod(cri, "mounts")
        (shim,) = (pid for pid, line in node.processes() if "-shim-" in line and stopped in line)

        os.kill(shim, signal.SIGSTOP)
        fuse.hang()
        cni.plugin("fake", ADD={"hang": True})
        mount = pb.Mount(container_path="/data", host_path=str(fuse.path / "volume"))
        hung = [
            Hung(node, "RunPodSandbox", pb.RunPodSandboxRequest(config=node.pod("hung"))),
            Hung(
                node,
                "CreateContainer",
                pb.CreateContainerRequest(
                    pod_sandbox_id=mounts, config=node.container(mounts=[mount])
                ),
            ),
            Hung(node, "StopContainer", pb.StopContainerRequest(container_id=held, timeout=30)),
            Hung(
                node,
                "ExecSync",
                pb.ExecSyncRequest(container_id=held, cmd=["true"], timeout=50),
            ),
        ]
        wait_for(lambda: "ADD fake" in cni.said()[-1:])
        assert fuse.asked.wait(PATIENCE)

        figures = _ask_for(SECONDS, cri)
        assert [call.name for call in hung if not call.is_alive()] == []
        # Another handler, and the host's network: none of what hangs.
        other = node.run_pod(cri, "other", handler="other", host_network=True)
        node.run_container(cri, other)
        assert [call.name for call in hung if not call.is_alive()] == []
        for name, times in figures.items():
            p99 = statistics.quantiles(times, n=100)[98]
            print(
                f"{name}: {len(times)} calls, median {statistics.median(times) * 1000:.1f} ms,"
                f" p99 {p99 * 1000:.1f} ms, longest {max(times) * 1000:.1f} ms"
            )

        # And all is well when it no longer hangs.
        os.kill(shim, signal.SIGCONT)
        fuse.abort()
        cni.plugin("fake")
        for run in cni.calls("ADD")[-1:]:
            os.kill(run.pid, signal.SIGKILL)
        # Sooner than the one under way would have it.
        cri.StopContainer(pb.StopContainerRequest(container_id=held, timeout=0))
        for call in hung:
            call.join(60)
            assert not call.is_alive(), call.name
        node.run_container(cri, mounts, name="well")
    assert node.audit() == []
    node.remove_pods()
    assert node.leftovers() == []


def _network_ready(cri: Any) -> bool:
    conditions = cri.Status(pb.StatusRequest()).status.conditions
    return all(condition.status for condition in conditions)


def _ask_for(seconds: float, cri: Any) -> dict[str, list[float]]:
    """Makes a kubelet's calls for so long; how long each took."""
    calls = {
        "ListPodSandbox": pb.ListPodSandboxRequest(),
        "ListContainers": pb.ListContainersRequest(),
        "Version": pb.VersionRequest(),
        "Status": pb.StatusRequest(),
    }
    figures: dict[str, list[float]] = {name: [] for name in calls}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for name, request in calls.items():
            begun = time.monotonic()
            getattr(cri, name)(request, timeout=PATIENCE)
            figures[name].append(time.monotonic() - begun)
        time.sleep(0.01)
    return figures
