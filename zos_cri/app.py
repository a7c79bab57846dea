"""The only place that builds and wires objects; it has the order of start and stop.

Start: state, images, shims' events, then the socket, so that reads are answered at once, then the
recovery, which changes wait for. Stop: no new RPCs, those under way within `STOP_GRACE`, then we
let go of everything; containers, shims and the logger run on.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
from prometheus_client import start_http_server

from zos_cri import __version__, reconcile
from zos_cri._pb import container_pb2, image_pb2
from zos_cri.config import Config, handlers
from zos_cri.cri import facts, runtime
from zos_cri.cri.cdi import CdiSpecs
from zos_cri.cri.creation import Creation
from zos_cri.cri.features import handler_features, handler_settings
from zos_cri.cri.flists import ImageRootfs
from zos_cri.cri.init import PodInits
from zos_cri.cri.output import Output
from zos_cri.cri.rpc import Rpcs
from zos_cri.cri.sandboxes import Sandboxes
from zos_cri.cri.services import Services
from zos_cri.cri.stats_targets import CriTargets, Statistics, follow
from zos_cri.cri.streams import Streams
from zos_cri.cri.views import Views
from zos_cri.errors import Error, FailedPrecondition, InvalidArgument, one_line
from zos_cri.host import host_facts
from zos_cri.images.service import ImageService
from zos_cri.images.store import ImageStore
from zos_cri.linux import blocking
from zos_cri.linux.cgroup import Cgroups
from zos_cri.log import get_log
from zos_cri.metrics import Metrics
from zos_cri.module import recovery
from zos_cri.module.containers import Containers
from zos_cri.module.execs import Execs
from zos_cri.module.module import ContainerModule
from zos_cri.module.rootfs import DirectoryRootfs
from zos_cri.module.service import ModuleService
from zos_cri.module.specs import ModuleSpecs, usage
from zos_cri.network.cni import Network
from zos_cri.oci.process import exec_process
from zos_cri.shim.bootstrap import DialectCache
from zos_cri.shim.events import Event, EventServer
from zos_cri.shim.launch import Launcher, temporary
from zos_cri.shim.manager import DeadShim, ShimManager
from zos_cri.shim.publish import write_executable
from zos_cri.stats.collector import KernelCollector
from zos_cri.stats.metrics import Encoder
from zos_cri.stats.sampler import Sampler
from zos_cri.stdio.client import LoggerClient
from zos_cri.store.db import Database
from zos_cri.streaming.server import StreamingServer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zos_cri.oci.host import HostFacts

_log = get_log(__name__)

STOP_GRACE: Final = 10.0  # seconds that RPCs under way get at the end; systemd gives 90
MAX_MESSAGE: Final = 16 << 20  # bytes: the kubelet's own limit
SHIM_NAMESPACE: Final = "zos"


@dataclass(frozen=True, slots=True)
class _Core:
    """What the module and CRI are both built on."""

    database: Database
    containers: Containers
    execs: Execs
    shims: ShimManager
    images: ImageStore
    cgroups: Cgroups
    metrics: Metrics
    host: HostFacts


class App:
    """The server. `start` it, then `stop` it, once."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._run = config.run_dir
        self._state = config.state_dir
        self._undo = AsyncExitStack()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        await self.start()
        await self._stopping.wait()
        _log.info("stopping")
        await self.stop()

    async def start(self) -> None:
        """Builds everything, answers RPCs, and recovers what an earlier server left.

        Raises:
            Error: something can't be had; nothing is left running.
        """
        begun = time.monotonic()
        try:
            await self._start()
        except BaseException:
            await self._undo.aclose()
            raise
        _log.info(
            "serving",
            version=__version__,
            socket=self._config.socket,
            seconds=round(time.monotonic() - begun, 3),
        )
        _notify("READY=1")

    async def stop(self) -> None:
        """Ends the serving; what runs in containers isn't touched."""
        _notify("STOPPING=1")
        await self._undo.aclose()

    async def _start(self) -> None:
        self._lock()
        config = self._config
        cgroups = Cgroups()
        host = await host_facts(cgroups)
        metrics = Metrics()
        database = Database(self._state / "state.db")
        self._undo.callback(database.close)
        metrics.records_damaged.inc(database.sandboxes.set_aside + database.containers.set_aside)
        shims = await self._shims()
        containers = Containers(
            table=database.containers,
            shims=shims,
            handlers=handlers(config),
            bundle_dir=shims.bundles,
            metrics=metrics,
            oom_kills=cgroups.oom_kills,
            drain_timeout=config.exec.drain_timeout,
        )
        execs = Execs(
            containers=containers,
            directory=self._run / "exec",
            metrics=metrics,
            drain_timeout=config.exec.drain_timeout,
        )
        images = ImageStore(
            self._state / "images",
            busybox=Path(config.images.busybox),
            certs_dirs=[Path(each) for each in config.images.certs_dirs],
            on_report=metrics.pulled,
        )
        await images.start()
        self._undo.push_async_callback(images.aclose)
        await images.ensure_builtin()
        core = _Core(database, containers, execs, shims, images, cgroups, metrics, host)
        services = await self._services(core)
        rootfs = DirectoryRootfs(self._state / "rootfs", ImageRootfs(images))
        module = self._module(core, rootfs)
        shims.on_lost = partial(_shim_lost, containers, services.sandboxes, metrics)
        self._watch(metrics, services, shims)
        await self._listen(services, module, metrics)
        self._undo.push_async_callback(reconcile.tidy_cgroups, containers, cgroups)
        self._undo.push_async_callback(containers.close)
        await recovery.recover(containers, shims)
        await services.sandboxes.recover()
        await module.recover()
        await reconcile.sweep(
            containers=containers,
            sandboxes=services.sandboxes,
            shims=shims,
            execs=execs,
            images=images,
            rootfs=rootfs,
            cgroups=cgroups,
            damaged=await asyncio.to_thread(database.damaged),
        )
        containers.recovered.set()
        retries = asyncio.create_task(reconcile.retry_releases(services.sandboxes))
        self._undo.callback(retries.cancel)
        services.stats.sampler.start()

    def _lock(self) -> None:
        """Makes sure that no second server works on the same directories."""
        self._run.mkdir(parents=True, exist_ok=True, mode=0o711)
        lock = os.open(self._run / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._undo.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(
                f"{self._run / 'lock'}: another zos-cri serves from {self._run}"
            ) from None

    async def _shims(self) -> ShimManager:
        address = str(self._run / "events.sock")
        publish = self._run / "publish"
        write_executable(publish, address)
        events = EventServer(_ignore_event)
        await events.start(address)
        self._undo.push_async_callback(events.close)
        launcher = Launcher(
            namespace=SHIM_NAMESPACE,
            events_address=address,
            grpc_address=str(self._config.socket),
            publish_binary=str(publish),
            socket_dir=str(self._run / "s"),
            dialects=DialectCache(self._state / "dialects.json"),
            # Where a shim mounts layers for a moment to map their ids.
            environment={"TMPDIR": str(await blocking.call(temporary, self._run))},
        )
        shims = ShimManager(
            bundles=self._run / "bundles", launcher=launcher, namespace=SHIM_NAMESPACE
        )
        self._undo.push_async_callback(shims.close)
        return shims

    async def _services(self, core: _Core) -> Services:
        config = self._config
        known = handlers(config)
        features = {name: await core.shims.features(handler) for name, handler in known.items()}
        settings = handler_settings(config, features)
        told = handler_features(features)
        network = Network(
            conf_dir=config.cni.conf_dir,
            bin_dirs=config.cni.bin_dirs,
            cache_dir=self._state / "cni",
            plugin_timeout=config.cni.plugin_timeout,
            conf_template=config.cni.conf_template or None,
        )
        views = Views()
        logger = LoggerClient(self._run / "logger.sock", state_dir=self._run / "logger")
        self._undo.push_async_callback(logger.aclose)
        # Beside what follows: the first log needs it, and where one died containers wait for it.
        waking = asyncio.create_task(_wake(logger))
        self._undo.callback(waking.cancel)
        output = Output(
            logger=logger,
            directory=self._run / "fifo",
            max_line=config.container_log.max_line_size,
            drain_timeout=config.exec.drain_timeout,
        )
        sandboxes = Sandboxes(
            table=core.database.sandboxes,
            containers=core.containers,
            shims=core.shims,
            handlers=known,
            default_handler=config.default_handler,
            network=network,
            init=PodInits(
                containers=core.containers,
                program=config.init,
                directory=self._state / "init",
                handlers=settings,
                host=core.host,
            ),
            directory=self._run / "sandboxes",
            metrics=core.metrics,
            user_namespaces={name for name, feature in told.items() if feature.user_namespaces},
        )
        self._undo.push_async_callback(sandboxes.settle)
        creation = Creation(
            containers=core.containers,
            sandboxes=sandboxes,
            images=core.images,
            output=output,
            views=views,
            handlers=settings,
            host=core.host,
            metrics=core.metrics,
            cdi=CdiSpecs(config.cdi.dirs),
        )
        streaming = await self._streaming(
            Streams(
                containers=core.containers,
                sandboxes=sandboxes,
                creation=creation,
                execs=core.execs,
                output=output,
                views=views,
            )
        )
        return Services(
            config=config,
            metrics=core.metrics,
            containers=core.containers,
            execs=core.execs,
            sandboxes=sandboxes,
            creation=creation,
            views=views,
            output=output,
            images=core.images,
            network=network,
            features=told,
            host=core.host,
            cgroups=core.cgroups,
            streaming=streaming,
            stats=self._statistics(core, sandboxes, views),
        )

    def _statistics(self, core: _Core, sandboxes: Sandboxes, views: Views) -> Statistics:
        settings = self._config.stats
        targets = CriTargets(core.containers, sandboxes, views)
        sampler = Sampler(
            targets=targets,
            collector=KernelCollector(core.cgroups, open_files=settings.open_files),
            layers=core.images.container_usage,
            encoder=Encoder(),
            mountpoint=str(core.images.layout.root),
            interval=settings.interval,
        )
        self._undo.push_async_callback(sampler.aclose)
        core.containers.subscribe(follow(sampler))
        return Statistics(sampler, targets)

    async def _streaming(self, streams: Streams) -> StreamingServer:
        settings = self._config.streaming
        host, _, port = settings.address.rpartition(":")
        on_socket = settings.address.startswith("/")
        server = StreamingServer(
            streams,
            address=host.strip("[]"),
            port=0 if on_socket else int(port),
            socket_path=settings.address if on_socket else None,
            tls_cert=settings.tls_cert or None,
            tls_key=settings.tls_key or None,
            creation_timeout=settings.creation_timeout,
            idle_timeout=settings.idle_timeout,
        )
        await server.start()
        self._undo.push_async_callback(server.aclose)
        return server

    def _module(self, core: _Core, rootfs: DirectoryRootfs) -> ContainerModule:
        config = self._config
        return ContainerModule(
            containers=core.containers,
            execs=core.execs,
            rootfs=rootfs,
            spec=ModuleSpecs(
                core.host,
                config.handlers[config.default_handler].oci_version,
                facts.host_devices,
            ),
            exec_process=partial(exec_process, tty=False),
            usage=partial(usage, core.cgroups),
            handler=config.default_handler,
            logs=Path(config.server.logs),
        )

    async def _listen(self, services: Services, module: ContainerModule, metrics: Metrics) -> None:
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.max_send_message_length", MAX_MESSAGE),
            ]
        )
        rpcs = Rpcs(metrics, services.containers.recovered)
        service = ModuleService(module)
        image_service = ImageService(services.images)
        image_descriptor = image_pb2.DESCRIPTOR.services_by_name["ImageModule"]
        descriptor = container_pb2.DESCRIPTOR.services_by_name["ContainerModule"]
        server.add_generic_rpc_handlers(
            (
                *runtime.handlers(services, rpcs),
                rpcs.service(descriptor, service.unary, service.streams, reads=service.READS),
                rpcs.service(image_descriptor, image_service.unary, image_service.streams),
            )
        )
        path = self._config.socket
        gid = self._config.server.socket_gid
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
        # The socket is born with its mode: a moment open to everyone would be enough.
        mask = os.umask(0o117 if gid else 0o177)
        try:
            server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise FailedPrecondition(f"{path}: {error}") from error
        finally:
            os.umask(mask)
        if gid:
            os.chown(path, 0, gid)
        await server.start()
        self._undo.push_async_callback(server.stop, STOP_GRACE)
        if self._config.server.metrics:
            self._serve_metrics(metrics)

    def _serve_metrics(self, metrics: Metrics) -> None:
        address, _, port = self._config.server.metrics.rpartition(":")
        try:
            server, thread = start_http_server(
                int(port), addr=address.strip("[]"), registry=metrics.registry
            )
        except (OSError, ValueError) as error:
            raise InvalidArgument(
                f"server.metrics: {self._config.server.metrics}: {error}"
            ) from error
        self._undo.callback(thread.join)
        self._undo.callback(server.server_close)
        self._undo.callback(server.shutdown)
        _log.info("metrics", address=f"{address}:{server.server_port}")

    def _watch(self, metrics: Metrics, services: Services, shims: ShimManager) -> None:
        """Gauges that are read at each scrape, in the metrics server's thread."""

        def pods() -> dict[str, int]:
            return _count(record.status.state.value for record in services.sandboxes.table)

        def containers() -> dict[str, int]:
            return _count(record.status.state.value for record in services.containers)

        metrics.watch("zos_cri_pods", "Pod sandboxes, by state.", "state", pods)
        metrics.watch("zos_cri_containers", "Containers, by state.", "state", containers)
        metrics.watch(
            "zos_cri_shims",
            "Shims that run, by handler.",
            "handler",
            lambda: _count(shim.handler.name for shim in list(shims.shims.values())),
        )


async def _wake(logger: LoggerClient) -> None:
    try:
        await logger.ensure()
    except Error as error:
        _log.error("no logger", error=one_line(error))


async def _shim_lost(
    containers: Containers, sandboxes: Sandboxes, metrics: Metrics, dead: DeadShim
) -> None:
    metrics.shims_lost.inc()
    await recovery.shim_lost(containers, dead)
    await sandboxes.lost(dead.group)


def _ignore_event(event: Event) -> None:
    """Exits are learnt by Wait; a shim without a listener for its events would only retry."""
    _log.debug("shim event", topic=event.topic)


def _count(values: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts


def _notify(text: str) -> None:
    """Tells systemd (sd_notify(3)); nothing to do where it didn't start us."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect("\0" + address[1:] if address.startswith("@") else address)
        notify.send(text.encode())
