"""All plugins together: who is there, in what order they are called, and how one joins.

One request at a time goes through them, as plugins expect it: each sees the same order. A plugin
joins between two requests, and is told of what there is at that moment. What plugins change of
other containers is done after the request's turn: such a container may itself wait for one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from zos_cri._pb import nri_pb2 as pb
from zos_cri.errors import Error, ResourceExhausted, one_line
from zos_cri.log import get_log
from zos_cri.nri import events, merge
from zos_cri.nri.plugin import Identity, Plugin, Timeouts, Unusable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from google.protobuf.message import Message

    from zos_cri.nri.telemetry import Telemetry

_log = get_log(__name__)

MAX_PLUGINS: Final = 64  # each takes its part of every request's time


class Runtime(Protocol):
    """What plugins are told of, and what they change."""

    async def snapshot(self) -> tuple[Sequence[pb.PodSandbox], Sequence[pb.Container]]:
        """All pods, and all containers that haven't ended."""
        ...

    async def change(
        self, updates: Iterable[pb.ContainerUpdate], evictions: Iterable[pb.ContainerEviction]
    ) -> list[pb.ContainerUpdate]:
        """Updates and stops containers; returns the updates that failed and must not."""
        ...


class Plugins:
    """The plugins, and the requests that go through them."""

    def __init__(self, runtime: Runtime, telemetry: Telemetry, timeouts: Timeouts) -> None:
        self._runtime = runtime
        self._telemetry = telemetry
        self._timeouts = timeouts
        self._plugins: list[Plugin] = []  # in the order in which they are called
        self._connected: set[Plugin] = set()
        self._joining = 0
        self._turn = asyncio.Lock()

    # ---- who is there

    def wants(self, *rpcs: events.Rpc) -> bool:
        """Whether anybody is told of these; the answer in all other cases costs nothing."""
        if self._joining:
            return True  # it will be told of what comes after its snapshot
        mask = 0
        for rpc in rpcs:
            mask |= rpc.mask
        return any(plugin.events & mask and not plugin.closed for plugin in self._plugins)

    @property
    def names(self) -> list[str]:
        """In the order in which they are called."""
        return [plugin.name for plugin in self._plugins if not plugin.closed]

    def plugin(self, known: Identity | None = None, config: str = "") -> Plugin:
        """One that is about to connect.

        Raises:
            ResourceExhausted: there are too many.
        """
        if len(self._connected) >= MAX_PLUGINS:
            raise ResourceExhausted(f"there are {MAX_PLUGINS} NRI plugins already")
        plugin = Plugin(
            update=self._update,
            telemetry=self._telemetry,
            timeouts=self._timeouts,
            known=known,
            config=config,
            on_close=self._closed,
        )
        self._connected.add(plugin)
        return plugin

    async def join(self, plugin: Plugin) -> None:
        """Takes a connected plugin in, once it has registered and knows what there is.

        Raises:
            Unusable: it can't be; its connection is closed.
        """
        await plugin.join()
        self._joining += 1
        try:
            async with self._turn:
                updates = await self._synchronize(plugin)
        finally:
            self._joining -= 1
        await self._runtime.change(updates, ())

    async def _synchronize(self, plugin: Plugin) -> list[pb.ContainerUpdate]:
        pods, containers = await self._runtime.snapshot()
        try:
            updates = await plugin.synchronize(pods, containers)
            if plugin.closed:
                raise Unusable(f"{plugin.label}: has closed its connection")
        except Error as error:
            plugin.close()
            raise Unusable(f"{plugin.label}: not synchronized: {one_line(error)}") from error
        self._plugins.append(plugin)
        self._plugins.sort(key=lambda each: each.identity or Identity("", ""))
        self._telemetry.active(len(self._plugins))
        _log.info("NRI plugin is active", plugin=plugin.name, order=",".join(self.names))
        return updates

    def _closed(self, plugin: Plugin) -> None:
        self._connected.discard(plugin)
        if plugin in self._plugins:
            self._plugins.remove(plugin)
            self._telemetry.active(len(self._plugins))
            _log.info("NRI plugin is gone", plugin=plugin.name)

    def close(self) -> None:
        """Closes all connections, at shutdown."""
        for plugin in tuple(self._connected):
            plugin.close()

    async def _update(self, request: pb.UpdateContainersRequest) -> pb.UpdateContainersResponse:
        """What a plugin asks for by itself. It may do so while it is being asked: no turn is taken.

        Updates of one container still come one after the other.
        """
        failed = await self._runtime.change(request.update, request.evict)
        return pb.UpdateContainersResponse(failed=failed)

    # ---- requests

    async def tell(self, rpc: events.Rpc, make: Callable[[], Awaitable[Message]]) -> None:
        """Relays what plugins can only take note of, or refuse.

        Args:
            make: the request, made when its turn has come.

        Raises:
            Error: one refuses; those after it aren't told.
        """
        async with self._turn:
            if self.wants(rpc):
                request = await make()
                for plugin in tuple(self._plugins):
                    await plugin.call(rpc, request)

    async def create(self, request: pb.CreateContainerRequest) -> pb.ContainerAdjustment:
        """Asks what is to be changed of a container that is being made; updates others.

        Raises:
            Error: a plugin refuses, or two contradict each other.
        """
        async with self._turn:
            pristine = pb.Container()
            pristine.CopyFrom(request.container)
            result = merge.Creation(request)
            asked = pb.ValidateContainerAdjustmentRequest(pod=request.pod, container=pristine)
            for plugin in tuple(self._plugins):
                index, name = plugin.identity or Identity("", "")
                asked.plugins.add(name=name, index=index)
                answer = await plugin.call(events.CREATE, request)
                if isinstance(answer, pb.CreateContainerResponse):
                    result.apply(answer, plugin.name)
            await self._validate(asked, result)
        await self._runtime.change(result.updates.others(), result.evict)
        return result.adjust

    async def _validate(
        self, request: pb.ValidateContainerAdjustmentRequest, result: merge.Creation
    ) -> None:
        validators = [plugin for plugin in self._plugins if plugin.validates]
        if not validators:
            return
        request.adjust.CopyFrom(result.adjust)
        request.update.extend(result.updates.others())
        request.owners.CopyFrom(result.owners.message())
        work = (plugin.validate(request) for plugin in validators)
        for error in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(error, BaseException):
                raise error

    async def update(self, request: pb.UpdateContainerRequest) -> pb.LinuxResources | None:
        """Asks what is to become of an update; makes those of other containers.

        Returns:
            The container's new limits, where a plugin has changed them.

        Raises:
            Error: a plugin refuses, or two contradict each other.
        """
        async with self._turn:
            result = merge.Updates(request=request)
            evict: list[pb.ContainerEviction] = []
            for plugin in tuple(self._plugins):
                answer = await plugin.call(events.UPDATE, request)
                if isinstance(answer, pb.UpdateContainerResponse):
                    result.add(answer.update, plugin.name)
                    evict += answer.evict
        await self._runtime.change(result.others(), evict)
        return result.requested()

    async def stop(self, make: Callable[[], Awaitable[pb.StopContainerRequest]]) -> None:
        """Tells of a container's end, and makes the updates of others that follow from it.

        Raises:
            Error: a plugin fails, or two contradict each other.
        """
        result = merge.Updates()
        async with self._turn:
            if not self.wants(events.STOP):
                return
            request = await make()
            for plugin in tuple(self._plugins):
                answer = await plugin.call(events.STOP, request)
                if isinstance(answer, pb.StopContainerResponse):
                    result.add(answer.update, plugin.name)
        await self._runtime.change(result.others(), ())
