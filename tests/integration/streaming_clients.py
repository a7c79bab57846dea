"""crictl's streaming commands as a user runs them: over pipes, or at a terminal of their own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tests.conftest import TOOLS
from tests.integration.server import DEBIAN
from tests.integration.test_crictl import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.server import Server

PATIENCE = 30.0  # seconds: of a busy machine; what is waited for comes in milliseconds


def command(server: Server, *arguments: str) -> list[str]:
    config = server.state / "crictl.yaml"  # without one it complains
    if not config.exists():
        endpoint = f"unix://{server.socket}"
        config.write_text(f"runtime-endpoint: {endpoint}\nimage-endpoint: {endpoint}\n")
    return [str(TOOLS / "crictl"), f"--config={config}", *arguments]


def run(server: Server, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Runs crictl to its end. Killed where it doesn't end: it ignores SIGTERM while attached."""
    options = {"stdin": subprocess.DEVNULL} | options
    if "input" in options:
        del options["stdin"]
    done: Any = subprocess.run(
        command(server, *arguments), capture_output=True, timeout=120, **options
    )
    return cast("subprocess.CompletedProcess[bytes]", done)


class Client:
    """A crictl that runs: what it wrote so far, and a way to type to it."""

    def __init__(self, process: subprocess.Popen[bytes], reader: int, writer: int) -> None:
        self.process = process
        self.output = b""
        self._reader = reader
        self._writer = writer

    def type(self, text: str) -> None:
        os.write(self._writer, text.encode())

    def end_input(self) -> None:
        """Closes its standard input (not at a terminal)."""
        os.close(self._writer)
        self._writer = -1

    def read(self, timeout: float) -> bool:
        """Takes in what it wrote; false at the end of it, or when nothing came in time."""
        if not select.select([self._reader], [], [], timeout)[0]:
            return False
        try:
            data = os.read(self._reader, 1 << 16)
        except OSError:  # EIO: the terminal's last user is gone
            return False
        self.output += data
        return bool(data)

    def expect(self, text: str, *, after: int = 0) -> int:
        """Waits until it has written that; the offset behind it."""
        deadline = time.monotonic() + PATIENCE
        while (at := self.output.find(text.encode(), after)) < 0:
            there = self.read(deadline - time.monotonic())
            assert there, f"waited for {text!r} in {self.output[-2000:]!r}"
        return at + len(text.encode())

    def lines(self, count: int) -> list[str]:
        """Waits for so many whole lines."""
        while self.output.count(b"\n") < count:
            assert self.read(PATIENCE), f"ended after {self.output[-2000:]!r}"
        return self.output.decode().splitlines()[:count]

    def finish(self) -> int:
        """Reads to the end; the exit code."""
        while self.read(PATIENCE):
            pass
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """SIGKILL: the connection breaks without a word."""
        self.process.kill()
        self.process.wait()

    def resize(self, rows: int, columns: int) -> None:
        """Sets its terminal's size; the kernel sends it SIGWINCH."""
        set_size(self._writer, rows, columns)

    def close(self) -> None:
        self.kill()
        for descriptor in {self._reader, self._writer} - {-1}:
            os.close(descriptor)


def set_size(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@contextlib.contextmanager
def at_terminal(
    server: Server, *arguments: str, rows: int = 24, columns: int = 80
) -> Iterator[Client]:
    """crictl at a pseudo-terminal, which controls it."""
    ours, theirs = pty.openpty()
    set_size(ours, rows, columns)
    process = subprocess.Popen(
        ["setsid", "--ctty", *command(server, *arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    client = Client(process, ours, ours)
    try:
        yield client
    finally:
        client.close()


@contextlib.contextmanager
def piped(server: Server, *arguments: str) -> Iterator[Client]:
    """crictl with pipes; its standard error is let through."""
    read_in, write_in = os.pipe()
    read_out, write_out = os.pipe()
    process = subprocess.Popen(command(server, *arguments), stdin=read_in, stdout=write_out)
    os.close(read_in)
    os.close(write_out)
    client = Client(process, read_out, write_in)
    try:
        yield client
    finally:
        client.close()


def descriptors(pid: int) -> list[str]:
    """What a process has open."""
    found = []
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(entry.path))
    return found


class Footprint:
    """What streams could leave behind in the server and on the host."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._before = self._now()

    def _now(self) -> dict[str, Any]:
        server = self._server
        assert server.process is not None
        fifos = str(server.run / "exec")
        processes = server.processes()
        shims = [pid for pid, line in processes if "-shim-" in line]
        if server.runtime is DEBIAN:
            # Shim 1.6 leaves its reader of a terminal's input to Go's garbage collection.
            shims = []
        return {
            # Statistics keep cgroup files open, and gRPC its clients' connections a while.
            "descriptors": Counter(
                fd.split(":")[0]
                for fd in descriptors(server.process.pid)
                if not fd.startswith((str(server.socket), "/sys/"))
            ),
            "exec": list(map(str, (server.run / "exec").glob("**/*"))),
            # Zombies have no command line; to bury them is for the container's own init.
            "processes": {pid: line for pid, line in processes if line},
            # Of other kinds Go closes some only when it collects its garbage.
            "shims' FIFOs": [fd for pid in shims for fd in descriptors(pid) if fifos in fd],
        }

    def wait(self) -> None:
        """Until there is nothing that there wasn't."""
        deadline = time.monotonic() + PATIENCE
        while problems := self.more():
            assert time.monotonic() < deadline, (problems, self._sockets())
            time.sleep(0.05)

    def _sockets(self) -> list[str]:
        """What the server's sockets are, for a failure's message."""
        assert self._server.process is not None
        pid = self._server.process.pid
        inodes = {fd[8:-1] for fd in descriptors(pid) if fd.startswith("socket:")}
        lines = [
            line
            for table in ("tcp", "tcp6", "unix")
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()
        ]
        return [line for line in lines if inodes & {*line.split()}]

    def figures(self) -> str:
        """What there is now, for a soak test to print."""
        now = self._now()
        return (
            f"RSS {self._server.rss >> 10} KiB, {now['descriptors'].total()} descriptors, "
            f"{len(now['processes'])} processes, {len(now['exec'])} FIFOs"
        )

    def more(self) -> dict[str, Any]:
        """What there is now and wasn't."""
        try:
            now = self._now()
        except FileNotFoundError as error:  # a process has just ended
            return {"changing": str(error)}
        before = self._before
        found: dict[str, Any] = {
            key: new
            for key in ("exec", "shims' FIFOs")
            if (new := sorted(set(now[key]) - set(before[key])))
        }
        # By number: a container that has just been started may still be called `runc init`.
        if new_pids := now["processes"].keys() - before["processes"].keys():
            found["processes"] = {pid: now["processes"][pid] for pid in new_pids}
        if more := now["descriptors"] - before["descriptors"]:
            found["descriptors"] = more
        return found


def wait_state(server: Server, container: str, state: int) -> Any:
    """Waits for a container's state; its status."""
    from zos_cri._pb import cri_pb2 as pb

    def status() -> Any:
        with server.cri() as cri:
            found = cri.ContainerStatus(pb.ContainerStatusRequest(container_id=container)).status
        return found if found.state == state else None

    return wait_for(status, PATIENCE)
