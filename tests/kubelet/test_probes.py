"""Liveness, readiness and startup probes of each kind, over our socket and into our networks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.kubelet.node import container, is_ready, mount, restarts, statuses, volume

if TYPE_CHECKING:
    from tests.kubelet.node import Node

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go, pytest.mark.timeout(600)]

PROBES: dict[str, dict[str, Any]] = {
    "exec": {"exec": {"command": ["test", "-e", "/ctl/healthy"]}},
    "http": {"httpGet": {"path": "/healthy", "port": 8080}},
    "tcp": {"tcpSocket": {"port": 8080}},
    "grpc": {"grpc": {"port": 8080}},
}
# They serve for as long as the file is there.
SERVERS = {
    "exec": "exec sleep 1000",
    "http": "exec httpd -f -p 8080 -h /ctl",
    "tcp": "httpd -f -p 8080 & while [ -e /ctl/healthy ]; do sleep 1; done; kill $!; "
    "exec sleep 1000",
    # grpc.health.v1 by the host's Python, for there is none in the image.
    "grpc": f"exec chroot /host {sys.executable} -B {Path(__file__).with_name('health.py')} "
    "8080 $CONTROL/healthy",
}


@pytest.mark.parametrize("kind", PROBES)
def test_probes(node: Node, kind: str) -> None:
    """A container starts, becomes ready, and is started anew when it isn't well any more."""
    control = node.control(f"probe-{kind}")
    (control / "healthy").write_text("yes\n")
    probe = {**PROBES[kind], "periodSeconds": 1, "timeoutSeconds": 5}
    mounts = mount("ctl", "/ctl")
    mounts["volumeMounts"] += mount("host", "/host", readOnly=True)["volumeMounts"]
    node.add(
        f"probe-{kind}",
        container(
            SERVERS[kind],
            env=[{"name": "CONTROL", "value": str(control)}],
            startupProbe={**probe, "failureThreshold": 100},
            readinessProbe={**probe, "failureThreshold": 1},
            livenessProbe={**probe, "failureThreshold": 2},
            **mounts,
        ),
        volumes=[volume(control), volume("/", "host")],
    )
    pod = node.wait(f"probe-{kind}", is_ready, "is ready")
    assert statuses(pod)["main"]["started"] is True
    assert restarts(pod) == 0
    (control / "healthy").unlink()
    pod = node.wait(f"probe-{kind}", lambda pod: restarts(pod) >= 1, "is restarted")
    assert not is_ready(pod)
    node.remove(f"probe-{kind}")


def test_a_probe_that_hangs(node: Node) -> None:
    """ExecSync's timeout ends the command, and counts as a failure."""
    probe = {"exec": {"command": ["sleep", "500"]}, "periodSeconds": 1, "timeoutSeconds": 1}
    node.add("hangs", container(livenessProbe={**probe, "failureThreshold": 1}))
    node.wait("hangs", lambda pod: restarts(pod) >= 1, "is restarted")
    node.remove("hangs")
