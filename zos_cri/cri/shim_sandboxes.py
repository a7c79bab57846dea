"""Pod sandboxes that a shim makes: a virtual machine, as a rule.

They have the namespaces, files and addresses of any other; the shim is told of them and makes of
them what its pods are (containerd.runtime.sandbox.v1). Its end is watched as a container's is: Wait
and SandboxStatus are the truth, and both are asked again after a restart of ours.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from zos_cri.errors import (
    Error,
    FailedPrecondition,
    NotFound,
    Unavailable,
    Unimplemented,
    one_line,
)
from zos_cri.log import get_log
from zos_cri.shim import trial
from zos_cri.shim.handler import pack
from zos_cri.store.lifecycle import ContainerState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

    from zos_cri._pb import cri_pb2 as pb
    from zos_cri.module.containers import Containers
    from zos_cri.shim.handler import Handler
    from zos_cri.shim.manager import Shim, ShimManager
    from zos_cri.shim.sandbox import SandboxClient
    from zos_cri.store.model import SandboxMeta

_log = get_log(__name__)

REDIAL_PAUSE: Final = 0.5  # seconds between two attempts to reach a shim that runs
FAILED_PAUSE: Final = 10.0  # seconds until a shim is asked again that answered with an error
# What a shim has to tell the ends of the containers whose sandbox has ended.
EXITS_GRACE: Final = 5.0
KILL_GRACE: Final = 5.0  # a killed shim is gone at once, unless it hangs in the kernel
INFO_TIMEOUT: Final = 2.0  # of a status that somebody waits for
_RUNS: Final = (ContainerState.STARTING, ContainerState.RUNNING, ContainerState.UNKNOWN)


class ShimSandboxes:
    """What is done with shims that make sandboxes."""

    def __init__(
        self,
        *,
        containers: Containers,
        shims: ShimManager,
        exits_grace: float = EXITS_GRACE,
    ) -> None:
        """
        Args:
            exits_grace: seconds that containers have to end after their sandbox; then the shim is
                killed, and cleaned up after.
        """
        self._containers = containers
        self._shims = shims
        self._exits_grace = exits_grace
        self._watches: dict[str, asyncio.Task[None]] = {}
        # Handlers whose shims were tried and make no sandboxes, and why; for Status.
        self.failures: dict[str, str] = {}

    async def try_out(self, handlers: Mapping[str, Handler]) -> None:
        """Starts a shim of each handler that is to make sandboxes, and notes those that can't.

        Not of one that has pods: they show that it can.
        """
        proved = [shim.handler for shim in self._shims.shims.values()]
        for name, handler in handlers.items():
            if not handler.makes_sandboxes or handler in proved:
                continue
            if why := await trial.failure(self._shims, handler):
                self.failures[name] = why
                _log.error("handler makes no sandboxes", handler=name, error=why)

    def _shim(self, id_: str) -> tuple[Shim, SandboxClient]:
        shim = self._shims.get(id_)
        if shim is None:
            raise Unavailable(f"pod sandbox {id_}: its shim is gone")
        if shim.sandbox is None:
            raise FailedPrecondition(f"pod sandbox {id_}: its shim makes no sandboxes")
        return shim, shim.sandbox

    # ---- start

    async def start(self, meta: SandboxMeta, config: pb.PodSandboxConfig) -> int:
        """Has a pod's shim, which runs, make and start its sandbox.

        Its shim's end undoes it.

        Returns:
            The sandbox's pid, 0 where the shim tells none.

        Raises:
            FailedPrecondition: the shim has no sandbox API, or no process for a shared pid
                namespace.
            Error: the shim failed.
        """
        shim, sandbox = self._shim(meta.id)
        try:
            await sandbox.create(
                meta.id,
                str(shim.bundle),
                options=pack(config),
                netns=meta.netns,
                annotations=config.annotations,
            )
        except Unimplemented as error:
            raise FailedPrecondition(
                f"shim {shim.record.binary}: has no sandbox API (containerd.runtime.sandbox.v1),"
                f' which sandboxer = "shim" of the handler "{meta.handler}" needs: {error}'
            ) from error
        started = await sandbox.start(meta.id)
        if meta.shared_pid and not started.pid:
            raise FailedPrecondition(
                f"pod sandbox {meta.id}: its shim tells no process of it, so its containers can't"
                " share a pid namespace"
            )
        return started.pid

    # ---- the end

    def watch(self, id_: str, on_ended: Callable[[str], Awaitable[None]]) -> None:
        """Waits for a sandbox's end from now on.

        Args:
            on_ended: told of it once, before its containers' ends are seen to.
        """
        self.forget(id_)
        task = asyncio.create_task(self._watch(id_, on_ended), name=f"wait for sandbox {id_}")
        self._watches[id_] = task
        task.add_done_callback(partial(_ended, self._watches, id_))

    def forget(self, id_: str) -> None:
        """The sandbox is being ended on purpose, or is gone."""
        task = self._watches.pop(id_, None)
        if task is not None:
            task.cancel()

    async def _watch(self, id_: str, on_ended: Callable[[str], Awaitable[None]]) -> None:
        shim, sandbox = self._shim(id_)
        if not await self._wait(shim, sandbox):
            return  # of a shim's end its manager tells
        _log.error("pod sandbox ended", pod=id_, shim=shim.pid)
        await on_ended(id_)
        await self._end_containers(id_, shim)

    async def _wait(self, shim: Shim, sandbox: SandboxClient) -> bool:
        """Returns when the sandbox has ended; False where its shim is gone or tells nothing."""
        while True:
            try:
                exit_ = await sandbox.wait(shim.group)
            except NotFound:
                return True
            except Unimplemented as error:
                _log.warning("pod sandbox not watched", pod=shim.group, error=one_line(error))
                return False
            except Error as error:
                lost = isinstance(error, Unavailable)
                write = _log.debug if lost else _log.warning
                write("wait for sandbox ended", pod=shim.group, error=one_line(error))
                if not shim.alive or await shim.gone(REDIAL_PAUSE if lost else FAILED_PAUSE):
                    return False
            else:
                _log.info("pod sandbox's exit", pod=shim.group, status=exit_.status)
                return not shim.stopping

    async def _end_containers(self, id_: str, shim: Shim) -> None:
        """The containers of a sandbox that has ended have too, whatever their shim says of them."""
        exits = self._containers.exits
        running = [
            record.meta.id
            for record in self._containers
            if record.meta.ns == id_ and record.status.state in _RUNS
        ]
        try:
            async with asyncio.timeout(self._exits_grace):
                await asyncio.gather(*(_until(exits.wait, each) for each in running))
        except TimeoutError:
            _log.warning("shim killed: its sandbox has ended, its containers not", pod=id_)
            shim.kill()  # its manager cleans up after it, and tells of the containers' ends

    async def survives(self, meta: SandboxMeta) -> bool:
        """Whether a sandbox that an earlier server has left ready still is.

        One whose shim doesn't answer counts as such: its end may yet be told.
        """
        shim, sandbox = self._shim(meta.id)
        if shim.silent:
            return True
        try:
            state = await sandbox.status(meta.id)
        except NotFound:
            return False
        except Error as error:
            _log.warning("pod sandbox not asked", pod=meta.id, error=one_line(error))
            return True
        return state.ready

    async def ended(self, meta: SandboxMeta) -> None:
        """Sees to the containers of a sandbox that ended while nobody watched, if it has."""
        shim, _ = self._shim(meta.id)
        if not await self.survives(meta):
            await self._end_containers(meta.id, shim)

    async def give_up(self, id_: str, error: Error) -> None:
        """Containers of a sandbox that is to go can't be stopped: all of it is killed.

        Its shim's manager cleans up after it, and tells of the containers' ends.
        """
        shim = self._shims.get(id_)
        if shim is not None:
            _log.warning("shim killed: its containers can't be stopped", error=one_line(error))
            shim.kill()
            await shim.gone(KILL_GRACE)  # else its end would be taken for one that was asked for

    # ---- what it says of itself

    async def info(self, id_: str) -> tuple[dict[str, Any], dict[str, str]]:
        """A sandbox's status, as far as its shim tells it: what all have, and its own words."""
        try:
            _, sandbox = self._shim(id_)
            state = await sandbox.status(id_, verbose=True, timeout=INFO_TIMEOUT)
        except Error as error:
            return {"error": one_line(error)}, {}
        return {"state": state.state, "pid": state.pid}, state.info

    async def aclose(self) -> None:
        """Lets go of all; they run on."""
        tasks = list(self._watches.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _until(wait: Callable[..., Coroutine[Any, Any, bool]], id_: str) -> None:
    while not await wait(id_, timeout=None):
        pass


def _ended(tasks: dict[str, asyncio.Task[None]], id_: str, done: asyncio.Task[None]) -> None:
    if tasks.get(id_) is done:
        del tasks[id_]
    if not done.cancelled() and (error := done.exception()) is not None:
        _log.error("pod sandbox's watch failed", pod=id_, error=one_line(error))
