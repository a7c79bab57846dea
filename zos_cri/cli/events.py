"""`zos-cri events`: what happens to pods and containers, as it happens."""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING, Any, Final

from zos_cri.cli.client import add_socket, channel

if TYPE_CHECKING:
    import argparse

KINDS: Final = ("created", "started", "stopped", "deleted")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "events",
        help="print what happens to pods and containers",
        description="Prints what happens to pods and containers from now on; Ctrl-C ends it.",
        epilog="example: zos-cri events --kind stopped -o json",
    )
    add_socket(parser)
    parser.add_argument(
        "--kind", action="append", choices=KINDS, help="only this kind; can be given again"
    )
    parser.add_argument("--count", type=int, metavar="N", help="end after so many")
    parser.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="json: an object a line"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """`zos-cri events`."""
    from zos_cri._pb import cri_pb2 as pb  # noqa: PLC0415 protobuf costs --help 30 ms
    from zos_cri._pb import cri_pb2_grpc  # noqa: PLC0415

    left = arguments.count
    with channel(arguments.socket) as connection:
        stub = cri_pb2_grpc.RuntimeServiceStub(connection)  # type: ignore[no-untyped-call]
        for message in stub.GetContainerEvents(pb.GetEventsRequest()):
            event = _event(message)
            if arguments.kind and event["kind"] not in arguments.kind:
                continue
            print(json.dumps(event) if arguments.output == "json" else _line(event), flush=True)
            if left is not None:
                left -= 1
                if left <= 0:
                    break
    return 0


def _event(message: Any) -> dict[str, Any]:
    """An event in the terms of people: which pod, which of its containers, and how it ended."""
    from zos_cri._pb import cri_pb2 as pb  # noqa: PLC0415

    name = pb.ContainerEventType.Name(message.container_event_type)
    pod = message.pod_sandbox_status.metadata
    event: dict[str, Any] = {
        "time": message.created_at,
        "kind": name.removeprefix("CONTAINER_").removesuffix("_EVENT").lower(),
        "namespace": pod.namespace,
        "pod": pod.name,
        "container": "",
        "id": message.container_id,
    }
    for status in message.containers_statuses:
        if status.id == message.container_id:
            event["container"] = status.metadata.name
            if event["kind"] == "stopped":
                event |= {"exit_code": status.exit_code, "reason": status.reason}
    return event


def _line(event: dict[str, Any]) -> str:
    moment = datetime.datetime.fromtimestamp(event["time"] / 1e9).astimezone()
    what = "/".join(filter(None, (event["namespace"], event["pod"], event["container"])))
    line = f"{moment.isoformat(sep=' ', timespec='milliseconds')}  {event['kind']:<7}  {what}"
    if "exit_code" in event:
        line += f"  exit code {event['exit_code']}, {event['reason']}"
    return f"{line}  {event['id'][:13]}"
