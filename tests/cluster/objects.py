"""Objects in a namespace of a test's own."""

from __future__ import annotations

import json
import subprocess
import time
from typing import TYPE_CHECKING, Any

from tests.integration.server import IMAGE, SLOWNESS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hack.clusters.cluster import Cluster

Pod = dict[str, Any]
TIMEOUT = 180.0 * SLOWNESS


def container(script: str = "exec sleep 1000", name: str = "main", **fields: Any) -> dict[str, Any]:
    """A container of busybox with a shell script."""
    given = {"name": name, "image": IMAGE, "imagePullPolicy": "Never"}
    return {**given, "command": ["sh", "-c", script], **fields}


def spec(*containers: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A pod's; without containers, one that sleeps."""
    return {
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        **fields,
        "containers": list(containers) or [container()],
    }


def on(node: str) -> dict[str, Any]:
    """The field that keeps a pod to a node."""
    return {"nodeSelector": {"kubernetes.io/hostname": node}}


class Objects:
    """What a test makes by kubectl in a namespace that exists, and asks of it."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self.namespace = namespace

    def close(self) -> None:
        self.kubectl("delete", "namespace", self.namespace, "--timeout=300s", timeout=320)

    # ---- kubectl

    def kubectl(self, *arguments: str | Path, stdin: str = "", timeout: float = 60) -> str:
        """Its output; where it fails an AssertionError with what it said."""
        try:
            return self._cluster.kubectl(
                f"--namespace={self.namespace}", *arguments, stdin=stdin, timeout=timeout
            )
        except SystemExit as error:
            raise AssertionError(str(error)) from error

    def command(self, *arguments: str) -> list[str]:
        """The words of a kubectl's command line."""
        return self._cluster.control.kubectl_command(f"--namespace={self.namespace}", *arguments)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """kubectl, running, with pipes for its input and output."""
        return subprocess.Popen(
            self.command(*arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    # ---- objects

    def create(self, kind: str, name: str, api: str = "v1", **fields: Any) -> None:
        made = {"apiVersion": api, "kind": kind, "metadata": {"name": name}, **fields}
        self.kubectl("create", "--filename=-", stdin=json.dumps(made))

    def pod(self, name: str, *containers: dict[str, Any], **fields: Any) -> None:
        self.create("Pod", name, spec=spec(*containers, **fields))

    def workload(self, kind: str, name: str, pod: dict[str, Any], **fields: Any) -> None:
        """A Deployment or a DaemonSet of pods with the label `app`."""
        labels = {"app": name}
        template = {"metadata": {"labels": labels}, "spec": pod}
        whole = {"selector": {"matchLabels": labels}, "template": template, **fields}
        self.create(kind, name, "apps/v1", spec=whole)

    def rolled_out(self, kind: str, name: str) -> None:
        """Waits until all its pods are available."""
        self.kubectl(
            *("rollout", "status", f"{kind}/{name}", f"--timeout={TIMEOUT:g}s"),
            timeout=TIMEOUT + 20,
        )

    def get(self, *arguments: str) -> dict[str, Any]:
        return dict(json.loads(self.kubectl("get", "--output=json", *arguments)))

    def pods(self, app: str = "") -> list[Pod]:
        """Those that aren't being deleted."""
        chosen = (f"--selector=app={app}",) if app else ()
        found = self.get("pods", *chosen)["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def wait(self, name: str, wanted: Callable[[Pod], bool], what: str) -> Pod:
        """The pod, as soon as it is as wanted."""
        deadline = time.monotonic() + TIMEOUT
        while not wanted(pod := self.get("pod", name)):
            assert time.monotonic() < deadline, (
                f"pod {name} not within {TIMEOUT:g} s: {what}: {json.dumps(pod['status'])}"
            )
            time.sleep(0.3)
        return pod

    def events(self, name: str) -> str:
        """What is told of an object, each event's reason and message a line."""
        found = self.get("events", f"--field-selector=involvedObject.name={name}")["items"]
        return "\n".join(f"{event['reason']}: {event['message']}" for event in found)


def phase(wanted: str) -> Callable[[Pod], bool]:
    return lambda pod: bool(pod["status"].get("phase") == wanted)


def is_ready(pod: Pod) -> bool:
    conditions = pod["status"].get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def restarts(pod: Pod) -> int:
    return sum(int(each["restartCount"]) for each in pod["status"].get("containerStatuses", ()))


def container_ids(pod: Pod) -> set[str]:
    return {each["containerID"] for each in pod["status"]["containerStatuses"]}


def cgroup(pod: Pod, parent: str, qos: str = "") -> str:
    """The cgroup of a pod's only container."""
    (id_,) = container_ids(pod)
    middle = f"/{qos}" if qos else ""
    return f"{parent}/kubepods{middle}/pod{pod['metadata']['uid']}/{id_.removeprefix('zos-cri://')}"
