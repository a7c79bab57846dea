"""crictl's whole round of a pod's life, with and without CNI, with each shim and runtime."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import json_format

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.server import Server

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go]


class Configs:
    """A pod's and a container's configuration as files."""

    def __init__(self, server: Server, directory: Path, **pod: Any) -> None:
        self.pod = self._write(directory / "pod.json", server.pod("web", **pod))
        script = "echo to stdout; echo to stderr >&2; trap 'exit 42' TERM; sleep 1000 & wait"
        self.container = self._write(
            directory / "container.json", server.container("sh", "-c", script)
        )

    def _write(self, path: Path, message: Any) -> str:
        path.write_text(to_json(message))
        return str(path)


def to_json(message: Any) -> str:
    """A message as crictl reads it: enums are numbers."""
    return json_format.MessageToJson(
        message, preserving_proto_field_name=True, use_integers_for_enums=True
    )


def wait_for(what: Any, timeout: float = 10) -> Any:
    """Asks until the answer is true."""
    deadline = time.monotonic() + timeout
    while not (answer := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return answer


def walk(server: Server, configs: Configs) -> None:
    crictl = server.crictl
    pod = crictl("runp", configs.pod)
    assert re.fullmatch(r"[0-9a-f]{64}", pod)
    assert pod[:13] in crictl("pods")
    assert json.loads(crictl("inspectp", pod))["status"]["state"] == "SANDBOX_READY"
    container = crictl("create", pod, configs.container, configs.pod)
    assert "Created" in crictl("ps", "-a")
    crictl("start", container)
    assert "Running" in crictl("ps")
    status = json.loads(crictl("inspect", container[:13]))["status"]
    assert status["state"] == "CONTAINER_RUNNING"
    wait_for(lambda: "to stderr" in crictl("logs", container, check=False))
    assert "to stdout" in crictl("logs", container)
    assert crictl("exec", "-s", container, "echo", "said inside") == "said inside"
    failing = crictl("exec", "-s", container, "sh", "-c", "exit 7", check=False)
    assert "7" in failing
    crictl("update", "--memory", str(64 << 20), "--cpu-share", "512", container)
    resources = json.loads(crictl("inspect", container))["status"]["resources"]["linux"]
    assert int(resources["memoryLimitInBytes"]) == 64 << 20
    limit = crictl("exec", "-s", container, "cat", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
    assert int(limit) == 64 << 20
    crictl("stop", "-t", "10", container)
    status = json.loads(crictl("inspect", container))["status"]
    assert (status["state"], status["exitCode"]) == ("CONTAINER_EXITED", 42)
    crictl("rm", container)
    crictl("stopp", pod)
    assert "NotReady" in crictl("pods")
    crictl("stopp", pod)  # a second time: nothing to do
    crictl("rmp", pod)
    assert pod[:13] not in crictl("pods")
    assert "zos-cri" in crictl("version")
    assert "RuntimeReady" in crictl("info")
    assert server.leftovers() == []


def test_host_network(server: Server, tmp_path: Path) -> None:
    walk(server, Configs(server, tmp_path))
    conditions = json.loads(server.crictl("info"))["status"]["conditions"]
    assert [c["status"] for c in conditions if c["type"] == "NetworkReady"] == [False]


def test_shared_pid(server: Server, tmp_path: Path) -> None:
    walk(server, Configs(server, tmp_path, pid=0))


def test_bridge(bridged: Server, tmp_path: Path) -> None:
    walk(bridged, Configs(bridged, tmp_path, pid=0))
    conditions = json.loads(bridged.crictl("info"))["status"]["conditions"]
    assert all(c["status"] for c in conditions)


def test_second_container_needs_no_new_shim(server: Server) -> None:
    with server.cri() as cri:
        pod = server.run_pod(cri)
        server.run_container(cri, pod, name="one")
        server.run_container(cri, pod, name="two")
    assert len([line for _, line in server.processes() if "-shim-" in line]) == 1
