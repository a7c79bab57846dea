"""What old shims run to publish an event: `<this> --address A publish --topic T --namespace N`.

The event comes on stdin as an Any. Debian's 1.6.20 takes the option and never runs it: since 1.4
runc's shim sends its events by ttrpc to TTRPC_ADDRESS, as newer ones do. It is here for shims that
still do; it sends the same message to the same server, and ends.
"""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError

from zos_cri import errors
from zos_cri._pb import ttrpc_events_pb2, ttrpc_pb2
from zos_cri.shim.bundle import write_atomic
from zos_cri.shim.client import socket_path
from zos_cri.shim.events import METHOD, SERVICE
from zos_cri.shim.status import to_error
from zos_cri.wire import ttrpc

if TYPE_CHECKING:
    from collections.abc import Sequence

TIMEOUT: Final = 5.0  # what containerd gives an event to be sent


def write_executable(path: Path, events_address: str) -> None:
    """Makes the executable that a shim is given as -publish-binary."""
    package = Path(__file__).resolve().parents[2]
    script = (
        "#!/bin/sh\n"
        f"export TTRPC_ADDRESS=${{TTRPC_ADDRESS:-{shlex.quote(events_address)}}}\n"
        f"export PYTHONPATH={shlex.quote(str(package))}\n"
        f'exec {shlex.quote(sys.executable)} -m zos_cri.shim.publish "$@"\n'
    )
    write_atomic(path, script.encode(), 0o755)


def main(argv: Sequence[str] | None = None) -> int:
    """Sends one event; 1 with a line on stderr where that failed."""
    # Go's flags have one dash or two; both are accepted.
    parser = argparse.ArgumentParser(prog="publish", prefix_chars="-")
    parser.add_argument("--address", "-address", default="")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("publish")
    command.add_argument("--topic", "-topic", required=True)
    command.add_argument("--namespace", "-namespace", required=True)
    arguments = parser.parse_args(argv)
    try:
        event = any_pb2.Any.FromString(sys.stdin.buffer.read(ttrpc.MAX_DATA_LENGTH))
        send(os.environ.get("TTRPC_ADDRESS", ""), arguments.namespace, arguments.topic, event)
    except (errors.Error, OSError, DecodeError) as error:
        print(f"publish {arguments.topic}: {errors.one_line(error)}", file=sys.stderr)
        return 1
    return 0


def send(address: str, namespace: str, topic: str, event: any_pb2.Any) -> None:
    """Forwards one event to an events server, without asyncio: this process does nothing else.

    Raises:
        OSError: nobody answers there.
        Error: the server's answer, or that it broke the protocol.
    """
    forward = ttrpc_events_pb2.ForwardRequest()
    forward.envelope.timestamp.FromNanoseconds(time.time_ns())
    forward.envelope.namespace = namespace
    forward.envelope.topic = topic
    forward.envelope.event.CopyFrom(event)
    request = ttrpc_pb2.Request(
        service=SERVICE,
        method=METHOD,
        payload=forward.SerializeToString(),
        timeout_nano=int(TIMEOUT * 1e9),
    )
    core = ttrpc.Client()
    core.request(request.SerializeToString())
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect(socket_path(address))
        connection.sendall(core.data_to_send())
        response = _receive(connection, core)
    failure = to_error(response.status, f"{address}: {SERVICE}/{METHOD}")
    if failure is not None:
        raise failure


def _receive(connection: socket.socket, core: ttrpc.Client) -> ttrpc_pb2.Response:
    while data := connection.recv(65536):
        for event in core.receive_data(data):
            if isinstance(event, ttrpc.Broken):
                raise errors.Internal(str(event.error)) from event.error
            if isinstance(event, ttrpc.ResponseReceived):
                return ttrpc_pb2.Response.FromString(event.data)
    raise errors.Unavailable("the events server closed the connection")


if __name__ == "__main__":
    sys.exit(main())
