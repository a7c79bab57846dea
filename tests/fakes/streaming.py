"""A `zos_cri.streaming.backend.Backend` without containers: commands and ports are scripts.

Commands (`cmd[0]`):
    cat             copies stdin to stdout until its end
    bulk N [CODE]   writes N bytes of `pattern` to stdout, exits with CODE
    both N          N bytes to stdout and N other ones to stderr, alternating
    exit CODE       exits at once
    hang            does nothing until it is closed
    deaf            never reads stdin, hangs
    closed-stdin    has closed its stdin; writes "done" when `release` is set
    sizes N         writes "WxH\n" for each of the first N sizes, exits
    late N          exits with 4 first and writes N bytes after that, as a child of it would
    orphan          writes "out", exits, and leaves stdout open
    broken          can't be started
    broken-output   its stdout can't be read
Ports:
    7               echoes, half-closes passed on
    9               takes everything, then answers its length and SHA-256 when the client ends
    19              sends BULK bytes of `pattern` and ends
    25              greets, then resets
    1               refuses
    11              takes nothing and sends nothing
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

from zos_cri.errors import FailedPrecondition, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from zos_cri.streaming.backend import AttachRequest, ExecRequest

BULK = 3_000_000
_BLOCK = bytes(range(256)) * 256


def pattern(count: int, *, salt: int = 0) -> bytes:
    """`count` bytes that differ from place to place."""
    block = _BLOCK[salt:] + _BLOCK[:salt]
    numbered = b"".join(
        index.to_bytes(8, "big") + block[8:] for index in range(count // len(block) + 1)
    )
    return numbered[:count]


class Pipe:
    """An in-memory pipe with a bound."""

    def __init__(self, capacity: int = 64 * 1024) -> None:
        self._capacity = capacity
        self._buffer = bytearray()
        self._ended = False
        self._broken = False
        self._changed = asyncio.Condition()
        self.high_water = 0
        self.total = 0

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        async with self._changed:
            while view:
                await self._changed.wait_for(
                    lambda: self._broken or len(self._buffer) < self._capacity
                )
                if self._broken:
                    raise BrokenPipeError("nobody reads")
                room = self._capacity - len(self._buffer)
                self._buffer += view[:room]
                self.total += len(view[:room])
                view = view[room:]
                self.high_water = max(self.high_water, len(self._buffer))
                self._changed.notify_all()

    async def read(self, limit: int) -> bytes:
        async with self._changed:
            await self._changed.wait_for(lambda: self._buffer or self._ended)
            data = bytes(self._buffer[:limit])
            del self._buffer[:limit]
            self._changed.notify_all()
            return data

    async def end(self) -> None:
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def break_(self) -> None:
        async with self._changed:
            self._broken = True
            self._changed.notify_all()


class FakeProcess:
    """Runs a script as a task."""

    def __init__(self, request: ExecRequest | AttachRequest, cmd: tuple[str, ...]) -> None:
        self.request = request
        self.stdin, self.stdout, self.stderr = Pipe(), Pipe(), Pipe()
        self.sizes: list[tuple[int, int]] = []
        self.release = asyncio.Event()
        self.closed = 0
        self.close_delay = asyncio.Event()
        self.close_delay.set()
        self._resized = asyncio.Condition()
        self._output_is_broken = cmd[0] == "broken-output"
        self._code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        script = getattr(self, "_" + cmd[0].replace("-", "_"))
        self._task = asyncio.create_task(self._run(script(*cmd[1:]), keep_open=cmd[0] == "orphan"))

    async def _run(self, script: Awaitable[int | bytes], *, keep_open: bool) -> None:
        code = await script
        if isinstance(code, bytes):
            self._code.set_result(4)
            await asyncio.sleep(0.05)
            await self.stdout.write(code)
            await self.stdout.end()
            await self.stderr.end()
            return
        if not keep_open:
            await self.stdout.end()
            await self.stderr.end()
        self._code.set_result(code or 0)

    async def _cat(self) -> int:
        while data := await self.stdin.read(64 * 1024):
            await self.stdout.write(data)
        return 0

    async def _bulk(self, count: str, code: str = "0") -> int:
        await self.stdout.write(pattern(int(count)))
        return int(code)

    async def _both(self, count: str) -> int:
        out, err = pattern(int(count)), pattern(int(count), salt=7)
        step = 5000
        for start in range(0, int(count), step):
            await self.stdout.write(out[start : start + step])
            await self.stderr.write(err[start : start + step])
        return 0

    async def _exit(self, code: str) -> int:
        return int(code)

    async def _hang(self) -> int:
        await asyncio.Event().wait()
        return 0

    _broken_output = _hang

    async def _deaf(self) -> int:
        await self.release.wait()
        return 0

    async def _closed_stdin(self) -> int:
        await self.stdin.break_()
        await self.release.wait()
        await self.stdout.write(b"done")
        return 0

    async def _sizes(self, count: str) -> int:
        for index in range(int(count)):
            async with self._resized:
                await self._resized.wait_for(lambda: len(self.sizes) > index)  # noqa: B023
            await self.stdout.write(b"%dx%d\n" % self.sizes[index])
        return 0

    async def _late(self, count: str) -> bytes:
        return pattern(int(count))

    async def _orphan(self) -> int:
        await self.stdout.write(b"out")
        return 3

    async def read_stdout(self, limit: int) -> bytes:
        if self._output_is_broken:
            raise OSError(5, "Input/output error")
        return await self.stdout.read(limit)

    async def read_stderr(self, limit: int) -> bytes:
        return await self.stderr.read(limit)

    async def write_stdin(self, data: bytes) -> None:
        await self.stdin.write(data)

    async def close_stdin(self) -> None:
        await self.stdin.end()

    async def resize(self, width: int, height: int) -> None:
        async with self._resized:
            self.sizes.append((width, height))
            self._resized.notify_all()

    async def wait(self) -> int:
        return await asyncio.shield(self._code)

    async def aclose(self) -> None:
        self.closed += 1
        await self.close_delay.wait()
        self._task.cancel()
        await asyncio.wait([self._task])
        self._code.cancel()


class FakeConnection:
    """A connection to a scripted port."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.to_pod, self.from_pod = Pipe(), Pipe()
        self.closed = 0
        self._reset = False
        self._task = asyncio.create_task(getattr(self, f"_port_{port}")())

    async def _port_7(self) -> None:
        while data := await self.to_pod.read(64 * 1024):
            await self.from_pod.write(data)
        await self.from_pod.end()

    async def _port_9(self) -> None:
        digest, count = hashlib.sha256(), 0
        while data := await self.to_pod.read(64 * 1024):
            digest.update(data)
            count += len(data)
        await self.from_pod.write(f"{count} {digest.hexdigest()}".encode())
        await self.from_pod.end()

    async def _port_19(self) -> None:
        await self.from_pod.write(pattern(BULK))
        await self.from_pod.end()

    async def _port_25(self) -> None:
        await self.from_pod.write(b"hello")
        self._reset = True
        await self.from_pod.end()

    async def _port_11(self) -> None:
        await asyncio.Event().wait()

    async def read(self, limit: int) -> bytes:
        data = await self.from_pod.read(limit)
        if not data and self._reset:
            raise ConnectionResetError(104, "Connection reset by peer")
        return data

    async def write(self, data: bytes) -> None:
        await self.to_pod.write(data)

    async def write_eof(self) -> None:
        await self.to_pod.end()

    async def aclose(self) -> None:
        self.closed += 1
        self._task.cancel()
        await asyncio.wait([self._task])


class FakeBackend:
    """Records what it was asked for and made."""

    def __init__(self) -> None:
        self.requests: list[object] = []
        self.processes: list[FakeProcess] = []
        self.connections: list[FakeConnection] = []
        self.starts = asyncio.Event()  # exec returns when it is set
        self.starts.set()
        self.cancelled_starts = 0
        self.attached_command: tuple[str, ...] = ("cat",)

    async def exec(self, request: ExecRequest) -> FakeProcess:
        return await self._start(request, request.cmd)

    async def attach(self, request: AttachRequest) -> FakeProcess:
        return await self._start(request, self.attached_command)

    async def _start(
        self, request: ExecRequest | AttachRequest, cmd: tuple[str, ...]
    ) -> FakeProcess:
        self.requests.append(request)
        try:
            await self.starts.wait()
        except asyncio.CancelledError:
            self.cancelled_starts += 1
            raise
        if cmd[0] == "broken":
            raise FailedPrecondition("container c1 is not running")
        process = FakeProcess(request, cmd)
        self.processes.append(process)
        return process

    async def port_forward(self, pod_id: str, port: int) -> FakeConnection:
        self.requests.append((pod_id, port))
        if port == 1:
            raise Unavailable("port 1 can't be connected to (127.0.0.1: connection refused)")
        connection = FakeConnection(port)
        self.connections.append(connection)
        return connection

    @property
    def open(self) -> int:
        """What hasn't been closed."""
        return sum(not process.closed for process in self.processes) + sum(
            not connection.closed for connection in self.connections
        )
