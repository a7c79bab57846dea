"""What README tells a reader to type for a kubelet's first pod, typed."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import ROOT
from tests.kubelet.node import ADDRESS, node_running

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go, pytest.mark.timeout(600)]


def test_readme_kubelet(own_network: None, tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text().split("\n## The kubelet\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    with node_running() as node:
        # This node's places instead of the host's; its kubelet is ours to start again and to end.
        node.stop()
        own = f"--socket {node.server.socket} --root {node.root} --node-ip {ADDRESS}"
        own += f" --set cgroupRoot={node.server.cgroup}"
        (node.server.conf_dir / "10-test.conflist").unlink()
        for shown, here in (
            (r"^apt-get .*", ""),
            (r"/etc/cni/net\.d", str(node.server.conf_dir)),
            (r"hack/kubelet run", f"'{sys.executable}' {ROOT}/hack/kubelet run {own}"),
            (r"hack/kubelet build", f"test -x {ROOT}/hack/kubelet"),
            (r"^zos-cri top", f"'{sys.executable}' -m zos_cri top --socket {node.server.socket}"),
        ):
            block, count = re.subn(shown, here, block, flags=re.MULTILINE)
            assert count, shown
        ends = "\nrm pods/web.json\nsleep 3\nkill %1\nwait\n"
        done = subprocess.run(
            ["bash", "-euc", f"cd {tmp_path}\n{block}{ends}"],
            cwd=ROOT,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        log = tmp_path / "kubelet.log"
        said = log.read_text()[-4000:] if log.exists() else ""
        assert "hello" in done.stdout, done.stderr + said
        assert re.search(r" web-\S+ +httpd ", done.stdout), done.stdout
