"""Many ExecSync calls and many clients that break off leave the server as it was.

ZOS_CRI_SOAK_EXECS (200), ZOS_CRI_SOAK_CLIENTS (30) and ZOS_CRI_SOAK_CONNECTIONS (300; forwarded
ones) say how many; figures are printed.
"""

from __future__ import annotations

import base64
import contextlib
import os
import random
import re
import socket
import socketserver
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests.integration.server import UPSTREAM, Server, serving
from tests.integration.streaming_clients import PATIENCE, Footprint, piped
from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

EXECS = int(os.environ.get("ZOS_CRI_SOAK_EXECS", "200"))
CLIENTS = int(os.environ.get("ZOS_CRI_SOAK_CLIENTS", "30"))
CONNECTIONS = int(os.environ.get("ZOS_CRI_SOAK_CONNECTIONS", "300"))
AT_ONCE = 8
# An allocator's arenas fill at the first load and then stay; so it is compared to a warm server.
WARM = 100
GROWTH = 8 << 20  # bytes; 1 % of it is under 300 bytes a call

pytestmark = [
    pytest.mark.root,
    pytest.mark.runtime,
    pytest.mark.timeout(300 + EXECS // 2 + 10 * CLIENTS + CONNECTIONS),
]


@pytest.fixture
def node() -> Iterator[Server]:
    with serving(UPSTREAM) as server:
        yield server


def test_exec_sync(node: Server) -> None:
    with node.cri() as cri, ThreadPoolExecutor(AT_ONCE) as threads:
        container = node.run_container(cri, node.run_pod(cri, "soak"), "sleep", "1000000")

        def call(number: int) -> None:
            script = f"echo {number}; echo e{number} >&2; exit {number % 200}"
            request = pb.ExecSyncRequest(
                container_id=container, cmd=["sh", "-c", script], timeout=120
            )
            answer = cri.ExecSync(request)
            assert answer.stdout == b"%d\n" % number
            assert answer.stderr == b"e%d\n" % number
            assert answer.exit_code == number % 200

        list(threads.map(call, range(WARM)))
        before, rss = Footprint(node), node.rss
        print(f"before: {before.figures()}")
        begun = time.monotonic()
        for tenth in range(10):
            list(threads.map(call, range(EXECS * tenth // 10, EXECS * (tenth + 1) // 10)))
            if EXECS >= 10_000:
                print(f"{EXECS * (tenth + 1) // 10}: {before.figures()}", flush=True)
        seconds = time.monotonic() - begun
        before.wait()
        print(
            f"{EXECS} ExecSync in {seconds:.1f} s ({1000 * seconds / EXECS:.1f} ms each, "
            f"{AT_ONCE} at once); after: {before.figures()}"
        )
        assert node.rss - rss < GROWTH


@contextlib.contextmanager
def echoing() -> Iterator[int]:
    """The port of a server that, once a client has ended its half, sends back what it got."""

    class Echo(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            received = b""
            while data := self.request.recv(65536):
                received += data
            self.request.sendall(received)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:  # or it would go round for ever over a socket that is closed
            server.shutdown()
            thread.join()


@pytest.mark.go
def test_forwarded_connections_in_a_row(node: Server) -> None:
    """One session, one connection after another, each compared byte by byte."""
    chance = random.Random(7)
    block = chance.randbytes(200_000)
    with node.cri() as cri, echoing() as port:
        pod = node.run_pod(cri, "soak")
        node.run_container(cri, pod, "sleep", "1000000")  # its shim is there, and connected
        with piped(node, "port-forward", pod, f":{port}") as client:
            client.expect(f"-> {port}\n")
            found = re.search(rb"127\.0\.0\.1:(\d+)", client.output)
            assert found is not None
            before: Footprint | None = None
            begun = time.monotonic()
            for number in range(CONNECTIONS):
                size = chance.choice((0, 1, 100, 1000, 70_000, 200_000))
                data = number.to_bytes(4, "big") + block[:size]
                assert exchange(int(found[1]), data) == data, f"connection {number}"
                while client.read(0):  # it says so of each, and would stop at a full pipe
                    client.output = b""
                if number == min(20, CONNECTIONS // 2):
                    before = Footprint(node)
                    print(f"before: {before.figures()}")
            assert before is not None
            before.wait()
            seconds = time.monotonic() - begun
            print(f"{CONNECTIONS} connections in {seconds:.1f} s; after: {before.figures()}")


def exchange(port: int, data: bytes) -> bytes:
    """Sends, ends our half, reads to the end."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return received


def upgrade(url: str, protocol: str) -> socket.socket:
    """A WebSocket client that has been let in, and knows nothing else."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = socket.create_connection((parts.hostname, parts.port or 80), PATIENCE)
    key = base64.b64encode(os.urandom(16)).decode()
    connection.sendall(
        f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n".encode()
    )
    answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 101 "), answer
    return connection


def break_off(connection: socket.socket, how: int) -> None:
    """Ends a connection without a word: an end, a reset, or after garbage."""
    with contextlib.suppress(OSError):
        if how == 1:
            linger = (1).to_bytes(4, "little") + bytes(4)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        elif how == 2:
            connection.sendall(os.urandom(100))
    connection.close()


def clients(cri: Any, container: str, pod: str, port: int) -> list[tuple[str, str]]:
    """URLs and protocols of what clients of this kind can break."""
    exec_ = pb.ExecRequest(
        container_id=container, cmd=["sh", "-c", "yes & cat"], stdin=True, stdout=True, stderr=True
    )
    terminal = pb.ExecRequest(
        container_id=container, cmd=["sh", "-c", "sh; true"], tty=True, stdin=True, stdout=True
    )
    attach = pb.AttachRequest(container_id=container, stdin=True, stdout=True, stderr=True)
    forward = pb.PortForwardRequest(pod_sandbox_id=pod, port=[port])
    return [
        (cri.Exec(exec_).url, "v5.channel.k8s.io"),
        (cri.Exec(terminal).url, "v4.channel.k8s.io"),
        (cri.Attach(attach).url, "v5.channel.k8s.io"),
        (cri.PortForward(forward).url, "v4.channel.k8s.io"),
        (cri.PortForward(forward).url, "SPDY/3.1+portforward.k8s.io"),
    ]


@contextlib.contextmanager
def hanging_up() -> Iterator[int]:
    """The port of a server that reads each connection to its end; not each client comes so far."""

    def serve() -> None:
        with contextlib.suppress(OSError):  # shut down
            while True:
                hang_up(listener.accept()[0])

    def hang_up(connection: socket.socket) -> None:
        connection.settimeout(PATIENCE)
        with connection, contextlib.suppress(OSError):
            while connection.recv(4096):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)


def test_broken_clients(node: Server) -> None:
    with node.cri() as cri, hanging_up() as port:
        pod = node.run_pod(cri, "soak")
        container = node.run_container(cri, pod, "cat", stdin=True)

        def one_round(number: int) -> None:
            urls = clients(cri, container, pod, port)
            opened = [upgrade(url, protocol) for url, protocol in urls]
            if number % 2:  # not only in the midst of the start
                for connection in opened[:2]:
                    connection.recv(100)
            for connection in opened:
                break_off(connection, number % 3)

        rounds = max(1, CLIENTS // 5)
        for number in range(4):
            one_round(number)
        time.sleep(1)  # the last of them may still be starting: what follows is compared to now
        before, rss = Footprint(node), node.rss
        print(f"before: {before.figures()}")
        begun = time.monotonic()
        for number in range(rounds):
            one_round(number)
        seconds = time.monotonic() - begun
        before.wait()
        print(f"{5 * rounds} broken clients in {seconds:.1f} s; after: {before.figures()}")
        assert node.rss - rss < GROWTH
        assert "Traceback" not in node.log.read_text()
