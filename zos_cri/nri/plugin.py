"""One plugin: how it joins, and how it is called.

What becomes of a request that it doesn't answer is upstream's rule: one that is late, is gone or
breaks the protocol is left out and its connection is closed, unless it has asked otherwise (its
failure policy). What it answers with an error fails the request.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from google.protobuf.message import DecodeError

from zos_cri import __version__, errors
from zos_cri._pb import nri_pb2 as pb
from zos_cri.log import get_log
from zos_cri.nri import events
from zos_cri.nri.trunk import Trunk
from zos_cri.shim.client import Connection
from zos_cri.shim.server import Server, ServerConnection
from zos_cri.wire import ttrpc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from google.protobuf.message import Message

    from zos_cri.nri.telemetry import Telemetry

    M = TypeVar("M", bound=Message)

_log = get_log(__name__)

RUNTIME_NAME: Final = "zos-cri"
NRI_VERSION: Final = "v0.12.5"  # whose messages and rules these are
_INDEX: Final = re.compile(r"[0-9]{2}")
_NAME: Final = re.compile(r"[A-Za-z0-9_.+-]{1,128}")
# A request's envelope is some hundred bytes; the rest is for what a record gains meanwhile.
SYNC_LIMIT: Final = ttrpc.MAX_DATA_LENGTH - (64 << 10)
MAX_IN_FLIGHT: Final = 16  # updates that a plugin asks for at once


class Timeouts(NamedTuple):
    """In seconds."""

    registration: float = 5.0
    request: float = 2.0


class Identity(NamedTuple):
    """Who a plugin is: plugins are called in the order of their indexes, two digits each."""

    position: str
    name: str

    def __str__(self) -> str:
        return f"{self.position}-{self.name}"


def identity(index: str, name: str) -> Identity:
    """
    Raises:
        InvalidArgument: the index isn't two digits, or the name is empty or has other characters
            than letters, digits and `-_.+`.
    """
    if not _INDEX.fullmatch(index):
        raise errors.InvalidArgument(f"plugin_idx: {index[:40]!r} is not two digits")
    if not _NAME.fullmatch(name):
        raise errors.InvalidArgument(
            f"plugin_name: {name[:140]!r} is no name of letters and digits"
        )
    return Identity(index, name)


class Unusable(errors.Internal):
    """A plugin that can't join."""


class Plugin:
    """A plugin's connection. `trunk` is its asyncio protocol."""

    def __init__(
        self,
        *,
        update: Callable[[pb.UpdateContainersRequest], Awaitable[pb.UpdateContainersResponse]],
        telemetry: Telemetry,
        timeouts: Timeouts,
        known: Identity | None = None,
        config: str = "",
        on_close: Callable[[Plugin], None] = lambda _: None,
    ) -> None:
        """
        Args:
            update: does what the plugin asks for by itself.
            known: who it is, where we have started it.
            config: its configuration, as its file has it.
        """
        self.identity = known
        self.events = 0
        self._known = known is not None
        self._config = config
        self._update = update
        self._telemetry = telemetry
        self._timeouts = timeouts
        self._policy = pb.FailurePolicy()
        self._wants_all = False
        self._old: set[pb.Event.ValueType] = set()  # what it is told of by StateChange
        self._registered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_close = on_close
        self._connection = Connection(self.label, self._closed)
        serves = Server(
            {
                (events.RUNTIME, "RegisterPlugin"): self._register,
                (events.RUNTIME, "UpdateContainers"): self._update_containers,
            },
            max_in_flight=MAX_IN_FLIGHT,
        )
        self.trunk = Trunk(self._connection, ServerConnection(serves))

    @property
    def label(self) -> str:
        """For logs and errors."""
        return f"NRI plugin {self.identity}" if self.identity else "NRI plugin (not registered)"

    @property
    def name(self) -> str:
        """`NN-name`."""
        return str(self.identity)

    @property
    def closed(self) -> bool:
        return self._connection.closed

    @property
    def validates(self) -> bool:
        return bool(self.events & events.VALIDATE.mask)

    def close(self) -> None:
        """Ends the connection; calls that wait fail."""
        self._connection.abort()
        self.trunk.abort()
        self._on_close(self)  # at once: it is asked no more

    def _closed(self) -> None:
        """The connection is gone, whoever has closed it."""
        if not self._registered.done():
            self._registered.set_exception(Unusable("it has closed its connection"))
            self._registered.exception()  # seen, where nobody waits for it
        self._on_close(self)

    # ---- what it calls

    async def _register(self, payload: bytes, _metadata: Mapping[str, str]) -> bytes:
        request = _parse(pb.RegisterPluginRequest, payload)
        if self._registered.done():
            raise errors.FailedPrecondition("the plugin is registered already")
        if not self._known:
            try:
                self.identity = identity(request.plugin_idx, request.plugin_name)
            except errors.InvalidArgument as error:
                self._registered.set_exception(Unusable(errors.one_line(error)))
                self._registered.exception()
                raise
        self._connection.peer = self.label
        version = request.NRI_version or "unknown"
        _log.info("NRI plugin registered", plugin=self.name, nri_version=version[:40])
        self._registered.set_result(None)
        return b""

    async def _update_containers(self, payload: bytes, _metadata: Mapping[str, str]) -> bytes:
        if not self._registered.done():
            raise errors.FailedPrecondition("the plugin isn't registered")
        request = _parse(pb.UpdateContainersRequest, payload)
        _log.info("NRI plugin asks for updates", plugin=self.name, containers=len(request.update))
        self._telemetry.adjusted(
            self.name, "UpdateContainers", update=len(request.update), evict=len(request.evict)
        )
        return (await self._update(request)).SerializeToString()

    # ---- joining

    async def join(self) -> None:
        """Waits until it has registered, and asks what it wants to be told of.

        Raises:
            Unusable: it doesn't register, doesn't answer, or answers nonsense; it is closed then.
        """
        try:
            async with asyncio.timeout(self._timeouts.registration):
                await asyncio.shield(self._registered)
            await self._configure()
        except TimeoutError:
            self.close()
            raise Unusable(
                f"{self.label}: not registered within {self._timeouts.registration:g} s"
            ) from None
        except errors.Error as error:
            self.close()
            raise Unusable(f"{self.label}: {errors.one_line(error)}") from error

    async def _configure(self) -> None:
        request = pb.ConfigureRequest(
            config=self._config,
            runtime_name=RUNTIME_NAME,
            runtime_version=__version__,
            registration_timeout=round(self._timeouts.registration * 1000),
            request_timeout=round(self._timeouts.request * 1000),
            NRI_version=NRI_VERSION,
        )
        answer = await self._send("Configure", request, pb.ConfigureResponse)
        if answer.events & ~events.ALL_EVENTS:
            raise errors.InvalidArgument(f"events: {answer.events:#x} has unknown ones")
        self.events = answer.events or events.ALL_EVENTS
        self._wants_all = not answer.events
        self._policy = answer.failure_policy

    async def synchronize(
        self, pods: Sequence[pb.PodSandbox], containers: Sequence[pb.Container]
    ) -> list[pb.ContainerUpdate]:
        """Tells it what there is, in as many messages as are needed.

        Returns:
            What it wants to be updated.

        Raises:
            Error: it doesn't answer, or can't take several messages.
        """
        deadline = time.monotonic() + self._timeouts.request
        for request in sync_requests(pods, containers):
            answer = await self._send(
                "Synchronize",
                request,
                pb.SynchronizeResponse,
                timeout=max(0.001, deadline - time.monotonic()),
            )
            if request.more and (answer.update or not answer.more):
                raise Unusable(f"{self.label}: can't be told of so many containers in parts")
        if answer.update:
            self._telemetry.adjusted(self.name, "Synchronize", update=len(answer.update))
        return list(answer.update)

    # ---- calls

    async def call(self, rpc: events.Rpc, request: Message) -> Message | None:
        """Relays a request.

        Returns:
            The answer; None where the request goes on without the plugin.

        Raises:
            Error: the plugin refuses, or fails and the request is to fail with it.
        """
        if self.closed or not self.events & rpc.mask:
            return None
        try:
            answer = await self._relay(rpc, request)
        except errors.Error as error:
            if not self._failed(error):
                raise
            self._drop(rpc, error)
            if self._policy.fail_request:
                raise
            return None
        self._count(rpc, answer)
        return answer

    async def validate(self, request: pb.ValidateContainerAdjustmentRequest) -> None:
        """Asks whether a container may be changed as it is to be.

        Raises:
            Error: it may not, or the plugin doesn't say: then it may not as well.
        """
        try:
            answer = await self._relay(events.VALIDATE, request)
        except errors.Unimplemented:
            if self._wants_all:  # "all" were fewer when it was written
                self.events &= ~events.VALIDATE.mask
                return
            raise
        except errors.Error as error:
            if self._failed(error):
                self._drop(events.VALIDATE, error)
            raise
        assert isinstance(answer, pb.ValidateContainerAdjustmentResponse)
        if answer.reject:
            raise errors.FailedPrecondition(
                f"{self.label} refuses the container's adjustment: {answer.reason or 'no reason'}"
            )

    async def _relay(self, rpc: events.Rpc, request: Message) -> Message:
        if rpc.event not in self._old:
            try:
                return await self._send(rpc.name, request, rpc.response)
            except errors.Unimplemented:
                if not rpc.told_by_state_change:
                    raise
            _log.info("NRI plugin is told by StateChange", plugin=self.name, request=rpc.name)
            self._old.add(rpc.event)
        await self._send("StateChange", events.state_change(rpc, request), pb.Empty, of=rpc.name)
        return rpc.response()

    def _failed(self, error: errors.Error) -> bool:
        """Whether it is the plugin that has failed, and not that it says no."""
        late = isinstance(error, errors.DeadlineExceeded)
        return late or self.closed or isinstance(error, Unusable)

    def _drop(self, rpc: events.Rpc, error: errors.Error) -> None:
        late = isinstance(error, errors.DeadlineExceeded) and not self.closed
        kept = late and self._policy.keep_connected
        _log.error(
            "NRI plugin has failed",
            plugin=self.name,
            request=rpc.name,
            error=errors.one_line(error),
            connection="kept" if kept else "closed",
        )
        if not kept:
            self.close()

    def _count(self, rpc: events.Rpc, answer: Message) -> None:
        if isinstance(answer, pb.CreateContainerResponse):
            self._telemetry.adjusted(
                self.name,
                rpc.name,
                adjust=int(answer.HasField("adjust")),
                update=len(answer.update),
                evict=len(answer.evict),
            )
        elif isinstance(answer, pb.UpdateContainerResponse):
            self._telemetry.adjusted(
                self.name, rpc.name, update=len(answer.update), evict=len(answer.evict)
            )
        elif isinstance(answer, pb.StopContainerResponse):
            self._telemetry.adjusted(self.name, rpc.name, update=len(answer.update))

    async def _send(
        self,
        method: str,
        request: Message,
        response: type[M],
        *,
        timeout: float | None = None,
        of: str = "",
    ) -> M:
        with self._telemetry.call(self.name, of or method):
            data = await self._connection.call(
                events.SERVICE,
                method,
                request.SerializeToString(),
                timeout=self._timeouts.request if timeout is None else timeout,
                metadata={},
            )
            try:
                return response.FromString(data)
            except DecodeError as error:
                raise Unusable(f"{self.label}: {method}: its answer is none: {error}") from error


def sync_requests(
    pods: Sequence[pb.PodSandbox],
    containers: Sequence[pb.Container],
    limit: int = SYNC_LIMIT,
) -> Iterator[pb.SynchronizeRequest]:
    """What there is, in messages that ttrpc takes; all but the last say that more follow."""
    request, size = pb.SynchronizeRequest(), 0
    for entry in (*pods, *containers):
        # A tag and a length of up to four bytes come with each.
        length = entry.ByteSize() + 5
        if size and size + length > limit:
            request.more = True
            yield request
            request, size = pb.SynchronizeRequest(), 0
        if isinstance(entry, pb.PodSandbox):
            request.pods.append(entry)
        elif isinstance(entry, pb.Container):
            request.containers.append(entry)
        size += length
    yield request


def _parse(message: type[M], payload: bytes) -> M:
    try:
        return message.FromString(payload)
    except DecodeError as error:
        raise errors.InvalidArgument(f"not a {message.DESCRIPTOR.name}: {error}") from error
