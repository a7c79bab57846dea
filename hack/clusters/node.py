"""A node: namespaces of its own, in them a kubelet and zos-cri."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from hack.clusters.control import ROOT, TOOLS, URL
from hack.clusters.programs import Program, Space, run, wait_until
from zos_cri._pb import cri_pb2, cri_pb2_grpc
from zos_cri.linux.cgroup import Cgroups

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hack.benchmark.place import Spot
    from hack.clusters.keys import Authority

PODS_MEMORY = 2 << 10  # MiB that a node lets all its pods have: it isn't alone on the machine
START_TIMEOUT = 60.0
BRIDGE = """{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [
    {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
     "ipam": {"type": "host-local", "dataDir": "IPAM",
      "ranges": [{{range $i, $r := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$r}}"}]{{end}}],
      "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
"""


class Node:
    """One node of the cluster. `settings` are the kubelet's own, over those from here."""

    def __init__(self, name: str, address: str, spot: Spot, authority: Authority) -> None:
        self.name = name
        self.address = address
        self.spot = spot
        self.socket = spot.run / "zos-cri.sock"
        self.config = spot.state / "config.toml"
        self.settings: dict[str, Any] = {}
        self.space = Space(spot.state / "private")
        Cgroups().create(spot.cgroup)
        self._kubeconfig = authority.kubeconfig(
            name, f"system:node:{name}", URL, group="system:nodes"
        )
        self._authority = authority.certificate
        serve = ("-m", "zos_cri", "serve", "--config", self.config)
        self.server = Program(
            spot.state / "zos-cri.log", *self.space.entered(sys.executable, *serve)
        )
        options: list[str | Path] = ["--config", spot.state / "kubelet.json"]
        options += ["--root-dir", spot.state / "kubelet", "--cert-dir", spot.state / "pki"]
        options += ["--hostname-override", name, "--node-ip", address]
        options += ["--kubeconfig", self._kubeconfig]
        self.kubelet = Program(
            spot.state / "kubelet.log", *self.space.entered(TOOLS / "kubelet", *options)
        )

    def connect(self, bridge: str, gateway: str) -> None:
        """A cable to a bridge in our own namespace."""
        cable = f"to-{self.name}"
        run(
            "ip", "link", "add", cable, "type", "veth", "peer", "eth0", "netns", str(self.space.pid)
        )
        run("ip", "link", "set", cable, "master", bridge, "up")
        inside = self.space.entered
        run(*inside("ip", "address", "add", f"{self.address}/24", "dev", "eth0"))
        run(*inside("ip", "link", "set", "eth0", "up"))
        run(*inside("ip", "route", "add", "default", "via", gateway))

    # ---- zos-cri

    def start_server(self, tree: Path = ROOT) -> None:
        """Starts zos-cri of a source tree, and waits until it answers."""
        self._configure_server()
        self.server.start({"PYTHONPATH": str(tree)})
        wait_until(self._serves, START_TIMEOUT, f"{self.name}: zos-cri answers", [self.server])

    def _serves(self) -> bool:
        with contextlib.suppress(grpc.RpcError), self.cri() as cri:
            conditions = cri.Status(cri_pb2.StatusRequest(), timeout=5).status.conditions
            return any(each.type == "RuntimeReady" and each.status for each in conditions)
        return False

    @contextlib.contextmanager
    def cri(self) -> Iterator[Any]:
        """The stub of RuntimeService."""
        with grpc.insecure_channel(f"unix:{self.socket}") as channel:
            yield cri_pb2_grpc.RuntimeServiceStub(channel)  # type: ignore[no-untyped-call]

    def _configure_server(self) -> None:
        run_, state = self.spot.run, self.spot.state
        template = state / "cni.template"
        template.write_text(BRIDGE.replace("IPAM", str(state / "ipam")))
        conf = state / "net.d"
        conf.mkdir(exist_ok=True)
        handler = f'shim = "{TOOLS / "containerd-shim-runc-v2"}"\nruntime = "{TOOLS / "runc"}"'
        self.config.write_text(
            f"""
[server]
run = "{run_}"
state = "{state}/zos-cri"
[cni]
conf_dir = "{conf}"
conf_template = "{template}"
[nri]
socket = "{run_}/nri.sock"
[handlers.runc]
{handler}
[handlers.small]
{handler}
pids_limit = 64
"""
        )

    # ---- the kubelet

    def start_kubelet(self) -> None:
        """Starts it with the settings of now."""
        settings = {**self._defaults(), **self.settings}
        (self.spot.state / "kubelet.json").write_text(json.dumps(settings, indent=2))
        self.kubelet.start()

    def _defaults(self) -> dict[str, Any]:
        total = int(Path("/proc/meminfo").read_text().split()[1]) // 1024
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix://{self.socket}",
            "address": self.address,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self._authority)},
            },
            "authorization": {"mode": "Webhook"},
            "featureGates": {"PodAndContainerStatsFromCRI": True},
            # It isn't alone on its machine, which may have cgroup v1, and not every capability.
            "failCgroupV1": False,
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "cgroupRoot": self.spot.cgroup,
            "enforceNodeAllocatable": ["pods"],
            "kubeReserved": {"memory": f"{max(0, total - PODS_MEMORY)}Mi"},
            "evictionHard": {"memory.available": "200Mi", "nodefs.available": "1%"},
            "evictionPressureTransitionPeriod": "15s",
            "podLogsDir": str(self.spot.state / "logs"),
            "volumePluginDir": str(self.spot.state / "plugins"),
            "syncFrequency": "10s",
            "nodeStatusUpdateFrequency": "5s",
        }

    # ---- the end

    def remove_pods(self) -> None:
        """Ends the kubelet, and removes all pods that it leaves."""
        self.kubelet.end()
        if self.server.process is None:
            return
        with contextlib.suppress(grpc.RpcError), self.cri() as cri:
            for pod in cri.ListPodSandbox(cri_pb2.ListPodSandboxRequest(), timeout=10).items:
                id_ = pod.id
                cri.StopPodSandbox(cri_pb2.StopPodSandboxRequest(pod_sandbox_id=id_), timeout=60)
                cri.RemovePodSandbox(
                    cri_pb2.RemovePodSandboxRequest(pod_sandbox_id=id_), timeout=60
                )

    def close(self) -> None:
        """Ends the server and the logger, then the namespaces."""
        self.server.end()
        lock = str(self.spot.run / "logger.sock.lock")
        for pid in _holders(lock):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        self.space.close()


def _holders(path: str) -> list[int]:
    """The processes that hold a lock on a file."""
    said = run("lslocks", "--noheadings", "--output", "PID,PATH")
    words = [line.split(maxsplit=1) for line in said.splitlines()]
    return [int(each[0]) for each in words if len(each) == 2 and each[1] == path]
