"""Tables of bad input, and what is asked of each row.

What is wrong in a request is refused by its field, with the right code, in one line, and leaves
nothing. A row has its name, what is changed in a request that is right, the gRPC code, and what
the message must say.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from zos_cri._pb import cri_pb2 as pb
from zos_cri.linux.mount import mounts_below

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.server import Server

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
EXISTS = grpc.StatusCode.ALREADY_EXISTS

# Of LinuxContainerResources, what no kernel takes; by field.
RESOURCES: dict[str, Any] = {
    "cpu_period": 10,
    "cpu_quota": 10,
    "cpu_shares": 1,
    "cpuset_cpus": "all",
    "cpuset_mems": "0,",
    "memory_limit_in_bytes": -2,
    "memory_swap_limit_in_bytes": -2,
    "oom_score_adj": 1001,
    "unified": {"../x": "1"},
}
POD, CONTAINER = pb.NamespaceMode.POD, pb.NamespaceMode.CONTAINER
NODE, TARGET = pb.NamespaceMode.NODE, pb.NamespaceMode.TARGET
CONTEXT = "linux.security_context"
OPTIONS = f"{CONTEXT}.namespace_options"
Profile = pb.SecurityProfile

Row = tuple[str, Any, grpc.StatusCode, str]
_numbers = itertools.count()


def new_name() -> str:
    """Of what is not to come into being."""
    return f"bad{next(_numbers)}"


def refused(call: Callable[[Any], Any], request: Any, code: grpc.StatusCode, says: str) -> None:
    with pytest.raises(grpc.RpcError) as error:
        call(request)
    text = str(error.value.details())
    assert (error.value.code(), says in text) == (code, True), f"{error.value.code()}: {text}"
    assert "\n" not in text
    assert len(text) < 600


def known(cri: Any) -> tuple[list[str], list[str]]:
    """The ids of all pods and containers."""
    pods = cri.ListPodSandbox(pb.ListPodSandboxRequest()).items
    containers = cri.ListContainers(pb.ListContainersRequest()).containers
    return sorted(p.id for p in pods), sorted(c.id for c in containers)


def traces(node: Server) -> list[str]:
    """What there is of pods and containers, whether a record names it or not."""
    found = [mount.target for top in (node.run, node.state) for mount in mounts_below(str(top))]
    for name in ("run/bundles", "run/sandboxes", "run/fifo", "state/images/containers"):
        top, _, rest = name.partition("/")
        directory: Path = getattr(node, top) / rest
        found += [str(path) for path in directory.iterdir()] if directory.exists() else []
    return sorted(found)


def ids(rows: list[Row]) -> list[str]:
    return [row[0] for row in rows]


def ids_of(container: int, host: int, length: int) -> pb.IDMapping:
    return pb.IDMapping(container_id=container, host_id=host, length=length)


ALL = ids_of(0, 100_000, 65_536)
