"""An NRI plugin in the test itself, for what a real one wouldn't do: it hangs, lies, goes away."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

from tests.fakes.shim import until
from zos_cri._pb import nri_pb2 as pb
from zos_cri.metrics import Metrics
from zos_cri.nri import events
from zos_cri.nri.plugin import Identity, Plugin, Timeouts
from zos_cri.nri.plugins import Plugins
from zos_cri.nri.telemetry import Telemetry
from zos_cri.nri.trunk import Trunk
from zos_cri.shim.client import Connection
from zos_cri.shim.server import Server, ServerConnection
from zos_cri.wire import nrimux

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from google.protobuf.message import Message

METHODS = ("Configure", "Synchronize", "Shutdown", *events.RPCS)
HANG = object()  # an answer that doesn't come
GARBAGE = b"\xff\xff"  # no message


class FakePlugin:
    """Answers as `answers` has it by method: a message, an error to raise, HANG or bytes.

    What isn't there is answered emptily; `old` doesn't know what was StateChange before 0.12.
    """

    def __init__(self, *, old: bool = False, **answers: Any) -> None:
        self.answers = answers
        self.calls: list[tuple[str, Message]] = []
        table = {
            (events.SERVICE, name): self._handler(name)
            for name in (*METHODS, "StateChange")
            if not (old and name in events.RPCS and events.RPCS[name].told_by_state_change)
        }
        self.runtime = Connection("runtime")
        self.trunk = Trunk(self.runtime, ServerConnection(Server(table)))
        # The other end's channels.
        self.trunk._protocols = {
            nrimux.RUNTIME_SERVICE: self.runtime,
            nrimux.PLUGIN_SERVICE: self.trunk._protocols[nrimux.RUNTIME_SERVICE],
        }

    def _handler(self, name: str) -> Any:
        request = (
            pb.StateChangeEvent
            if name == "StateChange"
            else getattr(pb, f"{name}Request", pb.Empty)
        )

        async def handle(payload: bytes, _: Mapping[str, str]) -> bytes:
            self.calls.append((name, request.FromString(payload)))
            answer = self.answers.get(name)
            if answer is HANG:
                await asyncio.Event().wait()
            if isinstance(answer, BaseException):
                raise answer
            if isinstance(answer, bytes):
                return answer
            if callable(answer):
                answer = answer(self.calls[-1][1])
            return answer.SerializeToString() if answer is not None else self._usual(name)

        return handle

    def _usual(self, name: str) -> bytes:
        if name != "Synchronize":
            return b""
        request = self.calls[-1][1]
        assert isinstance(request, pb.SynchronizeRequest)
        return pb.SynchronizeResponse(more=request.more).SerializeToString()

    def names(self) -> list[str]:
        """The calls of events, after the plugin has joined."""
        return [name for name, _ in self.calls if name not in ("Configure", "Synchronize")]

    def last(self, name: str) -> Any:
        return [request for each, request in self.calls if each == name][-1]

    async def connect(self, other: Plugin) -> None:
        """Connects to the server's end of it."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        await loop.create_connection(lambda: self.trunk, sock=ours)
        await loop.create_connection(lambda: other.trunk, sock=theirs)

    async def dial(self, path: str) -> None:
        await asyncio.get_running_loop().create_unix_connection(lambda: self.trunk, path)

    async def call(self, method: str, request: Message) -> bytes:
        return await self.runtime.call(
            events.RUNTIME, method, request.SerializeToString(), timeout=5, metadata={}
        )

    async def register(self, name: str = "fake", index: str = "10") -> None:
        await self.call(
            "RegisterPlugin", pb.RegisterPluginRequest(plugin_name=name, plugin_idx=index)
        )

    def close(self) -> None:
        self.trunk.abort()


class FakeRuntime:
    """What plugins are told of, and a note of what they change."""

    def __init__(self) -> None:
        self.pods: list[pb.PodSandbox] = []
        self.containers: list[pb.Container] = []
        self.updates: list[pb.ContainerUpdate] = []
        self.evictions: list[pb.ContainerEviction] = []
        self.failed: list[pb.ContainerUpdate] = []

    async def snapshot(self) -> tuple[Sequence[pb.PodSandbox], Sequence[pb.Container]]:
        return self.pods, self.containers

    async def change(
        self, updates: Iterable[pb.ContainerUpdate], evictions: Iterable[pb.ContainerEviction]
    ) -> list[pb.ContainerUpdate]:
        self.updates += updates
        self.evictions += evictions
        return self.failed


class Bench:
    """Plugins over a fake runtime."""

    def __init__(self, timeouts: Timeouts = Timeouts(5.0, 5.0)) -> None:  # noqa: B008 frozen
        self.runtime = FakeRuntime()
        self.metrics = Metrics()
        self.plugins = Plugins(self.runtime, Telemetry(self.metrics), timeouts)
        self.fakes: list[FakePlugin] = []

    async def connected(
        self, fake: FakePlugin, known: Identity | None = None, config: str = ""
    ) -> Plugin:
        """One that has connected and hasn't said anything."""
        plugin = self.plugins.plugin(known, config)
        self.fakes.append(fake)
        await fake.connect(plugin)
        return plugin

    async def join(self, name: str = "fake", index: str = "10", **answers: Any) -> FakePlugin:
        """One that has joined."""
        fake = FakePlugin(**answers)
        await joined(self.plugins, fake, await self.connected(fake), name, index)
        return fake

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"zos_cri_nri_{name}", labels) or 0.0

    async def aclose(self) -> None:
        self.plugins.close()
        for fake in self.fakes:
            fake.close()
        await until(lambda: not self.plugins._connected)


async def joined(
    plugins: Plugins, fake: FakePlugin, plugin: Plugin, name: str = "fake", index: str = "10"
) -> None:
    joining = asyncio.create_task(plugins.join(plugin))
    await fake.register(name, index)
    await joining
