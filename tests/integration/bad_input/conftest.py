"""One server for all tests of bad input; when all is over, nothing may be left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.server import DEBIAN, UPSTREAM, Server, serving
from tests.integration.test_crictl import wait_for
from zos_cri.linux.mount import mounts_below

if TYPE_CHECKING:
    from collections.abc import Iterator

HANDLERS = f"""
[handlers.old]
shim = "{DEBIAN.shim}"
runtime = "{DEBIAN.runtime}"
"""


@pytest.fixture(scope="package")
def node() -> Iterator[Server]:
    with serving(UPSTREAM, extra=HANDLERS) as started:
        yield started
        started.remove_pods()
        assert started.leftovers() == []
        sandboxes = started.run / "sandboxes"
        assert not sandboxes.exists() or not list(sandboxes.iterdir())


@pytest.fixture(scope="package")
def cri(node: Server) -> Iterator[Any]:
    with node.cri() as stub:
        yield stub


@pytest.fixture(scope="package")
def pod(node: Server, cri: Any) -> str:
    """The pod that containers are to be made in."""
    return node.run_pod(cri, "good")


@pytest.fixture(scope="package")
def running(node: Server, cri: Any, pod: str) -> str:
    """A container of that pod, which runs, and whose root filesystem is hidden already."""
    id_ = node.run_container(cri, pod, name="running")
    wait_for(lambda: mounts_below(str(node.run / "bundles")) == [])
    return id_
