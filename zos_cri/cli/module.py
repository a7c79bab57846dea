"""The module's commands: run, inspect, delete, ps, logs, exec, signal, stats."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import shlex
import sys
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zos_cri.cli.client import TIMEOUT, add_socket, module
from zos_cri.cli.table import print_table
from zos_cri.errors import InvalidArgument
from zos_cri.module.model import DEFAULT_SHUTDOWN_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DEFAULT_NS: Final = "default"
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def add(commands: Commands) -> None:
    _add_run(commands)
    _add_by_id(commands, "inspect", inspect, "print a container as JSON", "zos-cri inspect web")
    _add_by_id(commands, "delete", delete, "stop and remove a container", "zos-cri delete web")
    ps = _command(commands, "ps", list_, "list containers", "zos-cri ps --all-ns")
    ps.add_argument("--all-ns", action="store_true", help="of all namespaces")
    ps.add_argument("-o", "--output", choices=("table", "json"), default="table")
    logs = _add_by_id(commands, "logs", logs_, "print a container's log", "zos-cri logs -f web")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until it ends")
    logs.add_argument("--tail", type=count, metavar="LINES", help="begin with the last lines")
    exec_ = _add_by_id(
        commands, "exec", exec__, "run a command in a container", "zos-cri exec web -- ls -l /"
    )
    exec_.add_argument("--timeout", type=seconds, default=0, metavar="SECONDS")
    exec_.add_argument("command", nargs="*", metavar="COMMAND")
    signal = _add_by_id(
        commands, "signal", signal_, "send a signal to a container", "zos-cri signal web HUP"
    )
    signal.add_argument("signal", metavar="SIGNAL", help="a name or number")
    stats = _add_by_id(
        commands, "stats", stats_, "print what a container uses", "zos-cri stats web"
    )
    stats.add_argument("-o", "--output", choices=("table", "json"), default="table")


def _command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    example: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=f"example: {example}"
    )
    add_socket(parser)
    parser.add_argument("--ns", default=DEFAULT_NS, help="namespace (default: %(default)s)")
    parser.set_defaults(run=run, parser=parser)
    return parser


def _add_by_id(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    example: str,
) -> argparse.ArgumentParser:
    parser = _command(commands, name, run, text, example)
    parser.add_argument("id", metavar="ID", help="a container's name, id, or beginning of an id")
    return parser


def _add_run(commands: Commands) -> None:
    parser = _command(
        commands,
        "run",
        run,
        "create and start a container",
        "zos-cri run --name web --flist /mnt/root --net web -- /bin/httpd -f",
    )
    parser.add_argument("--name", required=True, help="unique in its namespace")
    parser.add_argument(
        "--flist", required=True, help="the root filesystem: a directory, or an image's name"
    )
    parser.add_argument(
        "--net", required=True, help="an existing network namespace: a name of `ip netns` or a path"
    )
    parser.add_argument("-e", "--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--tag", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "-v",
        "--mount",
        action="append",
        default=[],
        metavar="SOURCE:TARGET[:OPTIONS]",
        help="bind a host path; options as of mount(8), separated by commas",
    )
    parser.add_argument(
        "--tmpfs", action="append", default=[], metavar="TARGET[:OPTIONS]", help="mount a tmpfs"
    )
    parser.add_argument("-w", "--working-dir", default="/")
    parser.add_argument("--cpu", type=float, default=0, metavar="CORES")
    parser.add_argument("--memory", type=size, default=0, metavar="BYTES", help="also as 64M, 1G")
    parser.add_argument("-i", "--interactive", action="store_true", help="with a terminal")
    parser.add_argument("--elevated", action="store_true", help="all capabilities and devices")
    parser.add_argument(
        "--shutdown-timeout",
        type=seconds,
        default=DEFAULT_SHUTDOWN_TIMEOUT,
        metavar="SECONDS",
        help="between the stop signal and SIGKILL (default: %(default)s)",
    )
    parser.add_argument("-o", "--output", choices=("id", "json"), default="id")
    parser.add_argument("command", nargs="*", metavar="COMMAND")


def size(text: str) -> int:
    """Bytes, with an optional binary unit: 1024, 64M, 1G."""
    number, unit = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "")
    wrong = unit not in _UNITS or not (number.isascii() and number.isdecimal())
    if wrong or int(number) * _UNITS[unit] >= 1 << 63:
        raise argparse.ArgumentTypeError(f'"{text}" is no size: 1024, 64M, 1G')
    return int(number) * _UNITS[unit]


def count(text: str) -> int:
    """A number of lines."""
    if not (text.isascii() and text.isdecimal() and int(text) < 1 << 32):
        raise argparse.ArgumentTypeError(f'"{text}" is no number of lines')
    return int(text)


def seconds(text: str) -> float:
    """A time that isn't negative."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f'"{text}" is no time')
    return value


def pairs(option: str, values: list[str]) -> dict[str, str]:
    """`NAME=VALUE` arguments.

    Raises:
        InvalidArgument: one has no `=`.
    """
    result = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals or not name:
            raise InvalidArgument(f'{option}: "{value}" is not NAME=VALUE')
        result[name] = rest
    return result


def _mounts(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = []
    for text in arguments.mount:
        source, *rest = text.split(":")
        if not 1 <= len(rest) <= 2:
            raise InvalidArgument(f'--mount: "{text}" is not SOURCE:TARGET[:OPTIONS]')
        options = rest[1].split(",") if len(rest) > 1 else []
        mounts.append({"source": source, "target": rest[0], "options": options})
    for text in arguments.tmpfs:
        target, _, options_text = text.partition(":")
        mounts.append(
            {
                "type": "tmpfs",
                "source": "tmpfs",
                "target": target,
                "options": options_text.split(",") if options_text else [],
            }
        )
    return mounts


def run(arguments: argparse.Namespace) -> int:
    """`zos-cri run`."""
    from zos_cri._pb import container_pb2 as pb  # noqa: PLC0415 protobuf costs --help 30 ms

    container = pb.Container(
        name=arguments.name,
        flist=arguments.flist,
        tags=pairs("--tag", arguments.tag),
        env=pairs("--env", arguments.env),
        network=pb.Network(namespace=arguments.net),
        mounts=[pb.Mount(**mount) for mount in _mounts(arguments)],
        entrypoint=shlex.join(arguments.command),
        working_dir=arguments.working_dir,
        cpu=arguments.cpu,
        memory=arguments.memory,
        interactive=arguments.interactive,
        elevated=arguments.elevated,
        shutdown_timeout=arguments.shutdown_timeout,
    )
    with module(arguments.socket) as stub:
        id_ = stub.Run(pb.RunRequest(ns=arguments.ns, container=container), timeout=TIMEOUT).id
    print(json.dumps({"id": id_}) if arguments.output == "json" else id_)
    return 0


def _inspections(arguments: argparse.Namespace, namespaces: list[str]) -> list[Any]:
    from zos_cri._pb import container_pb2 as pb  # noqa: PLC0415
    from zos_cri.module.service import inspection_from_pb  # noqa: PLC0415

    with module(arguments.socket) as stub:
        if arguments.all_ns:
            answer = stub.ListNamespaces(pb.ListNamespacesRequest(), timeout=TIMEOUT)
            namespaces = list(answer.namespaces)
        return [
            inspection_from_pb(each)
            for ns in namespaces
            for each in stub.List(pb.ListRequest(ns=ns), timeout=TIMEOUT).containers
        ]


def inspect(arguments: argparse.Namespace) -> int:
    """`zos-cri inspect`."""
    from zos_cri._pb import container_pb2 as pb  # noqa: PLC0415
    from zos_cri.module.service import inspection_from_pb  # noqa: PLC0415

    with module(arguments.socket) as stub:
        answer = stub.Inspect(pb.InspectRequest(ns=arguments.ns, id=arguments.id), timeout=TIMEOUT)
    print(json.dumps(msgspec.to_builtins(inspection_from_pb(answer)), indent=2))
    return 0


def delete(arguments: argparse.Namespace) -> int:
    """`zos-cri delete`."""
    from zos_cri._pb import container_pb2 as pb  # noqa: PLC0415

    with module(arguments.socket) as stub:
        stub.Delete(pb.DeleteRequest(ns=arguments.ns, id=arguments.id), timeout=TIMEOUT)
    return 0


def list_(arguments: argparse.Namespace) -> int:
    """`zos-cri ps`."""
    found = _inspections(arguments, [arguments.ns])
    if arguments.output == "json":
        print(json.dumps(msgspec.to_builtins(found), indent=2))
        return 0
    rows = [
        (each.ns, each.container.name, each.container.id[:13], _state(each), _age(each.created_at))
        for each in found
    ]
    print_table(("NS", "NAME", "ID", "STATE", "CREATED"), rows)
    return 0


def _state(inspection: Any) -> str:
    if inspection.state == "exited":
        return f"exited ({inspection.exit_code}, {inspection.reason})"
    return str(inspection.state)


def _age(created_at: int) -> str:
    moment = datetime.datetime.fromtimestamp(created_at / 1e9).astimezone()
    return moment.isoformat(sep=" ", timespec="seconds")


def logs_(arguments: argparse.Namespace) -> int:
    """`zos-cri logs`."""
    from zos_cri._pb import container_pb2 as pb  # noqa: PLC0415

    request = pb.LogsRequest(
        ns=arguments.ns, id=arguments.id, follow=arguments.follow, tail_lines=arguments.tail
    )
    with module(arguments.socket) as stub:
        for answer in stub.Logs(request):
            _write(sys.stdout.fileno(), answer.data)
    return 0


def exec__(arguments: argparse.Namespace) -> int:
    """`zos-cri exec`: its exit code is the command's."""
    from zos_cri._pb import container_pb2 as pb  # noqa: PLC0415

    request = pb.ExecRequest(
        ns=arguments.ns, id=arguments.id, argv=arguments.command, timeout=arguments.timeout
    )
    with module(arguments.socket) as stub:
        answer = stub.Exec(request)
    _write(sys.stdout.fileno(), answer.stdout)
    _write(sys.stderr.fileno(), answer.stderr)
    return int(answer.exit_code)


def signal_(arguments: argparse.Namespace) -> int:
    """`zos-cri signal`."""
    from zos_cri._pb import container_pb2 as pb  # noqa: PLC0415

    with module(arguments.socket) as stub:
        request = pb.SignalRequest(ns=arguments.ns, id=arguments.id, signal=arguments.signal)
        stub.Signal(request, timeout=TIMEOUT)
    return 0


def stats_(arguments: argparse.Namespace) -> int:
    """`zos-cri stats`."""
    from zos_cri._pb import container_pb2 as pb  # noqa: PLC0415

    with module(arguments.socket) as stub:
        answer = stub.Stats(pb.StatsRequest(ns=arguments.ns, id=arguments.id), timeout=TIMEOUT)
    fields = ("timestamp", "cpu", "memory", "pids")
    values = {field: getattr(answer, field) for field in fields}
    if arguments.output == "json":
        print(json.dumps(values))
        return 0
    print_table(
        ("CPU SECONDS", "MEMORY MIB", "PIDS"),
        [(f"{answer.cpu / 1e9:.3f}", f"{answer.memory / (1 << 20):.1f}", str(answer.pids))],
    )
    return 0


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
