"""Builds the services of CRI."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from zos_cri.app.nri import build_nri
from zos_cri.checkpoint.criu import Criu
from zos_cri.config import handlers, pods_per_shim
from zos_cri.cri.cdi import CdiSpecs
from zos_cri.cri.checkpoints import Checkpoints
from zos_cri.cri.creation import Creation
from zos_cri.cri.events import Events
from zos_cri.cri.features import handler_features, handler_settings
from zos_cri.cri.init import PodInits
from zos_cri.cri.limits import Limits
from zos_cri.cri.output import Output
from zos_cri.cri.restores import Restores
from zos_cri.cri.sandboxes import Sandboxes
from zos_cri.cri.services import Services
from zos_cri.cri.shim_sandboxes import ShimSandboxes
from zos_cri.cri.shim_stats import ShimStats
from zos_cri.cri.stats_targets import CriTargets, Statistics, follow
from zos_cri.cri.streams import Streams
from zos_cri.cri.views import Views
from zos_cri.errors import Error, one_line
from zos_cri.log import get_log
from zos_cri.network.cni import Network
from zos_cri.shim.places import Places
from zos_cri.stats.collector import KernelCollector
from zos_cri.stats.metrics import Encoder
from zos_cri.stats.sampler import Sampler
from zos_cri.stdio.client import LoggerClient
from zos_cri.streaming.server import StreamingServer

if TYPE_CHECKING:
    from collections.abc import Mapping, Set
    from contextlib import AsyncExitStack

    from zos_cri.app.core import Core
    from zos_cri.config import Config, StreamingConfig
    from zos_cri.cri.nri import Nri
    from zos_cri.oci.container import HandlerSettings

_log = get_log(__name__)


async def build_services(core: Core, undo: AsyncExitStack) -> Services:
    """What the RPCs of CRI are functions of.

    Raises:
        Error: something can't be had; `undo` ends what was begun.
    """
    config = core.config
    features = {
        name: await core.shims.features(handler) for name, handler in handlers(config).items()
    }
    settings = handler_settings(config, features)
    told = handler_features(features)
    network = _network(config)
    views = Views()
    output = _output(core, undo)
    cdi = CdiSpecs(config.cdi.dirs)
    limits = _limits(core, views, settings)
    nri = build_nri(core, views, limits, cdi, settings)
    mapped = {name for name, feature in told.items() if feature.user_namespaces}
    sandboxes = _sandboxes(core, network, settings, mapped, nri)
    undo.push_async_callback(sandboxes.by_shims.aclose)
    undo.push_async_callback(sandboxes.settle)
    criu = Criu()
    creation = Creation(
        containers=core.containers,
        sandboxes=sandboxes,
        images=core.images,
        output=output,
        views=views,
        handlers=settings,
        host=core.host,
        metrics=core.metrics,
        cdi=cdi,
        restores=_restores(core, criu),
        nri=nri,
    )
    undo.push_async_callback(creation.settle)
    core.containers.table.watch(views.follow)
    sandboxes.table.watch(views.follow)
    return Services(
        config=config,
        runtime=core.choice,
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
        streaming=await _streaming(
            config.streaming, _streams(core, sandboxes, creation, output, views), undo
        ),
        stats=_statistics(core, sandboxes, views, undo),
        checkpoints=_checkpoints(core, views, criu),
        limits=limits,
        nri=nri,
        events=_events(core, views),
    )


def _limits(core: Core, views: Views, settings: Mapping[str, HandlerSettings]) -> Limits:
    return Limits(
        containers=core.containers,
        views=views,
        cgroups=core.cgroups,
        handlers=settings,
        host=core.host,
    )


def _network(config: Config) -> Network:
    return Network(
        conf_dir=config.cni.conf_dir,
        bin_dirs=config.cni.bin_dirs,
        cache_dir=config.state_dir / "cni",
        plugin_timeout=config.cni.plugin_timeout,
        conf_template=config.cni.conf_template or None,
        max_conf_num=config.cni.max_conf_num,
        ip_preference=config.cni.ip_preference,
    )


def _checkpoints(core: Core, views: Views, criu: Criu) -> Checkpoints:
    return Checkpoints(
        containers=core.containers,
        images=core.images,
        views=views,
        metrics=core.metrics,
        criu=criu,
        directory=core.config.checkpoints,
    )


def _restores(core: Core, criu: Criu) -> Restores:
    restores = Restores(images=core.images, criu=criu, directory=core.config.checkpoints)
    core.containers.subscribe(restores.follow(core.containers.later))
    return restores


def _events(core: Core, views: Views) -> Events:
    return Events(
        containers=core.containers,
        pods=core.database.sandboxes,
        views=views,
        metrics=core.metrics,
    )


def _output(core: Core, undo: AsyncExitStack) -> Output:
    config = core.config
    logger = LoggerClient(
        config.logger_socket,
        state_dir=config.logger_state,
        start=config.container_log.start_logger,
    )
    undo.push_async_callback(logger.aclose)
    # Beside what follows: the first log needs it, and where one died containers wait for it.
    waking = asyncio.create_task(_wake(logger))
    undo.callback(waking.cancel)
    return Output(
        logger=logger,
        directory=config.run_dir / "fifo",
        max_line=config.container_log.max_line_size,
        drop_after=config.container_log.drop_after,
        drain_timeout=config.exec.drain_timeout,
    )


def _sandboxes(
    core: Core,
    network: Network,
    settings: Mapping[str, HandlerSettings],
    user_namespaces: Set[str],
    nri: Nri,
) -> Sandboxes:
    config = core.config
    return Sandboxes(
        table=core.database.sandboxes,
        containers=core.containers,
        shims=core.shims,
        places=Places(core.shims, core.warm, pods_per_shim(config)),
        handlers=handlers(config),
        default_handler=config.default_handler,
        network=network,
        init=PodInits(
            containers=core.containers,
            program=config.init,
            directory=config.state_dir / "init",
            handlers=settings,
            host=core.host,
        ),
        by_shims=ShimSandboxes(containers=core.containers, shims=core.shims),
        directory=config.run_dir / "sandboxes",
        metrics=core.metrics,
        nri=nri,
        user_namespaces=user_namespaces,
    )


def _statistics(core: Core, sandboxes: Sandboxes, views: Views, undo: AsyncExitStack) -> Statistics:
    settings = core.config.stats
    targets = CriTargets(core.containers, sandboxes, views)
    told = ShimStats(table=sandboxes.table, containers=core.containers, shims=core.shims)
    undo.push_async_callback(told.aclose)
    sampler = Sampler(
        targets=targets,
        collector=KernelCollector(core.cgroups, open_files=settings.open_files),
        layers=core.images.container_usage,
        encoder=Encoder(),
        mountpoint=str(core.images.layout.root),
        interval=settings.interval,
        told=told,
    )
    undo.push_async_callback(sampler.aclose)
    core.containers.subscribe(follow(sampler))
    return Statistics(sampler, targets, told)


def _streams(
    core: Core, sandboxes: Sandboxes, creation: Creation, output: Output, views: Views
) -> Streams:
    return Streams(
        containers=core.containers,
        sandboxes=sandboxes,
        creation=creation,
        execs=core.execs,
        output=output,
        views=views,
    )


async def _streaming(
    settings: StreamingConfig, streams: Streams, undo: AsyncExitStack
) -> StreamingServer:
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
    undo.push_async_callback(server.aclose)
    return server


async def _wake(logger: LoggerClient) -> None:
    try:
        await logger.ensure()
    except Error as error:
        _log.error("no logger", error=one_line(error))
