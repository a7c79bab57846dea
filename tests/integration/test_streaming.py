"""exec, attach, port-forward and logs by crictl, as a user has them: SPDY and WebSocket.

ZOS_CRI_STREAM_MIB says how much goes through `exec -i` both ways (32 by default).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.server import DEBIAN, UPSTREAM, Server, serving
from tests.integration.streaming_clients import (
    PATIENCE,
    Client,
    Footprint,
    at_terminal,
    piped,
    run,
    wait_state,
)
from tests.integration.test_crictl import wait_for
from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go]

MIB = int(os.environ.get("ZOS_CRI_STREAM_MIB", "32"))
COUNTER = "i=0; while :; do i=$((i+1)); echo out $i; echo err $i >&2; sleep 0.02; done"

# Answers each connection with what it received, in capitals, once the client has ended its half.
ECHO = """
import socket, sys, threading
address = sys.argv[1]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
server = socket.create_server((address, 0), family=family, backlog=100)
print(server.getsockname()[1], flush=True)
def serve(connection):
    with connection:
        received = b""
        while data := connection.recv(65536):
            received += data
        connection.sendall(received.swapcase())
while True:
    threading.Thread(target=serve, args=(server.accept()[0],)).start()
"""


class Node:
    """A server with one pod on a bridge, which all tests put their containers into."""

    def __init__(self, server: Server, transport: str) -> None:
        self.server = server
        self.transport = transport
        with server.cri() as cri:
            self.pod = server.run_pod(cri, "streams")
            self.main = server.run_container(cri, self.pod, name="main")
        self._count = 0

    @contextlib.contextmanager
    def container(self, *command: str, **fields: Any) -> Iterator[str]:
        """One more container, removed at the end."""
        self._count += 1
        with self.server.cri() as cri:
            name = f"c{self._count}"
            id_ = self.server.run_container(cri, self.pod, *command, name=name, **fields)
        try:
            yield id_
        finally:
            with self.server.cri() as cri:
                cri.RemoveContainer(pb.RemoveContainerRequest(container_id=id_))


# Clients' protocols aren't the runtimes' affair: one of each is enough.
@pytest.fixture(
    scope="module",
    params=[(DEBIAN, "spdy"), (UPSTREAM, "spdy"), (UPSTREAM, "websocket")],
    ids=lambda param: f"{param[0].name}-{param[1]}",
)
def node(request: pytest.FixtureRequest, own_network: None) -> Iterator[Node]:
    runtime, transport = request.param
    with serving(runtime, cni=True) as server:
        yield Node(server, transport)
        server.remove_pods()
        assert server.leftovers() == []


@pytest.fixture
def transport(node: Node) -> str:
    return f"--transport={node.transport}"


@pytest.fixture(autouse=True)
def _nothing_stays(node: Node) -> Iterator[None]:
    before = Footprint(node.server)
    yield
    before.wait()


# exec


def test_exec_keeps_outputs_apart_and_tells_the_exit_code(node: Node, transport: str) -> None:
    script = "echo to stdout; echo to stderr >&2; exit 42"
    done = run(node.server, "exec", transport, node.main, "sh", "-c", script)
    assert done.stdout == b"to stdout\n"
    assert done.stderr.startswith(b"to stderr\n")
    assert b"exit code 42" in done.stderr or done.returncode == 42
    assert done.returncode != 0
    assert run(node.server, "exec", transport, node.main, "true").returncode == 0


def test_exec_of_what_is_not_there(node: Node, transport: str) -> None:
    done = run(node.server, "exec", transport, node.main, "no-such-command")
    assert done.returncode != 0
    assert b"no-such-command" in done.stderr


def test_exec_at_a_terminal(node: Node, transport: str) -> None:
    with at_terminal(node.server, "exec", "-it", transport, node.main, "sh") as client:
        client.expect("# ")
        client.type("tty; echo to stderr >&2; echo $((6*7))\n")
        at = client.expect("/dev/pts/0")
        client.expect("42", after=client.expect("\nto stderr", after=at))
        client.type("exit 7\n")
        assert client.finish() != 0
        assert b"exit code 7" in client.output


def test_exec_follows_the_terminals_size(node: Node, transport: str) -> None:
    script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.02; done"
    command = ("exec", "-it", transport, node.main, "sh", "-c", script)
    with at_terminal(node.server, *command, rows=33, columns=99) as client:
        client.expect("ready")
        client.resize(50, 132)
        at = client.expect("50 132")
        client.resize(10, 20)
        client.expect("10 20", after=at)


def test_exec_is_told_the_first_size(node: Node, transport: str) -> None:
    script = "until [ \"$(stty size)\" = '33 99' ]; do sleep 0.02; done; echo it is"
    command = ("exec", "-it", transport, node.main, "sh", "-c", script)
    with at_terminal(node.server, *command, rows=33, columns=99) as client:
        client.expect("it is")
        assert client.finish() == 0


def test_control_c_ends_what_runs_at_the_terminal(node: Node, transport: str) -> None:
    command = ("exec", "-it", transport, node.main, "sh", "-c", "echo ready; sleep 1000")
    with at_terminal(node.server, *command) as client:
        client.expect("ready")
        client.type("\x03")
        client.finish()
        assert b"exit code 130" in client.output


def test_bytes_both_ways(node: Node, transport: str, tmp_path: Path) -> None:
    block = random.Random(5).randbytes(1 << 20)
    sent = tmp_path / "sent"
    with sent.open("wb") as file:
        for number in range(MIB):
            file.write(number.to_bytes(4, "big") + block[4:])
    got = tmp_path / "got"
    with sent.open("rb") as stdin, got.open("wb") as stdout:
        done = subprocess.run(
            command_of(node, "exec", "-i", transport, node.main, "cat"),
            stdin=stdin,
            stdout=stdout,
            timeout=240,
        )
    assert done.returncode == 0
    assert got.stat().st_size == sent.stat().st_size
    assert digest(got) == digest(sent)


def test_what_does_not_read_its_input_ends_in_peace(node: Node, transport: str) -> None:
    done = run(
        node.server,
        *("exec", "-i", transport, node.main, "sh", "-c", "head -c 3; exec <&-; sleep 1; echo end"),
        input=b"abc" + bytes(4 << 20),
    )
    assert (done.stdout, done.returncode) == (b"abcend\n", 0)


def test_exec_with_a_child_that_keeps_the_output(node: Node, transport: str) -> None:
    script = "echo said; setsid sleep 5 & exit 3"
    done = run(node.server, "exec", transport, node.main, "sh", "-c", script)
    assert done.stdout == b"said\n"
    assert b"exit code 3" in done.stderr


# attach


def test_attach_shows_output_from_then_on_to_several(node: Node, transport: str) -> None:
    with node.container("sh", "-c", COUNTER) as id_, contextlib.ExitStack() as stack:
        wait_for(lambda: run(node.server, "logs", id_).stdout.count(b"\n") > 3, PATIENCE)
        clients = [
            stack.enter_context(piped(node.server, "attach", transport, id_)) for _ in range(3)
        ]
        for client in clients:
            numbers = [int(line.removeprefix("out ")) for line in client.lines(20)]
            assert numbers == list(range(numbers[0], numbers[0] + 20))
            assert numbers[0] > 1
        clients.pop().kill()
        for client in clients:
            client.lines(40)


def test_attach_ends_with_the_container(node: Node, transport: str) -> None:
    script = "read line; seq 1 20000; echo the end >&2; exit 5"
    with node.container("sh", "-c", script, stdin=True) as id_:
        done = run(node.server, "attach", "-i", transport, id_, input=b"go\n")
        assert done.stdout == b"".join(b"%d\n" % n for n in range(1, 20001))
        assert done.stderr.endswith(b"the end\n")
        assert done.returncode == 0
        assert wait_state(node.server, id_, pb.CONTAINER_EXITED).exit_code == 5


def test_stdin_outlives_an_attached_client(node: Node, transport: str) -> None:
    with node.container("cat", stdin=True) as id_:
        for text in ("one", "two"):
            with piped(node.server, "attach", "-i", transport, id_) as client:
                client.type(f"{text}\n")
                assert client.lines(1) == [text]
        with piped(node.server, "attach", "-i", transport, id_) as client:
            client.end_input()
            with piped(node.server, "attach", "-i", transport, id_) as other:
                other.type("three\n")
                assert other.lines(1) == ["three"]


def test_stdin_once_ends_with_the_first_client(node: Node, transport: str) -> None:
    with node.container("sh", "-c", "cat; echo over", stdin=True, stdin_once=True) as id_:
        done = run(node.server, "attach", "-i", transport, id_, input=b"all of it\n")
        assert done.stdout == b"all of it\nover\n"
        wait_state(node.server, id_, pb.CONTAINER_EXITED)


def test_stdin_once_ends_with_a_client_that_is_killed(node: Node, transport: str) -> None:
    with node.container("sh", "-c", "cat; echo over", stdin=True, stdin_once=True) as id_:
        with piped(node.server, "attach", "-i", transport, id_) as client:
            client.type("line\n")
            client.lines(1)
        wait_state(node.server, id_, pb.CONTAINER_EXITED)


def test_attach_to_a_terminal(node: Node, transport: str) -> None:
    with (
        node.container("sh", stdin=True, tty=True) as id_,
        at_terminal(node.server, "attach", "-it", transport, id_, rows=20, columns=70) as client,
    ):
        client.type("tty; echo $((6*7))\n")
        client.expect("42", after=client.expect("/dev/pts/0"))
        # A shell of its own, without job control: SIGWINCH goes to the foreground's process group,
        # and an interactive shell puts each command into another one.
        client.type(
            "sh -c \"trap 'stty size' WINCH; echo go''ing; while :; do sleep 0.02; done\"\n"
        )
        client.expect("going")
        client.resize(50, 132)
        at = client.expect("50 132")
        client.resize(10, 20)
        client.expect("10 20", after=at)


# port-forward


@contextlib.contextmanager
def echo(*prefix: str, address: str = "127.0.0.1") -> Iterator[int]:
    """A server that a program started by `prefix` runs; its port."""
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", ECHO, address], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def forwarded(node: Node, transport: str, pod: str, port: int) -> Iterator[tuple[Client, int]]:
    """crictl port-forward; its local port."""
    with piped(node.server, "port-forward", transport, pod, f":{port}") as client:
        client.expect(f"-> {port}\n")
        found = re.search(rb"Forwarding from 127\.0\.0\.1:(\d+)", client.output)
        assert found is not None
        yield client, int(found[1])


def ask(port: int, data: bytes) -> bytes:
    """Sends, ends our half, reads to the end."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return received


@pytest.mark.parametrize("network", ["pod", "host"])
def test_port_forward(node: Node, transport: str, network: str) -> None:
    with contextlib.ExitStack() as stack:
        if network == "pod":
            pod = node.pod
            netns = node.server.run / "sandboxes" / pod / "net"
            port = stack.enter_context(echo("nsenter", f"--net={netns}"))
            with pytest.raises(OSError, match="refused"):  # it is the pod's port, not the host's
                socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        else:
            pod = stack.enter_context(host_pod(node))
            port = stack.enter_context(echo())
        _, local = stack.enter_context(forwarded(node, transport, pod, port))
        for size in (0, 1, 100, 3_000_000):
            data = b"Half" * (size // 4 + 1)
            assert ask(local, data) == data.swapcase()
        # Several at once, in whatever order they end.
        held = [
            stack.enter_context(socket.create_connection(("127.0.0.1", local), timeout=PATIENCE))
            for _ in range(10)
        ]
        for number, connection in enumerate(held):
            connection.sendall(b"n%d" % number)
        for number, connection in reversed(list(enumerate(held))):
            connection.shutdown(socket.SHUT_WR)
            assert connection.makefile("rb").read() == b"N%d" % number


def test_port_forward_over_ipv6_where_ipv4_is_refused(node: Node, transport: str) -> None:
    netns = node.server.run / "sandboxes" / node.pod / "net"
    with (
        echo("nsenter", f"--net={netns}", address="::1") as port,
        forwarded(node, transport, node.pod, port) as (_, local),
    ):
        assert ask(local, b"six") == b"SIX"


def test_a_refused_port(node: Node, transport: str) -> None:
    with forwarded(node, transport, node.pod, 9) as (client, local):
        with contextlib.suppress(ConnectionResetError):
            assert ask(local, b"anybody there?") == b""
        # crictl's library gives the whole session up at the first error, and says it.
        client.finish()


@contextlib.contextmanager
def host_pod(node: Node) -> Iterator[str]:
    with node.server.cri() as cri:
        pod = node.server.run_pod(cri, "host", host_network=True)
        try:
            yield pod
        finally:
            cri.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
            cri.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))


# logs


def test_logs_are_followed_across_rotations(node: Node) -> None:
    script = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo line $i; sleep 0.01; done"
    with (
        node.container("sh", "-c", script) as id_,
        piped(node.server, "logs", "-f", id_) as client,
    ):
        log = node.server.logs / "streams" / f"c{node._count}.log"
        for rotation, line in enumerate((20, 100, 200)):
            client.expect(f"line {line}\n")
            log.rename(log.with_name(f"{log.name}.{rotation}"))
            with node.server.cri() as cri:
                cri.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id=id_))
        client.finish()
        assert client.output.decode().splitlines() == [f"line {n}" for n in range(1, 301)]


# clients that are killed

VICTIMS: dict[str, Callable[[Node, str], contextlib.AbstractContextManager[Client]]] = {
    "exec": lambda node, transport: piped(
        node.server, "exec", "-i", transport, node.main, "sh", "-c", "echo ready; sleep 1000"
    ),
    "exec that floods": lambda node, transport: piped(
        node.server, "exec", "-i", transport, node.main, "sh", "-c", "echo ready; yes"
    ),
    "exec that reads": lambda node, transport: piped(
        node.server, "exec", "-i", transport, node.main, "sh", "-c", "echo ready; cat"
    ),
    "exec at a terminal": lambda node, transport: at_terminal(
        node.server, "exec", "-it", transport, node.main, "sh", "-c", "echo ready; sh"
    ),
    "attach": lambda node, transport: piped(node.server, "attach", transport, node.main),
}


@pytest.mark.parametrize("kind", VICTIMS)
def test_a_killed_client_leaves_nothing(node: Node, transport: str, kind: str) -> None:
    before = Footprint(node.server)
    for _ in range(3):
        with VICTIMS[kind](node, transport) as client:
            if kind == "attach":
                wait_for(before.more, PATIENCE)
            else:
                client.expect("ready")
        before.wait()


def test_a_killed_port_forward_leaves_nothing(node: Node, transport: str) -> None:
    netns = node.server.run / "sandboxes" / node.pod / "net"
    before = Footprint(node.server)
    with (
        echo("nsenter", f"--net={netns}") as port,
        forwarded(node, transport, node.pod, port) as (client, local),
    ):
        with socket.create_connection(("127.0.0.1", local), timeout=PATIENCE) as connection:
            connection.sendall(b"amid")
            wait_for(before.more, PATIENCE)
            client.kill()
        before.wait()


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def command_of(node: Node, *arguments: str) -> list[str]:
    from tests.integration.streaming_clients import command

    return command(node.server, *arguments)
