"""Builds what the module and CRI are both built on, and the module."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zos_cri import tracing
from zos_cri.app.runtimes import decided
from zos_cri.config import Config, ImageConfig, handlers, warm_shims
from zos_cri.cri import facts
from zos_cri.host import host_facts, with_default_profile
from zos_cri.images.jobs import Fetching
from zos_cri.images.model import Floor
from zos_cri.images.store import ImageStore
from zos_cri.linux import blocking, dynmods
from zos_cri.linux.cgroup import Cgroups
from zos_cri.linux.moves import Moves, stay
from zos_cri.log import get_log
from zos_cri.metrics import Metrics
from zos_cri.module.containers import Containers
from zos_cri.module.execs import Execs
from zos_cri.module.module import ContainerModule
from zos_cri.module.oom import TASK_OOM
from zos_cri.module.specs import ModuleSpecs, usage
from zos_cri.oci.process import exec_process
from zos_cri.shim.bootstrap import DialectCache
from zos_cri.shim.events import Event, EventServer
from zos_cri.shim.launch import Launcher, temporary
from zos_cri.shim.manager import ShimManager
from zos_cri.shim.pool import WarmShims
from zos_cri.shim.publish import write_executable
from zos_cri.store.db import Database

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AsyncExitStack

    from zos_cri.module.rootfs import DirectoryRootfs
    from zos_cri.oci.host import HostFacts
    from zos_cri.shim.choice import Choice

_log = get_log(__name__)

SHIM_NAMESPACE: Final = "zos"


@dataclass(frozen=True, slots=True)
class Core:
    """What the module and CRI are both built on.

    Attributes:
        config: with the default handler's runtime decided on.
    """

    config: Config
    choice: Choice
    database: Database
    containers: Containers
    execs: Execs
    shims: ShimManager
    warm: WarmShims
    images: ImageStore
    cgroups: Cgroups
    metrics: Metrics
    host: HostFacts


async def build_core(config: Config, undo: AsyncExitStack) -> Core:
    """Opens the state and the images, and serves the shims' events.

    Raises:
        Error: something can't be had; `undo` ends what was begun.
    """
    if config.server.favordynmods:
        await dynmods.favor()
    config, choice = await decided(config)
    cgroups = Cgroups()
    host = await with_default_profile(await host_facts(cgroups))
    tracer = tracing.start(os.environ)
    if tracer is not None:
        undo.push_async_callback(tracer.aclose)
    metrics = Metrics(tracer, containerd_names=config.metrics.containerd_names)
    database = Database(config.state_dir / "state.db")
    undo.callback(database.close)
    metrics.records_damaged.inc(database.sandboxes.set_aside + database.containers.set_aside)
    events = ShimEvents()
    shims = await _shims(config, events, undo)
    warm = WarmShims(shims, warm_shims(config), handlers(config))
    undo.push_async_callback(warm.close)
    moves = Moves(None if await dynmods.favored() else stay(cgroups))
    undo.callback(moves.close)
    containers = Containers(
        table=database.containers,
        shims=shims,
        handlers=handlers(config),
        bundle_dir=shims.bundles,
        metrics=metrics,
        oom_counts=cgroups.oom_counts,
        moves=moves,
        drain_timeout=config.exec.drain_timeout,
    )
    events.on_oom = containers.exits.oom_told
    execs = Execs(
        containers=containers,
        directory=config.run_dir / "exec",
        metrics=metrics,
        moves=moves,
        drain_timeout=config.exec.drain_timeout,
    )
    images = await _images(config, metrics, undo)
    return Core(
        config=config,
        choice=choice,
        database=database,
        containers=containers,
        execs=execs,
        shims=shims,
        warm=warm,
        images=images,
        cgroups=cgroups,
        metrics=metrics,
        host=host,
    )


async def _shims(config: Config, on_event: ShimEvents, undo: AsyncExitStack) -> ShimManager:
    run = config.run_dir
    address = str(run / "events.sock")
    publish = run / "publish"
    write_executable(publish, address)
    events = EventServer(on_event)
    await events.start(address)
    undo.push_async_callback(events.close)
    launcher = Launcher(
        namespace=SHIM_NAMESPACE,
        events_address=address,
        grpc_address=str(config.socket),
        publish_binary=str(publish),
        socket_dir=str(run / "s"),
        dialects=DialectCache(config.state_dir / "dialects.json"),
        # Where a shim mounts layers for a moment to map their ids.
        environment={"TMPDIR": str(await blocking.call(temporary, run))},
    )
    shims = ShimManager(bundles=run / "bundles", launcher=launcher, namespace=SHIM_NAMESPACE)
    undo.push_async_callback(shims.close)
    return shims


def fetching(given: ImageConfig) -> Fetching:
    """What the configuration says of pulls."""
    return Fetching(
        floor=Floor(rate=given.min_throughput, window=given.stall_timeout),
        connections=given.connections,
        max_layer_bytes=given.max_layer_bytes,
        min_free_bytes=given.min_free_bytes,
        policy=given.signature_policy,
        registries_d=given.registries_d,
    )


async def _images(config: Config, metrics: Metrics, undo: AsyncExitStack) -> ImageStore:
    images = ImageStore(
        config.state_dir / "images",
        busybox=Path(config.images.busybox),
        certs_dirs=[Path(each) for each in config.images.certs_dirs],
        fetching=fetching(config.images),
        on_report=metrics.pulled,
    )
    await images.start()
    undo.push_async_callback(images.aclose)
    await images.ensure_builtin()
    return images


def build_module(core: Core, rootfs: DirectoryRootfs) -> ContainerModule:
    """The module's own service: Run, Inspect, Delete and what goes with them."""
    config = core.config
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


class ShimEvents:
    """What comes of shims' events: exits are learnt by Wait, and only OOM kills are listened to.

    A shim without a listener for its events would only retry.
    """

    def __init__(self) -> None:
        self.on_oom: Callable[[str], None] | None = None  # set before any shim is spoken to

    def __call__(self, event: Event) -> None:
        _log.debug("shim event", topic=event.topic)
        if event.topic == TASK_OOM and self.on_oom is not None:
            self.on_oom(event.message.container_id)
