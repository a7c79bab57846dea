"""Fake shims for error injection.

`Peer` is a ttrpc server inside the test that answers as it is told. `install` makes an executable
that is started like a real shim: it reads and answers `start` in the dialect it is told, serves a
Task API from a process of its own, and knows `delete` and `-info`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from google.protobuf import any_pb2, empty_pb2
from google.protobuf.message import DecodeError

from zos_cri import errors
from zos_cri._pb import bootstrap_pb2, status_pb2, task_v3_pb2, ttrpc_pb2, types_pb2
from zos_cri.wire import ttrpc

if TYPE_CHECKING:
    from collections.abc import Callable


async def until(condition: Callable[[], object], timeout: float = 10) -> None:
    """Waits until a condition holds that something else on the loop, or a process, brings about."""
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.001)


class Peer:
    """A ttrpc server that answers every request by `answer`, and notes them all.

    `answer` takes the request and returns a Response, raw bytes to write, or None to stay silent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[ttrpc_pb2.Request] = []
        self.answer: Callable[[ttrpc_pb2.Request], ttrpc_pb2.Response | bytes | None] = echo
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.arrived = asyncio.Event()
        self.withheld: list[tuple[ttrpc.Server, asyncio.StreamWriter, int]] = []

    async def __aenter__(self) -> Peer:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.disconnect()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def disconnect(self) -> None:
        """Closes all connections."""
        for writer in self._writers:
            writer.transport.abort()

    def answer_withheld(self, payload: bytes) -> None:
        """Answers, late, whatever was met with silence."""
        for core, writer, stream_id in self.withheld:
            core.respond(stream_id, ttrpc_pb2.Response(payload=payload).SerializeToString())
            writer.write(core.data_to_send())
        self.withheld.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        core = ttrpc.Server()
        try:
            while data := await reader.read(65536):
                for event in core.receive_data(data):
                    assert isinstance(event, ttrpc.RequestReceived), event
                    self._reply(core, writer, event)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()
            self._writers.discard(writer)

    def _reply(
        self, core: ttrpc.Server, writer: asyncio.StreamWriter, event: ttrpc.RequestReceived
    ) -> None:
        request = ttrpc_pb2.Request.FromString(event.data)
        self.requests.append(request)
        self.arrived.set()
        answer = self.answer(request)
        if isinstance(answer, bytes):
            writer.write(answer)
        elif answer is None:
            self.withheld.append((core, writer, event.stream_id))
        else:
            core.respond(event.stream_id, answer.SerializeToString())
            writer.write(core.data_to_send())


def echo(request: ttrpc_pb2.Request) -> ttrpc_pb2.Response:
    return ttrpc_pb2.Response(payload=request.payload)


def failing(code: int, message: str) -> ttrpc_pb2.Response:
    return ttrpc_pb2.Response(status=status_pb2.Status(code=code, message=message))


class Behaviour(msgspec.Struct, frozen=True, kw_only=True):
    """What a fake binary does.

    Attributes:
        accepts: what `start` must find on stdin: "params", "any", "none", or "all".
        replies: how it answers: "protobuf", "json", "text", or the text itself.
        leaves: a refused `start` leaves a server running all the same.
        hangs: the actions (`start`, `delete`) that never end, and children of theirs that don't.
        serves: the Task versions that it knows.
        version: the one that it says it knows.
        ignores_shutdown, lies_about_pid: of the server.
        delete_fails: `delete` ends with 1.
        info: `-info` is understood.
        name, release: what it says there of itself.
        dies: the server ends before it serves.
        sandbox: the methods of the sandbox API that it knows; it has no sandbox.
        knows_tasks: false: Connect is refused, as by machines' shims that have no sandbox.
    """

    accepts: str = "all"
    replies: str = "protobuf"
    leaves: bool = False
    hangs: tuple[str, ...] = ()
    serves: tuple[int, ...] = (2, 3)
    version: int = 3
    protocol: str = "ttrpc"
    ignores_shutdown: bool = False
    lies_about_pid: bool = False
    delete_fails: bool = False
    info: bool = True
    name: str = "fake"
    release: str = "9.9"
    dies: bool = False
    sandbox: tuple[str, ...] = ()
    knows_tasks: bool = True


def install(directory: Path, behaviour: Behaviour | None = None) -> Path:
    """Makes `containerd-shim-fake-v2` in a directory (which is made).

    Called again, it changes the behaviour only: the file stays as it is.
    """
    directory.mkdir(exist_ok=True)
    settings = directory / "behaviour.json"
    settings.write_bytes(msgspec.json.encode(behaviour or Behaviour()))
    path = directory / "containerd-shim-fake-v2"
    root = Path(__file__).parents[2]
    if path.exists():
        return path
    path.write_text(
        f"#!/bin/sh\nexport FAKE_SHIM={settings} PYTHONPATH={root}\n"
        f'exec {sys.executable} -m tests.fakes.shim "$@"\n'
    )
    path.chmod(0o755)
    return path


def calls(directory: Path) -> list[dict[str, Any]]:
    """How an installed fake was run: argv, env, cwd and the kind of stdin, each.

    Without `-info`, which is asked of a binary before its first start.
    """
    try:
        lines = (directory / "calls").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [call for call in map(json.loads, lines) if call["argv"][-1] != "-info"]


class _Binary:
    """The program."""

    def __init__(self, argv: list[str]) -> None:
        settings = Path(os.environ["FAKE_SHIM"])
        self.behaviour = msgspec.json.decode(settings.read_bytes(), type=Behaviour)
        self.argv = argv
        self.stdin = b"" if argv[-1] == "delete" else sys.stdin.buffer.read()
        self.id = argv[argv.index("-id") + 1] if "-id" in argv else ""
        kind = self.kind_of_stdin()
        call = {"argv": argv, "env": dict(os.environ), "cwd": os.getcwd(), "stdin": kind}
        with (settings.parent / "calls").open("a") as file:
            file.write(json.dumps(call) + "\n")

    def kind_of_stdin(self) -> str:
        if not self.stdin:
            return "none"
        try:
            params = bootstrap_pb2.BootstrapParams.FromString(self.stdin)
            if params.instance_id == self.id and params.namespace:
                return "params"
        except DecodeError:
            pass
        return "any"

    def run(self) -> int:
        action = self.argv[-1]
        if action in self.behaviour.hangs:
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        if action == "-info":
            return self.info()
        if action == "delete":
            return self.delete()
        if action == "start":
            return self.start()
        if not self.behaviour.dies:
            self.serve(socket.socket(fileno=3))
        return 1

    def info(self) -> int:
        if not self.behaviour.info:
            print("flag provided but not defined: -info", file=sys.stderr)
            return 2
        info = types_pb2.RuntimeInfo(name=self.behaviour.name)
        info.version.version = self.behaviour.release
        info.features.value = b'{"mountOptions":["ro"]}'
        info.annotations["a"] = "b"
        sys.stdout.buffer.write(info.SerializeToString())
        return 0

    def delete(self) -> int:
        if self.behaviour.delete_fails:
            print("it can't be deleted", file=sys.stderr)
            return 1
        response = task_v3_pb2.DeleteResponse(pid=77, exit_status=137)
        response.exited_at.FromNanoseconds(5)
        print("a warning", file=sys.stderr)
        sys.stdout.buffer.write(response.SerializeToString())
        return 0

    def start(self) -> int:
        accepted = self.behaviour.accepts in {"all", self.kind_of_stdin()}
        if not accepted and not self.behaviour.leaves:
            print("this is not for me", file=sys.stderr)
            return 1
        address = str(Path(os.environ["FAKE_SHIM"]).parent / "socket")
        listener = socket.socket(socket.AF_UNIX)
        Path(address).unlink(missing_ok=True)
        listener.bind(address)
        listener.listen()
        if os.fork() == 0:
            self.serve(listener)
        if not accepted:
            print("this was not for me", file=sys.stderr)
            return 1
        sys.stdout.buffer.write(self.reply(f"unix://{address}"))
        return 0

    def reply(self, address: str) -> bytes:
        reply = {"version": self.behaviour.version, "address": address}
        reply["protocol"] = self.behaviour.protocol
        if self.behaviour.replies == "protobuf":
            return bootstrap_pb2.BootstrapResult(**reply).SerializeToString()  # type: ignore[arg-type]
        if self.behaviour.replies == "json":
            return json.dumps(reply).encode()
        return (address if self.behaviour.replies == "text" else self.behaviour.replies).encode()

    def serve(self, listener: socket.socket) -> None:
        os.setpgid(0, 0)
        null = os.open("/dev/null", os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        if os.path.exists("log"):
            with open("log", "w") as log:
                log.write('time="2026" level=warning msg="the fake serves" runtime=fake\n')
        asyncio.run(self.serve_forever(listener))

    async def serve_forever(self, listener: socket.socket) -> None:
        from zos_cri.shim.server import Server, ServerConnection

        server = Server(
            {
                (f"containerd.task.v{version}.Task", method): getattr(self, method.lower())
                for version in self.behaviour.serves
                for method in ("Connect", "Shutdown")
            }
            | {
                ("containerd.runtime.sandbox.v1.Sandbox", method): getattr(self, method.lower())
                for method in self.behaviour.sandbox
            }
        )
        loop = asyncio.get_running_loop()
        await loop.create_unix_server(lambda: ServerConnection(server), sock=listener)
        await asyncio.sleep(600)

    async def connect(self, payload: bytes, metadata: object) -> bytes:
        if not self.behaviour.knows_tasks:
            raise errors.Internal("there is no sandbox yet")
        pid = os.getppid() if self.behaviour.lies_about_pid else os.getpid()
        return task_v3_pb2.ConnectResponse(shim_pid=pid).SerializeToString()

    async def pingsandbox(self, payload: bytes, metadata: object) -> bytes:
        raise errors.NotFound("no sandbox")

    sandboxstatus = stopsandbox = pingsandbox

    async def shutdownsandbox(self, payload: bytes, metadata: object) -> bytes:
        return self._shut_down()

    async def shutdown(self, payload: bytes, metadata: object) -> bytes:
        if self.behaviour.sandbox:
            raise errors.FailedPrecondition("ShutdownSandbox ends this shim")
        return self._shut_down()

    def _shut_down(self) -> bytes:
        if not self.behaviour.ignores_shutdown:
            asyncio.get_running_loop().call_later(0.01, os._exit, 0)
        return empty_pb2.Empty().SerializeToString()


def options(text: str = "") -> any_pb2.Any:
    """Some options."""
    return any_pb2.Any(type_url="containerd.runc.v1.Options", value=text.encode())


if __name__ == "__main__":
    sys.exit(_Binary(sys.argv[1:]).run())
