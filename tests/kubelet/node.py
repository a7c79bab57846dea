"""A node: a kubelet by itself over a real server, with static pods."""

from __future__ import annotations

import contextlib
import json
import signal
import ssl
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.conftest import ROOT
from tests.integration.server import IMAGE, SLOWNESS, UPSTREAM, Server, serving
from zos_cri._pb import cri_pb2
from zos_cri.linux.cgroup import Cgroups

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ADDRESS = "10.98.7.1"  # the node's, on lo: 127/8 isn't taken for one
PORT = 10255
START_TIMEOUT = 60.0 * SLOWNESS
POD_TIMEOUT = 60.0 * SLOWNESS
STOP_TIMEOUT = 30.0 * SLOWNESS
# The kubelet sets them, and they are the host's.
SYSCTLS = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops")

Pod = dict[str, Any]


class Node:
    """The kubelet's process, its static pods and what it says of them."""

    def __init__(self, server: Server, **settings: Any) -> None:
        self.server = server
        self.root = server.state / "kubelet"
        self.manifests = server.state / "manifests"
        self.log = server.state / "kubelet.log"
        self.settings = {"cgroupRoot": server.cgroup, **settings}
        self.evented = False
        self.process: subprocess.Popen[bytes] | None = None

    # ---- the process

    def start(self) -> None:
        """Starts it, and waits until it answers and knows that the server is ready."""
        words = [sys.executable, str(ROOT / "hack/kubelet"), "run"]
        words += ["--socket", str(self.server.socket), "--root", str(self.root)]
        words += ["--manifests", str(self.manifests), "--node-ip", ADDRESS]
        for key, value in self.settings.items():
            words += ["--set", f"{key}={json.dumps(value)}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(lambda: self._alive() and self._answers(), START_TIMEOUT, "the kubelet answers")

    def stop(self) -> None:
        """SIGTERM; its pods go on."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(STOP_TIMEOUT)
            self.process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def _alive(self) -> bool:
        assert self.process is not None
        code = self.process.poll()
        assert code is None, f"kubelet: exit code {code}: {self.log.read_text()[-4000:]}"
        return True

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.get("/healthz") == "ok"
        return False

    # ---- what it says

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=20) as reply:
            return str(reply.read().decode())

    def pod(self, name: str) -> Pod:
        """The pod with its status; empty when the kubelet doesn't know it."""
        for pod in json.loads(self.get("/pods"))["items"] or ():
            if pod["metadata"]["name"] == f"{name}-node":
                return dict(pod)
        return {}

    def wait(self, name: str, wanted: Callable[[Pod], bool], what: str = "") -> Pod:
        """The pod, as soon as its status is as wanted."""
        found: Pod = {}

        def look() -> bool:
            nonlocal found
            found = self.pod(name)
            return bool(found) and wanted(found)

        try:
            wait_for(look, POD_TIMEOUT, f"pod {name}: {what}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {json.dumps(found.get('status'))}") from None
        return found

    def run(self, name: str, *command: str, container: str = "main") -> str:
        """Runs a command in a container by way of the kubelet; what it wrote."""
        query = urllib.parse.urlencode({"cmd": " ".join(command)})
        url = f"https://127.0.0.1:10250/run/default/{name}-node/{container}?{query}"
        context = ssl._create_unverified_context()  # its certificate is its own
        with urllib.request.urlopen(url, data=b"", timeout=60, context=context) as reply:
            return str(reply.read().decode())

    def logs(self, name: str, container: str = "main") -> str:
        """A container's log as the kubelet gives it out."""
        url = f"https://127.0.0.1:10250/containerLogs/default/{name}-node/{container}"
        with urllib.request.urlopen(
            url, timeout=60, context=ssl._create_unverified_context()
        ) as reply:
            return str(reply.read().decode())

    def summary(self) -> dict[str, Any]:
        return dict(json.loads(self.get("/stats/summary")))

    def container_log(self, name: str, container: str = "main") -> str:
        """What a container of a pod has written, all its restarts' logs one after the other."""
        found = sorted((self.root / "logs").glob(f"default_{name}-node_*/{container}/*.log*"))
        lines = [line for path in found for line in path.read_text().splitlines()]
        return "\n".join(line.split(" ", 3)[3] for line in lines)

    # ---- pods

    def add(self, name: str, *containers: dict[str, Any], **spec: Any) -> None:
        """Writes the manifest of a static pod."""
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"terminationGracePeriodSeconds": 1, **spec, "containers": list(containers)},
        }
        self._write(name, pod)

    def _write(self, name: str, pod: Pod) -> None:
        part = self.manifests / f".{name}.part"  # the kubelet passes names with a dot first over
        part.write_text(json.dumps(pod))
        part.rename(self.manifests / f"{name}.json")

    def control(self, name: str) -> Path:
        """A directory of the host for a pod, by which test and containers tell each other."""
        directory = self.server.state / "control" / name
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o777)
        return directory

    def remove(self, name: str) -> None:
        """Removes the manifest, and waits until the kubelet has stopped the pod."""
        (self.manifests / f"{name}.json").unlink(missing_ok=True)
        # /pods has what is wanted: the pod goes from there before its containers end. What is left
        # of it the kubelet removes later, once a minute.
        wait_for(lambda: not self._sandboxes(name), POD_TIMEOUT, f"pod {name} is stopped")

    def _sandboxes(self, name: str) -> list[str]:
        ready = cri_pb2.PodSandboxStateValue(state=cri_pb2.PodSandboxState.SANDBOX_READY)
        labels = {"io.kubernetes.pod.name": f"{name}-node"}
        request = cri_pb2.ListPodSandboxRequest(
            filter=cri_pb2.PodSandboxFilter(label_selector=labels, state=ready)
        )
        with self.server.cri() as cri:
            return [pod.id for pod in cri.ListPodSandbox(request).items]


def container(script: str = "exec sleep 1000", name: str = "main", **fields: Any) -> dict[str, Any]:
    """A container of a manifest: busybox with a shell script."""
    return {
        "name": name,
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": ["sh", "-c", script],
        **fields,
    }


def mount(name: str, at: str, **fields: Any) -> dict[str, Any]:
    """What mounts a pod's volume, as fields of a container."""
    return {"volumeMounts": [{"name": name, "mountPath": at, **fields}]}


def volume(path: Path | str, name: str = "ctl", **fields: Any) -> dict[str, Any]:
    """A volume that is a directory of the host."""
    return {"name": name, "hostPath": {"path": str(path), **fields}}


def statuses(pod: Pod, kind: str = "containerStatuses") -> dict[str, dict[str, Any]]:
    """Container statuses by the container's name."""
    return {status["name"]: status for status in pod.get("status", {}).get(kind, ())}


def is_running(pod: Pod) -> bool:
    found = statuses(pod)
    every = len(found) == len(pod["spec"]["containers"])
    return every and all("running" in status["state"] for status in found.values())


def is_ready(pod: Pod) -> bool:
    conditions = pod["status"].get("conditions", ())
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def restarts(pod: Pod, name: str = "main") -> int:
    return int(statuses(pod).get(name, {}).get("restartCount", 0))


def wait_for(done: Callable[[], bool], timeout: float, what: str) -> None:
    """Asks every so often: neither the kubelet nor a file in a pod tells us by itself."""
    deadline = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.2)


@contextmanager
def node_running(**settings: Any) -> Iterator[Node]:
    """A server and a kubelet; afterwards the pods are removed and the host is as it was."""
    before = {name: Path("/proc/sys", name).read_text() for name in SYSCTLS}
    subprocess.run(["ip", "address", "replace", f"{ADDRESS}/32", "dev", "lo"], check=True)
    with serving(UPSTREAM, cni=True) as server, _private_log_links(server):
        node = Node(server, **settings)
        node.manifests.mkdir()
        Cgroups().create(server.cgroup)
        try:
            node.start()
            yield node
        except BaseException:
            print(node.log.read_text()[-20_000:])
            raise
        finally:
            node.stop()
            for name, value in before.items():
                Path("/proc/sys", name).write_text(value)
            _unmount(node)


@contextmanager
def _private_log_links(server: Server) -> Iterator[None]:
    """The kubelet links logs from /var/log/containers, a fixed place."""
    place = Path("/var/log/containers")
    place.mkdir(exist_ok=True)
    (server.state / "links").mkdir()
    subprocess.run(["mount", "--bind", server.state / "links", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def _unmount(node: Node) -> None:
    """What the kubelet mounted for pods that are still there: secrets, emptyDirs in memory."""
    with Path("/proc/self/mountinfo").open() as file:
        targets = [line.split()[4] for line in file]
    for target in reversed(targets):
        if target.startswith(f"{node.root}/"):
            subprocess.run(["umount", "-l", target], check=False)
