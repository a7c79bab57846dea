"""The command line of hack/cluster."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hack.benchmark.place import Place
from hack.clusters.cluster import PROGRAMS, clustered
from hack.clusters.control import ROOT, TOOLS

if TYPE_CHECKING:
    from types import FrameType

PLACE: Final = Place("zos-cluster")
PID: Final = PLACE.run.with_suffix(".pid")  # of hack/netns, which holds all the rest
NODES: Final = PLACE.run / "nodes.json"  # written when all are ready: each node's holder
LOG: Final = PLACE.state.with_suffix(".log")
UP_TIMEOUT: Final = 600.0
DOWN_TIMEOUT: Final = 180.0
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def main(argv: list[str]) -> int:
    """Runs it; the exit code."""
    assert sys.modules["__main__"].__doc__
    parser = argparse.ArgumentParser(
        prog="hack/cluster",
        description=sys.modules["__main__"].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("up", "starts it"), ("run", "runs one in the foreground")):
        sub = commands.add_parser(name, help=text)
        sub.add_argument("--nodes", type=int, default=2, choices=range(1, 10), metavar="N")
    commands.add_parser("down", help="ends it")
    sub = commands.add_parser("kubectl", help="runs kubectl on it", add_help=False)
    sub.add_argument("arguments", nargs=argparse.REMAINDER)
    sub = commands.add_parser("on", help="runs a command in a node's namespaces")
    sub.add_argument("node")
    sub.add_argument("arguments", nargs=argparse.REMAINDER, metavar="COMMAND")
    options = parser.parse_args(argv)
    if os.geteuid() != 0:
        raise SystemExit("hack/cluster: run it as root")
    match options.command:
        case "up":
            return _up(options.nodes)
        case "down":
            return _down()
        case "run":
            return _run(options.nodes)
        case "kubectl":
            kubeconfig = f"--kubeconfig={PLACE.state}/keys/admin.kubeconfig"
            kubectl = [str(TOOLS / "kubectl"), kubeconfig, *options.arguments]
            return _become("nsenter", "--target", str(_inside()), "--net", "--", *kubectl)
    return _on(options.node, options.arguments)


def _up(nodes: int) -> int:
    if _holder():
        raise SystemExit("hack/cluster: it is up; to end it: hack/cluster down")
    subprocess.run([ROOT / "hack" / "tools" / "build", *PROGRAMS], check=True)
    hack = ROOT / "hack"
    words = [str(hack / "netns"), "run", "--pids", sys.executable, str(hack / "cluster")]
    with LOG.open("wb") as log:
        holder = subprocess.Popen(
            [*words, "run", "--nodes", str(nodes)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    PID.write_text(str(holder.pid))
    deadline = time.monotonic() + UP_TIMEOUT
    while not NODES.exists():
        if holder.poll() is not None or time.monotonic() > deadline:
            sys.stderr.write(LOG.read_text(errors="replace")[-3000:])
            raise SystemExit("hack/cluster: it did not start: see above, and hack/cluster down")
        time.sleep(0.5)
    print(f"{nodes} nodes are ready. Try: hack/cluster kubectl get nodes,pods -A -o wide")
    return 0


def _run(nodes: int) -> int:
    """The foreground; in namespaces of our own."""
    if os.environ.get("ZOS_CRI_OWN_NETWORK") != "1":
        script = str(ROOT / "hack" / "cluster")
        words = ["run", "--pids", sys.executable, script, "run", "--nodes", str(nodes)]
        return _become(str(ROOT / "hack" / "netns"), *words)
    over = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        # Not twice: it would cut the cleaning up off.
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        over.set()
        if not NODES.exists():
            raise SystemExit("hack/cluster: ended while it was starting")

    for number in SIGNALS:
        signal.signal(number, end)
    with clustered(PLACE.tag, nodes) as cluster:
        NODES.write_text(json.dumps({name: n.space.pid for name, n in cluster.nodes.items()}))
        print(f"{nodes} nodes are ready", flush=True)
        over.wait()
    return 0


def _down() -> int:
    holder = _holder()
    if holder:
        os.kill(holder, signal.SIGTERM)
        deadline = time.monotonic() + DOWN_TIMEOUT
        while _holder():
            if time.monotonic() > deadline:
                raise SystemExit(f"hack/cluster: process {holder} still runs: {LOG}")
            time.sleep(0.2)
    PLACE.clear()
    for path in (PID, LOG):
        path.unlink(missing_ok=True)
    return 0


def _on(node: str, command: list[str]) -> int:
    inside = _inside()
    nodes = json.loads(NODES.read_text())
    if node not in nodes:
        raise SystemExit(f"hack/cluster: no node {node}; there are {', '.join(nodes)}")
    # The node's process by its number in the cluster's PID namespace.
    outer = ["nsenter", "--target", str(inside), "--pid", "--mount", "--net", "--"]
    inner = ["nsenter", "--target", str(nodes[node]), "--mount", "--net", "--"]
    return _become(*outer, *inner, *(command or ["bash"]))


def _holder() -> int:
    """The process that holds the cluster; 0 when there is none."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(PID.read_text())
        if b"hack/cluster" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    return 0


def _inside() -> int:
    """A process in the cluster's own namespaces.

    Raises:
        SystemExit: there is no cluster.
    """
    pid = _holder()
    ours = os.readlink("/proc/self/ns/net")
    while pid and NODES.exists():
        if os.readlink(f"/proc/{pid}/ns/pid") != os.readlink("/proc/self/ns/pid") or (
            os.readlink(f"/proc/{pid}/ns/net") != ours and not _children(pid)
        ):
            return pid
        pid = (_children(pid) or [0])[0]
    raise SystemExit("hack/cluster: there is none; to start one: hack/cluster up")


def _children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _become(*command: str) -> int:
    sys.stdout.flush()
    os.execvp(command[0], command)
