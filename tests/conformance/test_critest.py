"""critest, the Kubernetes project's own suite for CRI, over a real server, registry and network.

With another shim, and with those specs only whose names match:

    ZOS_CRI_TEST_SHIM=PATH ZOS_CRI_TEST_FOCUS=REGEXP hack/netns run --pids PYTHON -m pytest -s
    tests/conformance
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import ROOT, TOOLS
from tests.integration.server import SLOWNESS, UPSTREAM, Server, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.root,
    pytest.mark.runtime,
    pytest.mark.go,
    pytest.mark.timeout(1200 * SLOWNESS),
]

# The image pinned by a digest can't be made again; benchmarks are no conformance; the kernel has no
# AppArmor, which critest finds out by itself.
SKIP = r"public image with digest|benchmark"
NRI_SPECS = 13  # all that there are
# Where reports and the server's log are kept; default: with the test's own files.
REPORTS = os.environ.get("ZOS_CRI_TEST_REPORTS")
SPECS = 125  # nine more where the kernel has AppArmor
# A regular expression: test_critest runs only these specs.
FOCUS = os.environ.get("ZOS_CRI_TEST_FOCUS", "")
UNDER_TEST = replace(UPSTREAM, shim=os.environ.get("ZOS_CRI_TEST_SHIM") or UPSTREAM.shim)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, own_network: None) -> Iterator[Path]:
    """A registry with critest's images; where its hosts.toml files are."""
    certs = tmp_path_factory.mktemp("certs.d")
    serve = subprocess.Popen(
        [ROOT / "hack/images/serve", "--certs-d", certs, "sh", "-c", "echo ready; cat >/dev/null"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert serve.stdout is not None
        assert serve.stdout.readline() == b"ready\n", "the registry did not start"
        yield certs
    finally:
        serve.communicate(timeout=30 * SLOWNESS)


@pytest.fixture
def node(registry: Path) -> Iterator[Server]:
    extra = f'[images]\ncerts_dirs = ["{registry}"]\n'
    # One spec lets a plugin be silent for 2 s and more, which is all that it has by default.
    patience = "request_timeout = 20.0"
    with serving(UNDER_TEST, cni=True, extra=extra, nri_settings=patience) as server:
        yield server
        if REPORTS:
            shutil.copy(server.log, REPORTS)


def critest(server: Server, directory: Path, *flags: str) -> str:
    """Runs critest; its report. What it skipped and failed is printed."""
    endpoint = f"unix://{server.socket}"
    # A file, so that one can look on: a run takes minutes.
    path = Path(REPORTS or directory) / "critest.log"
    with path.open("w") as file:
        done = subprocess.run(
            [
                *(TOOLS / "critest", "-runtime-endpoint", endpoint, "-image-endpoint", endpoint),
                *(f"-ginkgo.skip={SKIP}", "-ginkgo.no-color"),
                *("-nri-socket", str(server.run / "nri.sock"), *flags),
            ],
            cwd=directory,
            stdout=file,
            stderr=subprocess.STDOUT,
            timeout=1100 * SLOWNESS,
            env={**os.environ, "PATH": f"{TOOLS}:{os.environ['PATH']}"},
        )
    report = path.read_text()
    for line in report.splitlines():
        if re.search(r"\[FAIL\]|\[FAILED\]|^Ran |^(FAIL|SUCCESS)!|Passed", line):
            print(line)
    assert done.returncode == 0, report[-20_000:]
    return report


def test_critest(node: Server, tmp_path: Path) -> None:
    report = critest(node, tmp_path, f"-ginkgo.focus={FOCUS}")
    passed = re.search(r"(\d+) Passed \| 0 Failed", report)
    assert passed is not None
    print(f"critest: {passed[0]}")
    assert int(passed[1]) >= (1 if FOCUS else SPECS)
    node.remove_pods()
    assert node.leftovers() == []


def test_in_parallel(node: Server, tmp_path: Path) -> None:
    """Four at once, by ginkgo: specs that share a node must not see each other."""
    report = critest(node, tmp_path, "-parallel=4")
    passed = re.search(r"(\d+) Passed \| 0 Failed", report)
    assert passed is not None
    print(f"critest, four at once: {passed[0]}")
    assert int(passed[1]) >= SPECS
    node.remove_pods()
    assert node.leftovers() == []


def test_nri(node: Server, tmp_path: Path) -> None:
    """None is skipped: those of which critest says that other runtimes don't do it are passed."""
    report = critest(node, tmp_path, "-ginkgo.focus=NRI", "-ginkgo.v")
    passed = re.search(r"(\d+) Passed \| 0 Failed", report)
    assert passed is not None
    print(f"critest of NRI: {passed[0]}")
    assert int(passed[1]) == NRI_SPECS
    node.remove_pods()
    assert node.leftovers() == []


def test_streaming_by_websocket(node: Server, tmp_path: Path) -> None:
    flags = ("-websocket-exec", "-websocket-attach", "-websocket-portforward")
    report = critest(node, tmp_path, "-ginkgo.focus=Streaming", *flags)
    passed = re.search(r"(\d+) Passed \| 0 Failed", report)
    assert passed is not None
    print(f"critest by WebSocket: {passed[0]}")
    assert int(passed[1]) == 5  # exec, exec at a terminal, attach, two of port-forward
    node.remove_pods()
    assert node.leftovers() == []
