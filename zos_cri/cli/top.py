"""`zos-cri top`: what containers use now, those of pods and the module's own."""

from __future__ import annotations

import json
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zos_cri.cli.client import TIMEOUT, add_socket, channel
from zos_cri.cli.module import seconds
from zos_cri.cli.table import table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

INTERVAL: Final = 2.0  # seconds
ONCE: Final = 1.0  # seconds between the two readings of --once
_MIB: Final = 1 << 20
_CLEAR: Final = "\x1b[H\x1b[J"


class Reading(msgspec.Struct):
    """One container at one moment.

    Attributes:
        time: of the reading, ns.
        cpu: ns of all cores together since its start.
        cores: used now; 1.0 is one core in full.
        memory: working set in bytes; `layer`: bytes that it has written to its root filesystem.
    """

    id: str
    namespace: str
    pod: str
    container: str
    time: int
    cpu: int
    cores: float
    memory: int
    layer: int


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "top",
        help="show what containers use, live",
        description="Shows what containers use, live; Ctrl-C ends it. Without a terminal, or with"
        " json, one table or list follows the other.",
        epilog="example: zos-cri top --once --sort memory",
    )
    add_socket(parser)
    parser.add_argument("--once", action="store_true", help="print one table and end")
    parser.add_argument(
        "--interval",
        type=seconds,
        metavar="SECONDS",
        help=f"between readings (default: {INTERVAL:g}, or {ONCE:g} with --once)",
    )
    parser.add_argument("--sort", choices=tuple(_ORDERS), default="cpu")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """`zos-cri top`."""
    interval = arguments.interval
    if interval is None:
        interval = ONCE if arguments.once else INTERVAL
    with channel(arguments.socket) as connection:
        before = read(connection)
        while True:
            time.sleep(interval)
            now = read(connection)
            show(sorted(rates(before, now), key=_ORDERS[arguments.sort]), arguments)
            if arguments.once:
                return 0
            before = now


def read(connection: Any) -> list[Reading]:
    """All running containers."""
    return [*_of_pods(connection), *_of_module(connection)]


def _of_pods(connection: Any) -> Iterable[Reading]:
    from zos_cri._pb import cri_pb2 as pb  # noqa: PLC0415 protobuf costs --help 30 ms
    from zos_cri._pb import cri_pb2_grpc  # noqa: PLC0415

    stub = cri_pb2_grpc.RuntimeServiceStub(connection)  # type: ignore[no-untyped-call]
    for pod in stub.ListPodSandboxStats(pb.ListPodSandboxStatsRequest(), timeout=TIMEOUT).stats:
        for found in pod.linux.containers:
            yield Reading(
                id=found.attributes.id,
                namespace=pod.attributes.metadata.namespace,
                pod=pod.attributes.metadata.name,
                container=found.attributes.metadata.name,
                time=found.cpu.timestamp,
                cpu=found.cpu.usage_core_nano_seconds.value,
                cores=found.cpu.usage_nano_cores.value / 1e9,
                memory=found.memory.working_set_bytes.value,
                layer=found.writable_layer.used_bytes.value,
            )


def _of_module(connection: Any) -> Iterable[Reading]:
    import grpc  # noqa: PLC0415

    from zos_cri._pb import container_pb2 as pb  # noqa: PLC0415
    from zos_cri._pb import container_pb2_grpc  # noqa: PLC0415

    stub = container_pb2_grpc.ContainerModuleStub(connection)  # type: ignore[no-untyped-call]
    for ns in stub.ListNamespaces(pb.ListNamespacesRequest(), timeout=TIMEOUT).namespaces:
        for found in stub.List(pb.ListRequest(ns=ns), timeout=TIMEOUT).containers:
            if found.status.state != pb.RUNNING:
                continue
            id_ = found.container.id
            try:
                used = stub.Stats(pb.StatsRequest(ns=ns, id=id_), timeout=TIMEOUT)
            except grpc.RpcError as error:
                # It ended since it was listed.
                if error.code() in (
                    grpc.StatusCode.NOT_FOUND,
                    grpc.StatusCode.FAILED_PRECONDITION,
                ):
                    continue
                raise
            yield Reading(
                id=id_,
                namespace=ns,
                pod="-",
                container=found.container.name,
                time=used.timestamp,
                cpu=used.cpu,
                cores=0.0,
                memory=used.memory,
                layer=0,
            )


def rates(before: Sequence[Reading], now: Sequence[Reading]) -> list[Reading]:
    """The later readings, with the cores used since the earlier ones; where no time has passed
    between the two, those that the server says."""
    known = {each.id: each for each in before}
    for each in now:
        past = known.get(each.id)
        if past is not None and each.time > past.time:
            each.cores = max(each.cpu - past.cpu, 0) / (each.time - past.time)
    return list(now)


_ORDERS: Final[dict[str, Any]] = {
    "cpu": lambda each: (-each.cores, each.id),
    "memory": lambda each: (-each.memory, each.id),
    "layer": lambda each: (-each.layer, each.id),
    "name": lambda each: (each.namespace, each.pod, each.container, each.id),
}


def show(readings: Sequence[Reading], arguments: argparse.Namespace) -> None:
    """Prints one table; on a terminal over the one before, and no longer than that is high."""
    if arguments.output == "json":
        print(json.dumps(msgspec.to_builtins(readings)), flush=True)
        return
    lines = table(
        ("NAMESPACE", "POD", "CONTAINER", "CPU CORES", "MEMORY MIB", "LAYER MIB"),
        [
            (
                *(each.namespace, each.pod, each.container, f"{each.cores:.3f}"),
                *(f"{each.memory / _MIB:.1f}", f"{each.layer / _MIB:.1f}"),
            )
            for each in readings
        ],
    )
    if sys.stdout.isatty() and not arguments.once:
        print(_CLEAR, end="")
        lines = lines[: shutil.get_terminal_size().lines - 1]
    print("\n".join(lines), flush=True)
