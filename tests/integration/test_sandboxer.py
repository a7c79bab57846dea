"""Pods whose shim makes the sandbox, with a shim that has the sandbox API and runc's containers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.conftest import TOOLS
from tests.integration.server import DEBIAN, UPSTREAM, Server, serving
from tests.integration.test_crictl import wait_for
from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.runtime]

SHIM = TOOLS / "containerd-shim-zos-sandbox-v1"
HANDLER = f"""
[handlers.sandbox]
shim = "{SHIM}"
runtime = "{UPSTREAM.runtime}"
sandboxer = "shim"
"""


@pytest.fixture
def node(own_network: None) -> Iterator[Server]:
    with serving(UPSTREAM, cni=True, extra=HANDLER) as started:
        yield started
        started.remove_pods()
        assert sandboxes(started) == []
        assert started.leftovers() == []
        assert started.audit() == []


def sandboxes(node: Server) -> list[int]:
    """The processes of the shims' sandboxes."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes()
            if line.startswith(b"sandbox\0" + os.fsencode(node.run)):
                found.append(int(entry.name))
    return found


def shims(node: Server) -> list[int]:
    return [pid for pid, line in node.processes() if str(SHIM) in line]


def state(cri: Any, pod: str) -> str:
    status = cri.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=pod)).status
    return pb.PodSandboxState.Name(status.state)


def info(cri: Any, pod: str) -> tuple[dict[str, Any], dict[str, str]]:
    request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
    told = dict(cri.PodSandboxStatus(request).info)
    return json.loads(told.pop("info")), told


def container_status(cri: Any, container: str) -> Any:
    return cri.ContainerStatus(pb.ContainerStatusRequest(container_id=container)).status


def says(cri: Any, container: str, command: str) -> str:
    request = pb.ExecSyncRequest(container_id=container, cmd=["sh", "-c", command], timeout=20)
    answer = cri.ExecSync(request)
    assert answer.exit_code == 0, answer
    return str(answer.stdout.decode().strip())


def namespace(pid: int | str, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def not_ready(cri: Any) -> list[Any]:
    return [each for each in cri.Status(pb.StatusRequest()).status.conditions if not each.status]


def doctor(node: Server) -> dict[str, str]:
    """What it says of the handler."""
    argv = [sys.executable, "-m", "zos_cri", "doctor", "--config", str(node.config), "-o", "json"]
    done = subprocess.run(argv, capture_output=True, timeout=60)
    findings = {each["check"]: each for each in json.loads(done.stdout)}
    found: dict[str, str] = findings["handlers.sandbox.sandboxer"]
    return found


# ---- its life


def test_a_pods_life_in_a_sandbox_of_its_shim(node: Server) -> None:
    with node.cri() as cri:
        pod = node.run_pod(cri, handler="sandbox")
        told, own = info(cri, pod)
        (sandbox,) = sandboxes(node)
        (shim,) = shims(node)
        assert (told["pid"], told["sandboxer"]) == (sandbox, "shim")
        assert told["sandbox"] == {"state": "SANDBOX_READY", "pid": sandbox}
        assert own["netns"] == told["namespaces"]["net"]
        # The network is there before the sandbox is, and the sandbox is in it.
        netns = os.stat(own["netns"]).st_ino
        assert namespace(sandbox, "net") == f"net:[{netns}]"
        script = "echo started; trap 'echo stopped; exit 3' TERM; while :; do sleep 0.1; done"
        container = node.run_container(cri, pod, "sh", "-c", script)
        ip = cri.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=pod)).status.network.ip
        assert ip in says(cri, container, "ip -o -4 addr show eth0")
        assert shims(node) == [shim]  # the container's is the pod's
        assert info(cri, pod)[1]["tasks"] == "1"
        cri.StopContainer(pb.StopContainerRequest(container_id=container, timeout=10))
        assert container_status(cri, container).exit_code == 3
        log = (node.logs / "pod" / "main.log").read_text()
        assert " started\n" in log
        assert " stopped\n" in log
        cri.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
        assert (sandboxes(node), shims(node)) == ([], [])
        assert state(cri, pod) == "SANDBOX_NOTREADY"
        cri.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))


def test_it_is_found_fit_before_it_is_used(node: Server) -> None:
    with node.cri() as cri:
        assert doctor(node)["level"] == "ok"
        types = [each.type for each in cri.Status(pb.StatusRequest()).status.conditions]
        assert types[-1] == "SandboxersReady"
        assert not_ready(cri) == []


def test_containers_share_the_sandboxs_pid_namespace(node: Server) -> None:
    with node.cri() as cri:
        pod = node.run_pod(cri, handler="sandbox", pid=pb.NamespaceMode.POD)
        (sandbox,) = sandboxes(node)
        options = pb.NamespaceOption(network=pb.NamespaceMode.POD, pid=pb.NamespaceMode.POD)
        context = pb.LinuxContainerSecurityContext(namespace_options=options)
        linux = pb.LinuxContainerConfig(security_context=context)
        first = node.run_container(cri, pod, "sleep", "1234", linux=linux)
        second = node.run_container(cri, pod, "sleep", "1000", name="second", linux=linux)
        assert "sleep 1234" in says(cri, second, "ps")
        request = pb.ContainerStatusRequest(container_id=first, verbose=True)
        pid = json.loads(cri.ContainerStatus(request).info["info"])["pid"]
        assert namespace(pid, "pid") == namespace(sandbox, "pid_for_children")


def test_numbers_of_a_pod_without_a_cgroup_are_the_sandboxs(node: Server) -> None:
    with node.cri() as cri:
        config = node.pod()
        config.linux.cgroup_parent = ""
        request = pb.RunPodSandboxRequest(config=config, runtime_handler="sandbox")
        pod = cri.RunPodSandbox(request).pod_sandbox_id
        node.run_container(cri, pod, "sh", "-c", "while :; do :; done")

        def stats() -> Any:
            request = pb.PodSandboxStatsRequest(pod_sandbox_id=pod)
            return cri.PodSandboxStats(request).stats.linux

        wait_for(lambda: stats().cpu.usage_nano_cores.value > 0, timeout=30)
        numbers = stats()
        assert numbers.memory.usage_bytes.value >= numbers.memory.working_set_bytes.value > 0
        assert numbers.cpu.usage_core_nano_seconds.value > 0
        assert numbers.network.default_interface.name == "eth0"
        assert len(numbers.containers) == 1


def test_numbers_of_a_container_without_a_cgroup_are_its_tasks(node: Server) -> None:
    """In a machine it has one that the host doesn't see."""
    with node.cri() as cri:
        pod = node.run_pod(cri, handler="sandbox", annotations={"zos.test/guest": "yes"})
        container = node.run_container(cri, pod, "sh", "-c", "while :; do :; done")
        request = pb.ContainerStatsRequest(container_id=container)
        first = cri.ContainerStats(request).stats
        assert first.cpu.usage_core_nano_seconds.value > 0
        assert first.memory.usage_bytes.value > 0

        def listed() -> Any:
            (found,) = cri.ListContainerStats(pb.ListContainerStatsRequest()).stats
            return found

        wait_for(lambda: listed().cpu.usage_nano_cores.value > 0, timeout=30)
        linux = cri.PodSandboxStats(pb.PodSandboxStatsRequest(pod_sandbox_id=pod)).stats.linux
        assert linux.containers[0].cpu.usage_core_nano_seconds.value > 0
        assert linux.process.process_count.value == 1


# ---- failures


@pytest.mark.parametrize("call", ["create", "start"])
def test_a_call_that_fails_is_told_and_undone(node: Server, call: str) -> None:
    with node.cri() as cri:
        with pytest.raises(grpc.RpcError) as failed:
            node.run_pod(cri, handler="sandbox", annotations={"zos.test/fail": call})
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        assert f"{call} was told to fail" in str(failed.value.details())
        assert cri.ListPodSandbox(pb.ListPodSandboxRequest()).items == []
    assert (sandboxes(node), shims(node), node.leftovers()) == ([], [], [])


@pytest.mark.parametrize("call", ["stop", "shutdown"])
def test_a_shim_that_doesnt_go_is_ended(node: Server, call: str) -> None:
    with node.cri() as cri:
        pod = node.run_pod(cri, handler="sandbox", annotations={"zos.test/fail": call})
        node.run_container(cri, pod)
        cri.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
        assert (sandboxes(node), shims(node)) == ([], [])


@pytest.mark.parametrize("runtime", [UPSTREAM, DEBIAN], ids=lambda runtime: runtime.name)
def test_a_shim_without_the_api_is_named(own_network: None, runtime: Any) -> None:
    handler = HANDLER.replace(str(SHIM), runtime.shim)
    with serving(UPSTREAM, cni=True, extra=handler) as node, node.cri() as cri:
        with pytest.raises(grpc.RpcError) as failed:
            node.run_pod(cri, handler="sandbox")
        assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        details = str(failed.value.details())
        assert "containerd.runtime.sandbox.v1" in details
        (condition,) = wait_for(lambda: not_ready(cri))
        assert condition.type == "SandboxersReady"
        assert condition.message.startswith('handler "sandbox": ')
        assert "containerd.runtime.sandbox.v1" in condition.message
        assert doctor(node)["level"] == "fail"
        assert "containerd.runtime.sandbox.v1" in doctor(node)["found"]
        assert 'the handler "sandbox"' in details
        assert len(details.splitlines()) == 1
        assert node.leftovers() == []
        assert node.audit() == []


# ---- ends that nobody asked for


def test_a_sandbox_that_is_killed_takes_its_pod_along(node: Server) -> None:
    with node.cri() as cri:
        pod = node.run_pod(cri, handler="sandbox")
        container = node.run_container(cri, pod)
        other = node.run_pod(cri, "other", handler="sandbox")
        (killed, kept) = (info(cri, id_)[0]["pid"] for id_ in (pod, other))
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: state(cri, pod) == "SANDBOX_NOTREADY")
        wait_for(lambda: container_status(cri, container).state == pb.CONTAINER_EXITED)
        assert container_status(cri, container).exit_code == 137
        assert state(cri, other) == "SANDBOX_READY"
        assert sandboxes(node) == [kept]


def test_a_shim_that_is_killed_takes_its_sandbox_along(node: Server) -> None:
    with node.cri() as cri:
        pod = node.run_pod(cri, handler="sandbox")
        container = node.run_container(cri, pod)
        (shim,) = shims(node)
        os.kill(shim, signal.SIGKILL)
        wait_for(lambda: state(cri, pod) == "SANDBOX_NOTREADY")
        wait_for(lambda: container_status(cri, container).state == pb.CONTAINER_EXITED)
        assert sandboxes(node) == []  # `delete` of the shim's binary ends it


def test_a_pod_whose_shim_answers_no_more_is_ended_all_the_same(node: Server) -> None:
    with node.cri() as cri:
        pod = node.run_pod(cri, handler="sandbox")
        container = node.run_container(cri, pod)
        (shim,) = shims(node)
        os.kill(shim, signal.SIGSTOP)
        cri.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=120)
        assert (sandboxes(node), shims(node)) == ([], [])
        wait_for(lambda: container_status(cri, container).state == pb.CONTAINER_EXITED)


# ---- restarts


def test_a_killed_server_finds_its_sandboxes_again(node: Server) -> None:
    with node.cri() as cri:
        pod = node.run_pod(cri, handler="sandbox")
        container = node.run_container(cri, pod)
        before = (sandboxes(node), shims(node))
    node.restart()
    with node.cri() as cri:
        assert (sandboxes(node), shims(node)) == before
        assert state(cri, pod) == "SANDBOX_READY"
        assert says(cri, container, "echo still") == "still"
        second = node.run_container(cri, pod, name="second")
        assert info(cri, pod)[1]["tasks"] == "2"
        # Its end is waited for anew.
        os.kill(info(cri, pod)[0]["pid"], signal.SIGKILL)
        wait_for(lambda: state(cri, pod) == "SANDBOX_NOTREADY")
        for id_ in (container, second):
            wait_for(lambda id_=id_: container_status(cri, id_).state == pb.CONTAINER_EXITED)


def test_what_ends_while_no_server_is_there_is_found(node: Server) -> None:
    with node.cri() as cri:
        ended = node.run_pod(cri, "ended", handler="sandbox")
        container = node.run_container(cri, ended)
        pid = info(cri, ended)[0]["pid"]
        lost = node.run_pod(cri, "lost", handler="sandbox")
        (shim,) = (each for each, line in node.processes() if str(SHIM) in line and lost in line)
    node.kill()
    os.kill(pid, signal.SIGKILL)
    os.kill(shim, signal.SIGKILL)
    node.start()
    with node.cri() as cri:
        assert [state(cri, pod) for pod in (ended, lost)] == ["SANDBOX_NOTREADY"] * 2
        wait_for(lambda: container_status(cri, container).state == pb.CONTAINER_EXITED)
    assert sandboxes(node) == []
