"""What a kubelet makes of static pods over our socket: their lives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.kubelet.node import (
    POD_TIMEOUT,
    container,
    is_ready,
    is_running,
    mount,
    restarts,
    statuses,
    volume,
    wait_for,
)
from zos_cri.linux.cgroup import Cgroups

if TYPE_CHECKING:
    from tests.kubelet.node import Node

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go, pytest.mark.timeout(600)]


def test_init_containers_run_in_order(node: Node) -> None:
    work = mount("work", "/work")
    node.add(
        "init",
        container("cat /work/log; exec sleep 1000", **work),
        initContainers=[
            container("echo first >>/work/log", "one", **work),
            container("echo second >>/work/log", "two", **work),
        ],
        volumes=[{"name": "work", "emptyDir": {}}],
    )
    pod = node.wait("init", is_ready, "is ready")
    done = statuses(pod, "initContainerStatuses")
    assert [status["state"]["terminated"]["exitCode"] for status in done.values()] == [0, 0]
    assert node.container_log("init") == "first\nsecond"
    node.remove("init")


def test_sidecar_outlives_the_main_container(node: Node) -> None:
    control = node.control("sidecar")
    wait_for_term = "trap 'echo sidecar >>/ctl/ends; exit 0' TERM; touch /ctl/up; "
    node.add(
        "sidecar",
        container("test -e /ctl/up && echo main >>/ctl/ends", **mount("ctl", "/ctl")),
        initContainers=[
            container(
                wait_for_term + "while :; do sleep 1; done",
                "sidecar",
                restartPolicy="Always",
                startupProbe={"exec": {"command": ["test", "-e", "/ctl/up"]}, "periodSeconds": 1},
                **mount("ctl", "/ctl"),
            )
        ],
        volumes=[volume(control)],
        restartPolicy="Never",
        terminationGracePeriodSeconds=10,
    )
    pod = node.wait("sidecar", lambda pod: pod["status"]["phase"] == "Succeeded", "has succeeded")
    assert statuses(pod)["main"]["state"]["terminated"]["exitCode"] == 0
    ended = statuses(pod, "initContainerStatuses")["sidecar"]["state"]["terminated"]
    assert ended["exitCode"] == 0
    assert (control / "ends").read_text() == "main\nsidecar\n"
    node.remove("sidecar")


def test_restarts_with_back_off(node: Node) -> None:
    node.add("crash", container("echo again; exit 3"))
    pod = node.wait(
        "crash",
        lambda pod: (
            restarts(pod) >= 2
            and statuses(pod)["main"]["state"].get("waiting", {}).get("reason")
            == "CrashLoopBackOff"
        ),
        "is held back after two restarts",
    )
    last = statuses(pod)["main"]["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"]) == (3, "Error")
    node.remove("crash")


def test_out_of_memory(node: Node) -> None:
    limits = {"limits": {"memory": "24Mi"}}
    node.add("oom", container("tail /dev/zero", resources=limits), restartPolicy="Never")
    pod = node.wait("oom", lambda pod: pod["status"]["phase"] == "Failed", "has failed")
    ended = statuses(pod)["main"]["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")
    node.remove("oom")


def test_volumes(node: Node) -> None:
    """emptyDir, on disk and in memory, shared by two containers; a host's directory, read-only."""
    control = node.control("volumes")
    (control / "given").write_text("of the host\n")
    mounts: dict[str, Any] = {
        "volumeMounts": [
            {"name": "disk", "mountPath": "/disk"},
            {"name": "memory", "mountPath": "/memory"},
            {"name": "host", "mountPath": "/host", "readOnly": True},
        ]
    }
    writes = "cat /host/given; (echo x >/host/new) 2>&1; echo shared >/disk/file; "
    writes += "echo shared >/memory/file; grep -o ' /memory tmpfs' /proc/mounts; "
    node.add(
        "volumes",
        container(writes + "exec sleep 1000", **mounts),
        container("until cat /disk/file /memory/file; do sleep 1; done 2>&-", "reader", **mounts),
        volumes=[
            {"name": "disk", "emptyDir": {}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}},
            volume(control, "host", type="Directory"),
        ],
    )
    node.wait("volumes", lambda pod: "terminated" in str(statuses(pod).get("reader")), "has read")
    log = node.container_log("volumes").splitlines()
    assert log[0] == "of the host"
    assert "Read-only file system" in log[1]
    assert log[2] == " /memory tmpfs"
    assert node.container_log("volumes", "reader").splitlines()[:2] == ["shared", "shared"]
    assert not (control / "new").exists()
    node.remove("volumes")


def test_a_missing_host_path_holds_the_pod_back(node: Node) -> None:
    node.add(
        "missing",
        container(**mount("ctl", "/ctl")),
        volumes=[volume("/run/zos-cri-no-such", type="Directory")],
    )
    node.wait("missing", lambda pod: pod["status"]["phase"] == "Pending", "is known")
    wait_for(
        lambda: "hostPath type check failed" in node.log.read_text(), POD_TIMEOUT, "it is refused"
    )
    assert not any(
        "running" in status["state"] for status in statuses(node.pod("missing")).values()
    )
    node.remove("missing")


def test_resources_and_qos(node: Node) -> None:
    limits = {"cpu": "200m", "memory": "64Mi"}
    node.add("guaranteed", container(resources={"limits": limits, "requests": limits}))
    node.add("burstable", container(resources={"requests": {"cpu": "100m"}}))
    node.add("best-effort", container())
    cgroups = Cgroups()
    for name, below in (
        ("guaranteed", ""),
        ("burstable", "/burstable"),
        ("best-effort", "/besteffort"),
    ):
        pod = node.wait(name, is_running, "runs")
        uid = pod["metadata"]["uid"]
        id_ = statuses(pod)["main"]["containerID"].removeprefix("zos-cri://")
        path = f"{node.server.cgroup}/kubepods{below}/pod{uid}/{id_}"
        assert cgroups.pids(path), f"nothing runs in {path}"
        if name == "guaranteed":
            where = cgroups.paths(path)
            assert where.of("cpu")
            assert where.of("memory")
            if cgroups.mode == "v2":
                assert Path(f"{where.of('cpu')}/cpu.max").read_text() == "20000 100000\n"
                assert Path(f"{where.of('memory')}/memory.max").read_text() == f"{64 << 20}\n"
            else:
                assert Path(f"{where.of('cpu')}/cpu.cfs_quota_us").read_text() == "20000\n"
                memory = Path(f"{where.of('memory')}/memory.limit_in_bytes")
                assert memory.read_text() == f"{64 << 20}\n"
    for name in ("guaranteed", "burstable", "best-effort"):
        node.remove(name)
    assert not cgroups.exists(path)


def test_host_port(node: Node) -> None:
    control = node.control("port")
    (control / "index.html").write_text("by the host's port\n")
    node.add(
        "port",
        container(
            "exec httpd -f -p 8080 -h /ctl",
            ports=[{"containerPort": 8080, "hostPort": 18080}],
            **mount("ctl", "/ctl"),
        ),
        volumes=[volume(control)],
    )
    node.add(
        "client",
        container("until wget -qO- http://10.98.7.1:18080/; do sleep 1; done 2>&-"),
        hostNetwork=True,
        restartPolicy="Never",
    )
    node.wait("client", lambda pod: pod["status"]["phase"] == "Succeeded", "has got the page")
    assert node.container_log("client").splitlines()[-1] == "by the host's port"
    node.remove("client")
    node.remove("port")


def test_lifecycle_hooks(node: Node) -> None:
    control = node.control("hooks")
    hook = {"postStart": {"exec": {"command": ["sh", "-c", "echo started >>/ctl/log"]}}}
    hook["preStop"] = {"exec": {"command": ["sh", "-c", "echo stopping >>/ctl/log"]}}
    node.add(
        "hooks",
        container(
            "trap 'echo term >>/ctl/log; exit 0' TERM; while :; do sleep 1; done",
            lifecycle=hook,
            **mount("ctl", "/ctl"),
        ),
        volumes=[volume(control)],
        terminationGracePeriodSeconds=30,
    )
    node.wait("hooks", is_ready, "is ready")
    node.remove("hooks")
    assert (control / "log").read_text() == "started\nstopping\nterm\n"


def test_termination(node: Node) -> None:
    """One that needs two seconds has them; one that doesn't listen is killed."""
    control = node.control("graceful")
    node.add(
        "graceful",
        container(
            "trap 'sleep 2; echo done >/ctl/done; exit 0' TERM; touch /ctl/up; "
            "while :; do sleep 1; done",
            **mount("ctl", "/ctl"),
        ),
        volumes=[volume(control)],
        terminationGracePeriodSeconds=60,
    )
    node.add("stubborn", container("trap '' TERM; while :; do sleep 1; done"))
    node.wait("graceful", is_running, "runs")
    node.wait("stubborn", is_running, "runs")
    wait_for((control / "up").exists, 30, "the trap is set")
    node.remove("graceful")
    assert (control / "done").read_text() == "done\n"
    node.remove("stubborn")


def test_commands_and_logs_by_the_kubelet(node: Node) -> None:
    node.add("talk", container("echo hello; echo oops >&2; exec sleep 1000"))
    node.wait("talk", is_running, "runs")
    assert node.run("talk", "hostname") == "talk-node\n"
    assert sorted(node.logs("talk").splitlines()) == ["hello", "oops"]
    node.remove("talk")


def test_user_namespace(node: Node) -> None:
    node.add("userns", container("cat /proc/self/uid_map; exec sleep 1000"), hostUsers=False)
    node.wait("userns", is_running, "runs")
    inside, outside, size = node.run("userns", "cat", "/proc/self/uid_map").split()
    assert (inside, size) == ("0", "65536")
    assert int(outside) >= 65536
    node.remove("userns")


def test_runtime_class(node: Node) -> None:
    pytest.skip("a RuntimeClass is an object of the API server, and this kubelet has none")
