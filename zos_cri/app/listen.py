"""Where the server is reached: the gRPC socket and the metrics port."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import grpc

from zos_cri._pb import container_pb2, cri_pb2, image_pb2
from zos_cri.app import probes
from zos_cri.app.grpc_services import HEALTH, Health, reflection_handlers
from zos_cri.app.handover import Held, own, put
from zos_cri.cri import runtime
from zos_cri.cri.rpc import Rpcs
from zos_cri.errors import Error, FailedPrecondition
from zos_cri.images.service import ImageService
from zos_cri.images.store import is_flist
from zos_cri.log import get_log
from zos_cri.metrics_containerd import Runtime
from zos_cri.module.service import ModuleService

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AsyncExitStack
    from pathlib import Path

    from zos_cri.config import Config
    from zos_cri.cri.services import Services
    from zos_cri.module.module import ContainerModule
    from zos_cri.shim.manager import ShimManager
    from zos_cri.shim.pool import WarmShims

_log = get_log(__name__)

STOP_GRACE: Final = 8.0  # seconds that RPCs under way get at the end
GREETING: Final = 1.0  # seconds that a call of `all_have_come` gets
CALLS: Final = 3  # one left 2 of 1100 clients cancelled, three none
MAX_MESSAGE: Final = 16 << 20  # bytes: the kubelet's own limit


async def listen(services: Services, module: ContainerModule, undo: AsyncExitStack) -> Listener:
    """Answers RPCs, and serves metrics where the configuration says so.

    Raises:
        FailedPrecondition: the socket can't be had.
        InvalidArgument: the metrics' address can't be.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.max_send_message_length", MAX_MESSAGE),
        ]
    )
    rpcs = Rpcs(services.metrics, services.containers.recovered)
    service = ModuleService(module)
    image_service = ImageService(services.images)
    image_descriptor = image_pb2.DESCRIPTOR.services_by_name["ImageModule"]
    descriptor = container_pb2.DESCRIPTOR.services_by_name["ContainerModule"]
    cri = cri_pb2.DESCRIPTOR.services_by_name.values()
    health = Health(services.containers.recovered, (each.full_name for each in cri))
    told = (*cri, descriptor, image_descriptor, HEALTH)
    server.add_generic_rpc_handlers(
        (
            *runtime.handlers(services, rpcs),
            rpcs.service(descriptor, service.unary, service.streams, reads=service.READS),
            rpcs.service(image_descriptor, image_service.unary, image_service.streams),
            health.handler(rpcs),
            *reflection_handlers(each.full_name for each in told),
        )
    )
    listener = Listener(server, services, health)
    await listener.start()
    undo.push_async_callback(listener.stop)
    if services.config.server.metrics:
        recovered = services.containers.recovered
        probes.serve(services.config.server.metrics, services.metrics, recovered, undo)
    return listener


class Listener:
    """The socket, from its making to its end."""

    def __init__(self, server: grpc.aio.Server, services: Services, health: Health) -> None:
        self._server = server
        self._services = services
        self._health = health
        self._path = services.config.socket
        self.held: Held | None = None
        self._stopped = False

    async def start(self) -> None:
        """Answers from now on."""
        path, gid = self._path, self._services.config.server.socket_gid
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
        self.held = Held.inherited(os.environ, path)
        mine = own(path)
        # The socket is born with its mode: a moment open to everyone would be enough.
        mask = os.umask(0o117 if gid else 0o177)
        try:
            self._server.add_insecure_port(f"unix:{mine}")
        except RuntimeError as error:
            raise FailedPrecondition(f"{path}: {error}") from error
        finally:
            os.umask(mask)
        if gid:
            os.chown(mine, 0, gid)
        await self._server.start()
        put(mine, path)
        if self.held is not None:
            await self.held.relay()

    def hold(self) -> Held:
        """Who calls from now on waits for the next server."""
        gid = self._services.config.server.socket_gid

        def give(path: Path) -> None:
            if gid:
                os.chown(path, 0, gid)
                path.chmod(0o660)

        if self.held is None:
            self.held = Held.made(self._path, give)
        else:
            self.held.give_back()
        return self.held

    async def stop(self) -> None:
        """Takes no more calls, and waits, within `STOP_GRACE`, for those under way."""
        if self._stopped:
            return
        self._stopped = True
        if self.held is not None:
            self.held.give_back()
        else:
            self._path.unlink(missing_ok=True)
        # Streams that don't end by themselves.
        self._services.events.close()
        self._health.close()
        await all_have_come(self._path)
        await self._server.stop(STOP_GRACE)


async def all_have_come(path: Path) -> None:
    """Waits for who has connected to the server at `path` before it lost that name.

    Connections are taken in the order of their coming, so one of our own is the last. A server that
    stops resets those that it hasn't greeted by then, and cancels their first calls; clients take
    either for a failure. Those calls come while ours are answered.
    """
    alone = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"unix:{own(path)}", options=alone) as channel:
        ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        ask = channel.unary_unary(f"/{HEALTH.full_name}/Check")
        try:
            for _ in range(CALLS):
                await ask(b"", timeout=GREETING, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            _log.warning("no answer from the server that stops", error=error.details())


def watch(services: Services, shims: ShimManager, warm: WarmShims) -> None:
    """Gauges that are read at each scrape, in the metrics server's thread."""

    def pods() -> dict[str, int]:
        return _count(record.status.state.value for record in services.sandboxes.table)

    def containers() -> dict[str, int]:
        return _count(record.status.state.value for record in services.containers)

    def pulls() -> dict[str, int]:
        progress = services.images.all_progress()
        return _count("flist" if is_flist(pull.ref) else "registry" for pull in progress)

    def layers() -> dict[str, int]:
        progress = services.images.all_progress()
        return _count(layer.state for pull in progress for layer in pull.layers)

    metrics = services.metrics
    metrics.watch("zos_cri_image_pulls_in_progress", "Pulls under way, by source.", "from", pulls)
    metrics.watch(
        "zos_cri_image_layers_in_progress", "Layers of pulls under way, by state.", "state", layers
    )
    metrics.watch("zos_cri_pods", "Pod sandboxes, by state.", "state", pods)
    metrics.watch("zos_cri_containers", "Containers, by state.", "state", containers)
    metrics.watch(
        "zos_cri_shims",
        "Shims that run, by handler.",
        "handler",
        lambda: _count(shim.handler.name for shim in list(shims.shims.values())),
    )
    metrics.watch(
        "zos_cri_warm_shims",
        "Shims among them that wait for a pod, by handler.",
        "handler",
        warm.count,
    )


def name_as_containerd(services: Services, config: Config) -> None:
    """What metrics under containerd's names have to know of pods; nothing where there are none."""
    metrics = services.metrics
    if metrics.containerd is None:
        return

    def handler(request: Any) -> str:
        try:
            if container := getattr(request, "container_id", ""):
                return services.containers.find(container).meta.handler
            if pod := getattr(request, "pod_sandbox_id", ""):
                return services.sandboxes.find(pod).meta.handler
        except Error:
            return ""
        return str(getattr(request, "runtime_handler", "") or config.default_handler)

    def runtime(request: object) -> Runtime:
        name = handler(request)
        return Runtime(name, config.handlers[name].shim if name in config.handlers else "")

    def dropped() -> float:
        (family,) = metrics.events_lost.collect()
        return float(family.samples[0].value)

    metrics.containerd.handlers = runtime
    metrics.containerd.watch(dropped=dropped, pulling=lambda: len(services.images.all_progress()))


def _count(values: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts
