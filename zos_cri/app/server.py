"""The server's life: the order of start and stop.

Start: state, images, shims' events, then the socket, so that reads are answered at once, then the
recovery, which changes wait for. Stop: no new RPCs, those under way within `STOP_GRACE`, then we
let go of everything; containers, shims and the logger run on. What hasn't ended within `STOP_LIMIT`
is left as a kill would leave it: recorded, and the next server's to undo or to finish.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import signal
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

from zos_cri import __version__, failpoints, reconcile
from zos_cri.app.core import build_core, build_module
from zos_cri.app.cri import build_services
from zos_cri.app.handover import begin_anew
from zos_cri.app.listen import listen, name_as_containerd, watch
from zos_cri.app.nri import bring_plugins
from zos_cri.app.reload import Reload
from zos_cri.app.systemd import keep_alive, watchdog_timeout
from zos_cri.audit.present import Look
from zos_cri.config import handlers
from zos_cri.cri import checkpoints
from zos_cri.cri.flists import ImageRootfs
from zos_cri.errors import FailedPrecondition
from zos_cri.linux import blocking
from zos_cri.linux.notify import notify
from zos_cri.linux.syscalls import malloc_trim
from zos_cri.log import get_log
from zos_cri.module import recovery
from zos_cri.module.rootfs import DirectoryRootfs

if TYPE_CHECKING:
    from collections.abc import Callable

    from zos_cri.app.core import Core
    from zos_cri.app.handover import Held
    from zos_cri.app.listen import Listener
    from zos_cri.config import Config
    from zos_cri.cri.services import Services
    from zos_cri.shim.manager import DeadShim

_log = get_log(__name__)

STOP_LIMIT: Final = 10.0  # seconds from SIGTERM on; systemd gives 60


class App:
    """The server. `start` it, then `stop` it, once."""

    def __init__(self, config: Config, load: Callable[[], Config]) -> None:
        """
        Args:
            load: reads the configuration anew, at SIGHUP.
        """
        self._config = config
        self._reload = Reload(config, load)
        self._undo = AsyncExitStack()
        self._stopping = asyncio.Event()
        self._again = False
        self._listener: Listener | None = None

    async def run(self) -> Held | None:
        """Serves until SIGTERM or SIGINT.

        Returns:
            where SIGHUP found another configuration: the socket, with which to begin anew.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        await self.start()
        await self._stopping.wait()
        if self._again and self._listener is not None:
            held: Held | None = self._listener.hold()
            _log.info("beginning anew")
            notify("RELOADING=1")
            leave = loop.call_later(STOP_LIMIT, _leave, held)
        else:
            held = None
            _log.info("stopping")
            notify("STOPPING=1")
            leave = loop.call_later(STOP_LIMIT, _leave, None)
        await self.stop()
        leave.cancel()
        return held

    def _hang_up(self) -> None:
        later = self._reload.take()
        if later:
            self._again = True
            self._stopping.set()

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
        # What was made by now stays: collections needn't look at it any more, which takes longer
        # than all else that they do, and what importing took is given back.
        gc.collect()
        gc.freeze()
        malloc_trim()
        _log.info(
            "serving",
            version=__version__,
            socket=self._config.socket,
            seconds=round(time.monotonic() - begun, 3),
        )
        timeout = watchdog_timeout(os.environ)
        if timeout is not None:
            self._undo.callback(asyncio.create_task(keep_alive(timeout)).cancel)
        notify("READY=1")

    async def stop(self) -> None:
        """Ends the serving; what runs in containers isn't touched."""
        await self._undo.aclose()

    async def _start(self) -> None:
        self._lock()
        failpoints.arm(self._config.failpoints)
        undo = self._undo
        core = await build_core(self._config, undo)
        services = await build_services(core, undo)
        rootfs = DirectoryRootfs(self._config.state_dir / "rootfs", ImageRootfs(core.images))
        module = build_module(core, rootfs)
        core.shims.on_lost = partial(_shim_lost, core, services)
        watch(services, core.shims, core.warm)
        name_as_containerd(services, core.config)
        self._listener = await listen(services, module, undo)
        undo.push_async_callback(reconcile.tidy_cgroups, core.containers, core.cgroups)
        undo.push_async_callback(core.containers.close)
        await recovery.recover(core.containers, core.shims)
        await services.sandboxes.recover()
        await module.recover()
        reconciler = await _reconciler(core, services, rootfs)
        await reconciler.sweep()
        known = {record.meta.id for record in core.containers}
        await blocking.call(checkpoints.sweep, self._config.checkpoints, known)
        # The installed ones are there before anything changes, and are told of what there is.
        await bring_plugins(self._config, services.nri, undo)
        core.containers.recovered.set()
        for work in (
            reconcile.retry_releases(services.sandboxes),
            reconciler.watch(),
            reconciler.collect(),
            services.network.watch_plugins(),
            services.sandboxes.by_shims.try_out(handlers(core.config)),
        ):
            undo.callback(asyncio.create_task(work).cancel)
        services.stats.sampler.start()
        core.warm.start()
        undo.push_async_callback(self._listener.stop)  # before all that calls need

    def _lock(self) -> None:
        """Makes sure that no second server works on the same directories."""
        run = self._config.run_dir
        run.mkdir(parents=True, exist_ok=True, mode=0o711)
        lock = os.open(run / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._undo.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(f"{run / 'lock'}: another zos-cri serves from {run}") from None


def _leave(held: Held | None) -> None:
    _log.warning("stopped amid what didn't end", seconds=STOP_LIMIT)
    logging.shutdown()
    if held is not None:
        begin_anew(held)
    os._exit(0)


async def _reconciler(
    core: Core, services: Services, rootfs: DirectoryRootfs
) -> reconcile.Reconciler:
    return reconcile.Reconciler(
        containers=core.containers,
        sandboxes=services.sandboxes,
        shims=core.shims,
        warm=core.warm,
        execs=core.execs,
        images=core.images,
        rootfs=rootfs,
        network=services.network,
        output=services.output,
        cgroups=core.cgroups,
        metrics=core.metrics,
        look=Look(core.config, core.cgroups),
        damaged=await asyncio.to_thread(core.database.damaged),
    )


async def _shim_lost(core: Core, services: Services, dead: DeadShim) -> None:
    services.sandboxes.places.lost(dead.group)
    if core.warm.lost(dead.group):
        return
    services.metrics.shims_lost.inc()
    await recovery.shim_lost(services.containers, dead)
    await services.sandboxes.shim_lost(dead.group)
