"""How a running container is ended: the stop signal, a grace, SIGKILL."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Final, Protocol

from zos_cri.errors import DeadlineExceeded, NotFound
from zos_cri.failpoints import step

if TYPE_CHECKING:
    from zos_cri.module.exits import Exits
    from zos_cri.module.types import ContainerRecord
    from zos_cri.shim.manager import Shim

KILL_TIMEOUT: Final = 10.0  # from SIGKILL to the exit; longer means stuck in the kernel
# A killed process is gone in an instant, unless its cgroup is frozen (cgroup v1): the runtime thaws
# it, so then it is asked after all.
DIRECT_GRACE: Final = 1.0


class SignalInit(Protocol):
    """Sends a signal to the process with that pid, where it is of that container.

    Blocks for less than a millisecond.
    """

    def __call__(self, pid: int, signal: int, name: str, /) -> bool: ...


class Ending:
    """One stop.

    Where the container's processes are the host's own, its init is signalled by pidfd: the runtime
    would do the same and nothing more, in 10 ms. Where the end of init ends nothing else (no pid
    namespace of its own), and where the process can't be told with certainty, the runtime does it.
    """

    def __init__(
        self, record: ContainerRecord, shim: Shim, exits: Exits, signal_init: SignalInit
    ) -> None:
        self._meta = record.meta
        self._pid = record.status.pid
        self._shim = shim
        self._exits = exits
        self._signal_init = signal_init

    async def run(self, stop_signal: int) -> None:
        """Ends it; when SIGKILL is due is up to `Exits.shorten`.

        Raises:
            DeadlineExceeded: it outlived SIGKILL by `KILL_TIMEOUT`.
        """
        id_ = self._meta.id
        exits = self._exits
        try:
            if exits.kill_at(id_) > time.monotonic():
                async with step("task.signal"):
                    if not self._direct(stop_signal):
                        await self._by_runtime(stop_signal)
                while (left := exits.kill_at(id_) - time.monotonic()) > 0:
                    if await exits.wait(id_, timeout=left):
                        return
            await self._kill()
        finally:
            exits.stop_ended(id_)

    async def _kill(self) -> None:
        everyone = self._meta.kill_all
        async with step("task.signal"):
            direct = not everyone and self._direct(signal.SIGKILL)
        if direct and await self._gone(DIRECT_GRACE):
            return
        await self._by_runtime(signal.SIGKILL, everyone=everyone)
        if not await self._gone(KILL_TIMEOUT):
            raise DeadlineExceeded(
                f"container {self._meta.id}: still there {KILL_TIMEOUT:g} s after SIGKILL; its"
                " processes may be stuck in the kernel (state D)"
            )

    async def _gone(self, timeout: float) -> bool:
        give_up = time.monotonic() + timeout
        while not await self._exits.wait(self._meta.id, timeout=give_up - time.monotonic()):
            if time.monotonic() >= give_up:
                return False
        return True

    def _direct(self, number: int) -> bool:
        return self._shim.handler.on_host and self._signal_init(self._pid, number, self._meta.id)

    async def _by_runtime(self, number: int, *, everyone: bool = False) -> None:
        try:
            await self._shim.task.kill(self._meta.id, number, all=everyone)
        except NotFound:
            # The process is gone: its exit is on the way, or was missed and is asked for here.
            await self._exits.ask(self._meta, self._shim)
