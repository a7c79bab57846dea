"""The whole: a control plane and its nodes, on a network of their own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from hack.benchmark.place import Place
from hack.clusters.control import ADDRESS, ControlPlane
from hack.clusters.node import Node
from hack.clusters.programs import Program, run, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

BRIDGE = "nodes"
READY_TIMEOUT = 180.0
# By their names in hack/tools/build.
PROGRAMS = (
    *("shim", "runc", "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"),
    *("kubelet", "kubectl", "metrics-server"),
)


class Cluster:
    """Nodes are `node1`, `node2`, ...; all have joined when it was started."""

    def __init__(self, place: Place, nodes: int) -> None:
        self.place = place
        self.control = ControlPlane(place.state)
        self.kubectl = self.control.kubectl
        self.get = self.control.get
        self.nodes: dict[str, Node] = {}
        self._count = nodes

    def start(self) -> None:
        """Starts it, and waits until all nodes are ready."""
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "address", "add", f"{ADDRESS}/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        self.control.start()
        for number in range(1, self._count + 1):
            self._add_node(f"node{number}", ADDRESS.rpartition(".")[0] + f".{10 + number}")
        programs = self.programs()
        wait_until(self._routed, READY_TIMEOUT, "nodes have their pod CIDRs", programs)
        wait_until(self._ready, READY_TIMEOUT, "all nodes are ready", programs)

    def _add_node(self, name: str, address: str) -> None:
        node = Node(name, address, self.place.spot(name), self.control.authority)
        self.nodes[name] = node
        node.connect(BRIDGE, ADDRESS)
        node.start_server()
        node.start_kubelet()

    def programs(self) -> list[Program]:
        """All that should run."""
        found = self.control.programs
        for node in self.nodes.values():
            found += [node.server, node.kubelet]
        return found

    def _routed(self) -> bool:
        """Routes to those nodes' pods that have a CIDR; have all?"""
        cidrs = [
            (item["metadata"]["name"], item["spec"].get("podCIDR"))
            for item in self.get("nodes")["items"]
        ]
        for name, cidr in cidrs:
            if cidr:
                run("ip", "route", "replace", cidr, "via", self.nodes[name].address)
        return len([cidr for _, cidr in cidrs if cidr]) == len(self.nodes)

    def _ready(self) -> bool:
        return all(self.conditions(name).get("Ready") == "True" for name in self.nodes)

    def conditions(self, node: str) -> dict[str, str]:
        """A node's conditions: Ready, MemoryPressure and so on; True, False or Unknown."""
        found = self.get("node", node)["status"]["conditions"]
        return {each["type"]: each["status"] for each in found}

    def close(self) -> None:
        """Ends and removes everything."""
        with ExitStack() as undo:
            undo.callback(self.place.clear)
            undo.callback(self.control.stop)
            for node in self.nodes.values():
                undo.callback(node.close)
            with ThreadPoolExecutor() as pool:
                list(pool.map(Node.remove_pods, self.nodes.values()))


@contextmanager
def clustered(tag: str, nodes: int = 2) -> Iterator[Cluster]:
    """A cluster in /run/TAG and /var/lib/TAG; nothing of it afterwards."""
    place = Place(tag)
    place.clear()  # of one that was killed
    place.run.mkdir(mode=0o711)
    place.state.mkdir(mode=0o711)
    with ExitStack() as undo:
        undo.callback(place.clear)
        cluster = Cluster(place, nodes)
        undo.pop_all()
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.close()
