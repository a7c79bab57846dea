"""NRI with real plugins: what they are told, and what they change, asked from inside containers."""

from __future__ import annotations

import errno
import os
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import grpc
import pytest

from tests.integration.nri_plugin import connected, install, until_log
from tests.integration.server import DEBIAN, SYSTEMD_CGROUP, UPSTREAM, Server, serving
from tests.integration.test_containers import ended, refused, says, status_of
from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go]

LIFE = [
    "RunPodSandbox",
    "CreateContainer",
    "PostCreateContainer",
    "StartContainer",
    "PostStartContainer",
    "StopContainer",
    "StopPodSandbox",
    "RemoveContainer",
    "RemovePodSandbox",
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One for all tests here that don't need another one."""
    with serving(UPSTREAM) as started:
        yield started


@pytest.fixture
def node(server: Server) -> Iterator[Server]:
    """The server, which nothing of a test is left on."""
    yield server
    server.remove_pods()
    assert server.leftovers() == []


def remove_pod(cri: Any, pod: str) -> None:
    cri.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
    cri.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))


def test_a_life_is_told_in_order(node: Server, tmp_path: Path) -> None:
    with connected(node, tmp_path) as plugin, node.cri() as cri:
        pod = node.run_pod(cri, labels={"of": "pod"})
        container = node.run_container(cri, pod, labels={"of": "container"})
        remove_pod(cri, pod)
        plugin.until("RemovePodSandbox", pod=pod)
        assert plugin.names(pod=pod) == LIFE
        told = {x["event"]: x for x in plugin.lines() if x.get("pod") == pod}
    assert told["RunPodSandbox"]["pod_name"] == "pod"
    created, started, stopped = (
        told[event] for event in ("CreateContainer", "StartContainer", "StopContainer")
    )
    assert (created["container"], created["name"]) == (container, "main")
    assert created["args"] == ["sleep", "1000"]
    assert created["labels"] == {"of": "container"}
    assert (started["state"], started["pid"] > 1) == ("CONTAINER_CREATED", True)
    assert (stopped["state"], stopped["exit"]) == ("CONTAINER_STOPPED", 137)
    until_log(node, "NRI plugin is gone")


def test_a_container_that_ends_by_itself(node: Server, tmp_path: Path) -> None:
    with connected(node, tmp_path) as plugin, node.cri() as cri:
        pod = node.run_pod(cri)
        container = node.run_container(cri, pod, "sh", "-c", "exit 3")
        assert ended(cri, container).exit_code == 3
        assert plugin.until("StopContainer", container=container)["exit"] == 3
        cri.RemoveContainer(pb.RemoveContainerRequest(container_id=container))
        assert plugin.names(container=container)[-2:] == ["StopContainer", "RemoveContainer"]


def test_adjustments_are_seen_inside(node: Server, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("from the plugin")
    adjust = {
        "env": [{"key": "FROM_NRI", "value": "yes"}, {"key": "-GONE"}],
        "annotations": {"nri.test/added": "1"},
        "mounts": [
            {
                "destination": "/nri",
                "type": "bind",
                "source": str(tmp_path / "data"),
                "options": ["rbind", "ro"],
            }
        ],
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 777, "soft": 333}],
        "linux": {
            "devices": [
                {
                    "path": "/dev/nri-zero",
                    "type": "c",
                    "major": 1,
                    "minor": 5,
                    "fileMode": {"value": 438},
                }
            ],
            "oomScoreAdj": {"value": 321},
            "resources": {
                "memory": {"limit": {"value": 64 << 20}},
                "cpu": {"shares": {"value": 512}},
            },
        },
    }
    envs = [pb.KeyValue(key="GONE", value=b"1"), pb.KeyValue(key="STAYS", value=b"2")]
    with connected(node, tmp_path, adjust=adjust), node.cri() as cri:
        pod = node.run_pod(cri)
        container = node.run_container(cri, pod, envs=envs)
        assert says(cri, container, "echo $FROM_NRI,$GONE,$STAYS") == "yes,,2"
        assert says(cri, container, "cat /nri/file") == "from the plugin"
        assert says(cri, container, "ulimit -n; ulimit -Hn") == "333\n777"
        assert says(cri, container, "head -c 3 /dev/nri-zero | od -An -tx1") == "00 00 00"
        assert says(cri, container, "cat /proc/1/oom_score_adj") == "321"
        status = status_of(cri, container)
        assert status.resources.linux.memory_limit_in_bytes == 64 << 20
        assert status.resources.linux.cpu_shares == 512
        limits = [path for path in node.cgroups() if path.name == container]
        assert any((path / "memory.limit_in_bytes").exists() for path in limits) or limits
        files = ("memory.limit_in_bytes", "memory.max")
        found = [(p / f).read_text().strip() for p in limits for f in files if (p / f).exists()]
        assert found == [str(64 << 20)]


def test_arguments_and_hooks(node: Server, tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ncat > {tmp_path}/state\n")
    hook.chmod(0o755)
    adjust = {
        "args": ["sleep", "999"],
        "hooks": {"createRuntime": [{"path": str(hook)}]},
    }
    with connected(node, tmp_path, adjust=adjust), node.cri() as cri:
        pod = node.run_pod(cri)
        container = node.run_container(cri, pod)
        assert says(cri, container, "tr '\\0' ' ' < /proc/1/cmdline") == "sleep 999"
        assert container in (tmp_path / "state").read_text()


def test_what_only_the_runtime_can_do(node: Server, tmp_path: Path) -> None:
    cgroup = f"{node.cgroup}/chosen"
    adjust = {
        "linux": {
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6},
            "scheduler": {"policy": "SCHED_BATCH"},
            "sysctl": {"kernel.msgmax": "4096"},
            "namespaces": [{"type": "-uts"}],
            "seccompPolicy": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [
                    {
                        "names": ["mkdir", "mkdirat"],
                        "action": "SCMP_ACT_ERRNO",
                        "errnoRet": {"value": errno.EXDEV},
                    }
                ],
            },
            **({} if SYSTEMD_CGROUP else {"cgroupsPath": cgroup}),
        }
    }
    with connected(node, tmp_path, adjust=adjust) as plugin, node.cri() as cri:
        pod = node.run_pod(cri)
        container = node.run_container(cri, pod)
        assert says(cri, container, "ionice -p 1") == "best-effort: prio 6"
        assert says(cri, container, "cat /proc/sys/kernel/msgmax") == "4096"
        assert "cross-device" in says(cri, container, "mkdir /x 2>&1 || true").lower()
        pid = plugin.until("PostStartContainer", container=container)["pid"]
        assert os.sched_getscheduler(pid) == os.SCHED_BATCH
        assert os.readlink(f"/proc/{pid}/ns/uts") == os.readlink("/proc/self/ns/uts")
        with open(f"/proc/{pid}/cgroup") as file:
            assert SYSTEMD_CGROUP or cgroup in file.read()


def test_an_older_runtime_is_not_asked_for_what_it_would_pass_over(tmp_path: Path) -> None:
    """Debian 12's runc knows OCI 1.0: what is older than that is done, and the rest is said."""
    adjust = {"env": [{"key": "A", "value": "1"}]}
    younger = {"linux": {"ioPriority": {"class": "IOPRIO_CLASS_BE"}}}
    with serving(DEBIAN) as node, node.cri() as cri, ExitStack() as stack:
        stack.enter_context(connected(node, tmp_path, "one", "10", adjust=adjust))
        script = {"adjust": younger, "only": "younger"}
        stack.enter_context(connected(node, tmp_path, "two", "20", **script))
        pod = node.run_pod(cri)
        assert says(cri, node.run_container(cri, pod), "echo $A") == "1"
        assert refused(cri, node, pod, name="younger") == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "linux.io_priority: the handler's runtime has no process.ioPriority",
        )


def test_two_plugins_in_the_order_of_their_indexes(node: Server, tmp_path: Path) -> None:
    """The later one sees what the earlier one has set, and takes it away before it sets it anew."""
    first = {"env": [{"key": "A", "value": "1"}, {"key": "B", "value": "1"}]}
    second = {"env": [{"key": "-A"}, {"key": "A", "value": "2"}]}
    with ExitStack() as stack, node.cri() as cri:
        late = stack.enter_context(connected(node, tmp_path, "late", "20", adjust=second))
        stack.enter_context(connected(node, tmp_path, "early", "05", adjust=first))
        pod = node.run_pod(cri)
        container = node.run_container(cri, pod)
        assert says(cri, container, "echo $A$B") == "21"
        assert {"A=1", "B=1"} <= set(late.until("CreateContainer", container=container)["env"])


def test_a_conflict_is_refused_and_leaves_nothing(node: Server, tmp_path: Path) -> None:
    adjust = {"env": [{"key": "A", "value": "1"}]}
    with ExitStack() as stack, node.cri() as cri:
        one = stack.enter_context(connected(node, tmp_path, "one", "10", adjust=adjust))
        stack.enter_context(connected(node, tmp_path, "two", "20", adjust=adjust))
        pod = node.run_pod(cri)
        code, text = refused(cri, node, pod)
        assert (code, text) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            'NRI plugins "20-two" and "10-one" both set Env A',
        )
        made = one.until("CreateContainer")["container"]
        one.until("RemoveContainer", container=made)
        assert one.names(container=made) == ["CreateContainer", "StopContainer", "RemoveContainer"]
        assert cri.ListContainers(pb.ListContainersRequest()).containers == []


def test_a_plugin_that_wants_what_cannot_be(node: Server, tmp_path: Path) -> None:
    adjust = {"mounts": [{"destination": "relative", "source": "/tmp", "type": "bind"}]}
    with connected(node, tmp_path, adjust=adjust), node.cri() as cri:
        pod = node.run_pod(cri)
        code, text = refused(cri, node, pod)
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert text == ('NRI adjustment: mounts[0].destination: "relative" is not an absolute path')


@pytest.mark.parametrize("event", ["RunPodSandbox", "CreateContainer", "StartContainer"])
def test_a_plugin_that_refuses(node: Server, tmp_path: Path, event: str) -> None:
    with connected(node, tmp_path, fail=event) as plugin, node.cri() as cri:
        if event == "RunPodSandbox":
            with pytest.raises(grpc.RpcError) as error:
                node.run_pod(cri)
            text = str(error.value.details())
            pod = plugin.until(event)["pod"]
            assert plugin.names(pod=pod) == [event, "StopPodSandbox", "RemovePodSandbox"]
            assert cri.ListPodSandbox(pb.ListPodSandboxRequest()).items == []
        else:
            _, text = refused(cri, node, node.run_pod(cri))
        assert "NRI plugin 10-test" in text
        assert "told to fail" in text
        assert plugin.process.poll() is None


def test_updates_of_others(node: Server, tmp_path: Path) -> None:
    with node.cri() as cri:
        pod = node.run_pod(cri)
        first = node.run_container(cri, pod, name="first")
        update = {
            "containerId": first,
            "linux": {"resources": {"memory": {"limit": {"value": 96 << 20}}}},
        }
        gone = {**update, "containerId": "f" * 64}
        with connected(node, tmp_path, update=[update, gone], only="second"):
            node.run_container(cri, pod, name="second")
        linux = status_of(cri, first).resources.linux
        assert linux.memory_limit_in_bytes == 96 << 20


def test_an_update_that_a_plugin_changes(node: Server, tmp_path: Path) -> None:
    changes = [{"linux": {"resources": {"cpu": {"shares": {"value": 333}}}}}]
    with connected(node, tmp_path, changes=changes) as plugin, node.cri() as cri:
        pod = node.run_pod(cri)
        container = node.run_container(cri, pod)
        asked = pb.LinuxContainerResources(cpu_shares=222, memory_limit_in_bytes=80 << 20)
        cri.UpdateContainerResources(
            pb.UpdateContainerResourcesRequest(container_id=container, linux=asked)
        )
        told = plugin.until("UpdateContainer", container=container)
        assert told["limits"]["cpu"]["shares"] == {"value": "222"}
        plugin.until("PostUpdateContainer", container=container)
        linux = status_of(cri, container).resources.linux
        assert (linux.cpu_shares, linux.memory_limit_in_bytes) == (333, 80 << 20)


def test_an_update_that_nobody_asked_for(node: Server, tmp_path: Path) -> None:
    with connected(node, tmp_path) as plugin, node.cri() as cri:
        pod = node.run_pod(cri)
        container = node.run_container(cri, pod)
        limits = {"cpu": {"shares": {"value": 444}}}
        bad = {"unified": {"no such": "x"}}
        other = node.run_container(cri, pod, name="other")
        plugin.ask(
            {
                "update": [
                    {"containerId": container, "linux": {"resources": limits}},
                    {"containerId": other, "linux": {"resources": bad}},
                ]
            }
        )
        assert plugin.until("UpdateContainers")["failed"] == [other]
        assert status_of(cri, container).resources.linux.cpu_shares == 444


def test_the_pods_resources(node: Server, tmp_path: Path) -> None:
    with connected(node, tmp_path) as plugin, node.cri() as cri:
        pod = node.run_pod(cri)
        resources = pb.LinuxContainerResources(cpu_shares=100)
        cri.UpdatePodSandboxResources(
            pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod, resources=resources)
        )
        told = plugin.until("UpdatePodSandbox", pod=pod)
        assert told["limits"]["cpu"]["shares"] == {"value": "100"}
        plugin.until("PostUpdatePodSandbox", pod=pod)


def test_a_validator_refuses(node: Server, tmp_path: Path) -> None:
    """Upstream's own default validator, as a plugin."""
    hooks = {"hooks": {"poststop": [{"path": "/bin/true"}]}}
    with ExitStack() as stack, node.cri() as cri:
        stack.enter_context(connected(node, tmp_path, "hooks", "10", adjust=hooks, only="bad"))
        policy = {"RejectOCIHookAdjustment": True}
        stack.enter_context(connected(node, tmp_path, "guard", "90", validator=policy))
        pod = node.run_pod(cri)
        node.run_container(cri, pod, name="good")
        _, text = refused(cri, node, pod, name="bad")
        assert "NRI plugin 90-guard refuses the container's adjustment" in text
        assert '"10-hooks" attempted restricted OCI hook injection' in text


def test_a_plugin_that_hangs_is_closed_and_the_request_goes_on(tmp_path: Path) -> None:
    with serving(UPSTREAM, nri_settings="request_timeout = 0.5") as node:
        with connected(node, tmp_path, hang="CreateContainer") as plugin, node.cri() as cri:
            pod = node.run_pod(cri)
            container = node.run_container(cri, pod)
            assert status_of(cri, container).state == pb.CONTAINER_RUNNING
            until_log(node, "NRI plugin is gone")
            plugin.ended()
        policy = {"failRequest": True, "keepConnected": True}
        with (
            connected(node, tmp_path, "strict", hang="CreateContainer", policy=policy) as plugin,
            node.cri() as cri,
        ):
            code, text = refused(cri, node, pod, name="other")
            assert code == grpc.StatusCode.DEADLINE_EXCEEDED
            assert "NRI plugin 10-strict" in text
            plugin.until("StopContainer")  # it is there still
        metrics = urlopen(node.metrics_url(), timeout=10).read().decode()
    line = 'plugin_invocations_total{error="deadline_exceeded",operation="CreateContainer"'
    assert f'zos_cri_nri_{line},plugin="10-test",status="error"}} 1.0' in metrics


def test_a_plugin_that_dies_amid_a_request(node: Server, tmp_path: Path) -> None:
    with connected(node, tmp_path, die="CreateContainer") as plugin, node.cri() as cri:
        pod = node.run_pod(cri)
        container = node.run_container(cri, pod)
        assert plugin.process.wait(20) == 3
        assert status_of(cri, container).state == pb.CONTAINER_RUNNING


def test_more_than_one_message_takes(node: Server, tmp_path: Path) -> None:
    """Six MiB of containers are told in parts, in frames that upstream's reader can take."""
    big = [pb.KeyValue(key="BIG", value=b"x" * (1 << 20))]
    with node.cri() as cri:
        pod = node.run_pod(cri)
        made = []
        for number in range(6):
            config = node.container(name=f"c{number}", envs=big)
            request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
            made.append(cri.CreateContainer(request).container_id)
        with connected(node, tmp_path) as plugin:
            synced = plugin.until("Synchronize")
            assert sorted(synced["containers"]) == sorted(made)
            told = node.container(name="told", envs=big)
            cri.CreateContainer(pb.CreateContainerRequest(pod_sandbox_id=pod, config=told))
            assert f"BIG={'x' * (1 << 20)}" in plugin.until("CreateContainer", name="told")["env"]


def test_installed_plugins(tmp_path: Path) -> None:
    """Started with the server, told of what runs, and ended with it."""
    server = Server(UPSTREAM)
    try:
        server.start()
        with server.cri() as cri:
            pod = server.run_pod(cri)
            container = server.run_container(cri, pod)
        server.kill()
        adjust = {"env": [{"key": "A", "value": "1"}]}
        told = install(server, tmp_path, "07-installed", adjust=adjust)
        nothing = install(server, tmp_path, "wrong")
        silent = server.state / "nri" / "plugins" / "08-silent"
        silent.write_text("#!/bin/sh\nexit 1\n")
        silent.chmod(0o755)
        server.start()
        synced = told.until("Synchronize")
        assert (synced["pods"], synced["containers"]) == ([pod], [container])
        log = server.log.read_text()
        assert "'wrong' is not named NN-name" in log
        assert "08-silent: it has closed its connection" in log
        assert nothing.lines() == []
        with server.cri() as cri:
            cri.StopContainer(pb.StopContainerRequest(container_id=container, timeout=0))
            told.until("StopContainer", container=container)
            other = server.run_container(cri, pod, name="other")
            assert says(cri, other, "echo $A") == "1"
            remove_pod(cri, pod)
            assert told.names(pod=pod)[-1] == "RemovePodSandbox"
        processes = [
            int(entry)
            for entry in os.listdir("/proc")
            if entry.isdigit() and str(server.state / "nri") in _command(entry)
        ]
        assert len(processes) == 1
        server.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(processes[0], signal.SIGCONT)
        assert not (server.run / "nri.sock").exists()
    finally:
        server.destroy()


def _command(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read()
    except OSError:
        return ""


def test_without_connections(tmp_path: Path) -> None:
    with serving(UPSTREAM, nri_settings="disable_connections = true") as server:
        assert not (server.run / "nri.sock").exists()
    with serving(UPSTREAM, nri_settings="enabled = false") as server:
        assert not (server.run / "nri.sock").exists()
