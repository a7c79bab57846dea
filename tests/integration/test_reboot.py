"""The host is restarted: no process, no mount and nothing of /run is left, the records are."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.integration.test_crictl import wait_for
from zos_cri._pb import cri_pb2 as pb
from zos_cri.linux.mount import mounts_below

if TYPE_CHECKING:
    from tests.integration.server import Server

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.timeout(180)]


def reboot(server: Server) -> None:
    """What is left of a server after a restart of its host."""
    server.kill()
    for pid in [pid for pid, _ in server.processes()] + list(server.loggers()):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not [line for _, line in server.processes() if line])
    for mount in reversed([*mounts_below(str(server.run)), *mounts_below(str(server.state))]):
        subprocess.run(["umount", "-l", mount.target], check=True)
    shutil.rmtree(server.run)
    for cgroup in server.cgroups():
        wait_for(lambda cgroup=cgroup: not (cgroup / "cgroup.procs").read_text())
        cgroup.rmdir()


def test_the_truth_is_told_and_all_is_given_back(bridged: Server) -> None:
    with bridged.cri() as cri:
        pod = bridged.run_pod(cri, "before")
        runs = bridged.run_container(cri, pod)
        ended = bridged.run_container(cri, pod, "sh", "-c", "exit 7", name="ended")
        request = pb.CreateContainerRequest(
            pod_sandbox_id=pod, config=bridged.container(name="created")
        )
        created = cri.CreateContainer(request).container_id

        def status(id_: str) -> pb.ContainerStatus:
            found: pb.ContainerStatus = bridged.ask(
                "ContainerStatus", pb.ContainerStatusRequest(container_id=id_)
            ).status
            return found

        wait_for(lambda: status(ended).state == pb.CONTAINER_EXITED)
    addresses = bridged.state / "ipam"
    assert [path for path in addresses.rglob("10.99.*") if path.is_file()]
    reboot(bridged)
    bridged.start()

    with bridged.cri() as cri:
        (found,) = cri.ListPodSandbox(pb.ListPodSandboxRequest()).items
        assert (found.id, found.state) == (pod, pb.SANDBOX_NOTREADY)
        states = {}
        for id_ in (runs, ended, created):
            answer = status(id_)
            states[id_] = (answer.state, answer.exit_code, answer.reason)
        assert states == {
            runs: (pb.CONTAINER_EXITED, 255, "Unknown"),
            ended: (pb.CONTAINER_EXITED, 7, "Error"),
            created: (pb.CONTAINER_EXITED, 255, "Unknown"),
        }
        # The kubelet makes the pod anew, of the same name and a higher attempt, and stops the old.
        config = bridged.pod("before")
        config.metadata.attempt = 1
        new = cri.RunPodSandbox(pb.RunPodSandboxRequest(config=config)).pod_sandbox_id
        bridged.run_container(cri, new)
        cri.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
        held = [path.name for path in addresses.rglob("10.99.*") if path.is_file()]
        assert len(held) == 1  # the new pod's; the old one's was given back by its saved result
    assert bridged.audit() == []
    bridged.remove_pods()
    assert bridged.leftovers() == []
