"""The Helm chart on a cluster: it puts zos-cri on a labelled node, changes it and takes it off.

The node's root that it changes is a copy: the host's files below a writable layer.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from hack.clusters.programs import run
from tests.cluster.objects import TIMEOUT
from tests.conftest import ROOT, TOOLS
from zos_cri import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hack.clusters.cluster import Cluster
    from hack.clusters.node import Node
    from tests.cluster.objects import Objects

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go, pytest.mark.timeout(900)]

LABEL = "zos-cri.io/node"


@pytest.fixture
def host(cluster: Cluster) -> Iterator[Path]:
    """A root to change, seen in node1's namespaces only."""
    node = cluster.nodes["node1"]
    place = node.spot.run / "host"
    place.mkdir()
    root = place / "root"
    script = f"""
        mount -t tmpfs tmpfs {place}
        mkdir {root} {place}/upper {place}/work
        mount -t overlay -o lowerdir=/,upperdir={place}/upper,workdir={place}/work overlay {root}
        for each in proc sys dev; do mount --rbind --make-rslave /$each {root}/$each; done
        mount -t tmpfs -o mode=755 tmpfs {root}/run
    """
    run(*node.space.entered("sh", "-euc", script))
    try:
        yield root
    finally:
        run(*node.space.entered("umount", "-R", "-l", place))


@pytest.fixture
def chart(host: Path, tmp_path: Path) -> Path:
    """The chart, for nodes whose root is there."""
    copy = tmp_path / "chart"
    shutil.copytree(ROOT / "charts" / "zos-cri", copy)
    helpers = copy / "templates" / "_helpers.tpl"
    text, count = re.subn(r"(hostPath:\n\s+path: )/\n", rf"\g<1>{host}\n", helpers.read_text())
    assert count == 1
    helpers.write_text(text)
    return copy


def load_deploy_image(node: Node) -> None:
    package = (
        ROOT / "dist" / f"zos-cri_{__version__}_{run('dpkg', '--print-architecture').strip()}.deb"
    )
    archive = run(sys.executable, ROOT / "hack" / "deploy-image", package).strip()
    load = ("-m", "zos_cri", "load", "--socket", node.socket, "-i", archive)
    run(sys.executable, *load)


def test_the_chart(cluster: Cluster, objects: Objects, host: Path, chart: Path) -> None:
    node = cluster.nodes["node1"]
    load_deploy_image(node)
    kubeconfig = f"--kubeconfig={cluster.control.kubeconfig}"

    def helm(*words: str | Path, code: int = 0, timeout: float = 2 * TIMEOUT) -> str:
        command = [TOOLS / "helm", kubeconfig, f"--namespace={objects.namespace}", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def on_host(*words: str) -> str:
        return run(*node.space.entered("chroot", host, *words))

    helm("install", "zos", chart, "--set=test.image=localhost/zos-cri/busybox:latest")
    try:
        # Nothing happens to a node without the label.
        for action in ("install", "remove"):
            found = objects.get("daemonset", f"zos-{action}")
            assert found["status"]["desiredNumberScheduled"] == 0
        cluster.kubectl("label", "node", "node1", f"{LABEL}=install")
        wait_for_pods(objects, "install")
        assert on_host("zos-cri", "--version") == f"zos-cri {__version__}\n"
        assert "Phase:          Succeeded" in helm("test", "zos")
        # What is changed comes to the node.
        values = json.dumps({"config": "[log]\nformat = 'json'\n"})
        (chart / "changed.json").write_text(values)
        helm("upgrade", "zos", chart, f"--values={chart / 'changed.json'}", "--reuse-values")
        objects.rolled_out("daemonset", "zos-install")
        assert (
            json.loads(on_host("zos-cri", "config", "dump", "-o", "json"))["log"]["format"]
            == "json"
        )
        cluster.kubectl("label", "node", "node1", f"{LABEL}=remove", "--overwrite")
        wait_for_pods(objects, "remove")
        # Its configuration stays.
        assert on_host("dpkg", "--get-selections", "zos-cri").split() == ["zos-cri", "deinstall"]
        on_host("test", "!", "-e", "/usr/bin/zos-cri")
    finally:
        cluster.kubectl("label", "node", "node1", f"{LABEL}-")
        helm("uninstall", "zos", "--wait")


def wait_for_pods(objects: Objects, action: str) -> None:
    """Until the job is done on the one node."""
    daemonset = f"daemonset/zos-{action}"
    scheduled = "--for=jsonpath={.status.desiredNumberScheduled}=1"
    objects.kubectl("wait", scheduled, daemonset, f"--timeout={TIMEOUT:g}s", timeout=TIMEOUT + 20)
    objects.rolled_out("daemonset", f"zos-{action}")
