"""Shims kept warm: started for pods that nobody has asked for yet.

A shim needs to know its group's id and nothing else, and the server chooses pod ids, so it can
choose them ahead. What a server that was killed kept warm has a bundle and a record like any other
shim, and no pod: the next one takes it over, or ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from typing import TYPE_CHECKING, Final

from zos_cri.errors import Error, one_line
from zos_cri.linux import blocking
from zos_cri.log import get_log
from zos_cri.shim import bundle

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from zos_cri.shim.handler import Handler
    from zos_cri.shim.manager import ShimManager

_log = get_log(__name__)

# The containers of a pod are started right after it: until then the CPUs are theirs.
REST: Final = 0.05
RETRY: Final = 10.0  # a shim that can't be started can't be in the next instant either
ADOPT_TIMEOUT: Final = 2.0  # for a shim without tasks to answer
START_TIMEOUT: Final = 30.0


class WarmShims:
    """The shims without a pod.

    Args:
        sizes: how many to keep, by handler.
        rest: seconds without a pod being made before one is started.
    """

    def __init__(
        self,
        shims: ShimManager,
        sizes: Mapping[str, int],
        handlers: Mapping[str, Handler],
        *,
        rest: float = REST,
    ) -> None:
        self._shims = shims
        self._sizes = {name: size for name, size in sizes.items() if size}
        self._handlers = handlers
        self._rest = rest
        self._warm: dict[str, deque[str]] = {name: deque() for name in self._sizes}
        self._unwanted: set[str] = set()  # groups to end: theirs have died
        self._starting = ""
        self._making = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._rested_at = 0.0
        self._wanted = asyncio.Event()
        self._filling: asyncio.Task[None] | None = None

    @property
    def groups(self) -> list[str]:
        """The groups that wait for a pod."""
        return [group for warm in self._warm.values() for group in warm]

    def count(self) -> dict[str, int]:
        """How many there are, by handler."""
        return {name: len(warm) for name, warm in self._warm.items()}

    def take(self, handler: str) -> str | None:
        """The id that a new pod is to have so that its shim runs already; None where none does."""
        warm = self._warm.get(handler, ())
        while warm:
            group = warm.popleft()
            self._wanted.set()
            shim = self._shims.get(group)
            if shim is not None and shim.alive:
                return group
            self._unwanted.add(group)
        return None

    def give_back(self, group: str) -> None:
        """The pod that a shim was taken for is not made; nothing where it wasn't one of these."""
        shim = self._shims.get(group)
        if shim is not None and shim.handler.name in self._warm:
            self._warm[shim.handler.name].append(group)

    @contextlib.contextmanager
    def making(self) -> Iterator[None]:
        """While a pod is made none is started: it would take the pod's time."""
        self._making += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._making -= 1
            if not self._making:
                self._rested_at = asyncio.get_running_loop().time() + self._rest
                self._idle.set()

    def lost(self, group: str) -> bool:
        """Whether a shim that has died was one of these; it is replaced then."""
        for warm in self._warm.values():
            if group in warm:
                warm.remove(group)
                self._unwanted.add(group)
                self._wanted.set()
                return True
        return group in self._unwanted

    async def adopt(self, strays: Iterable[str]) -> set[str]:
        """Takes over what a killed server kept warm, out of the groups that no record names.

        Only what is surely without tasks: a container has a bundle before it has a task. And only
        as many as are wanted, started from the same binary with the same options.

        Returns:
            The groups that were taken.
        """
        groups = list(strays)
        if not groups or not self._warm:
            return set()
        used = await blocking.call(bundle.containers, self._shims.bundles)
        taken = set()
        for group in groups:
            if group not in used and await self._adopt(group):
                taken.add(group)
        return taken

    async def _adopt(self, group: str) -> bool:
        shim = self._shims.get(group)
        if shim is None or not shim.alive:
            return False
        name = shim.handler.name
        warm = self._warm.get(name)
        if warm is None or len(warm) >= self._sizes[name] or shim.handler != self._handlers[name]:
            return False
        try:
            if not await self._shims.is_current(shim):
                return False
            await shim.task.connect(group, timeout=ADOPT_TIMEOUT)
        except (Error, OSError) as error:
            _log.info("warm shim not taken over", group=group, error=one_line(error))
            return False
        warm.append(group)
        return True

    def start(self) -> None:
        """Begins to keep them warm."""
        if self._sizes and self._filling is None:
            self._wanted.set()
            self._filling = asyncio.create_task(self._keep(), name="warm shims")

    async def _keep(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._fill()
            except (Error, OSError) as error:
                _log.warning("no warm shim", error=one_line(error), again=RETRY)
                self._unwanted |= {self._starting} - {""}
                self._starting = ""
                await asyncio.sleep(RETRY)
                self._wanted.set()

    async def _fill(self) -> None:
        while self._unwanted:
            group = self._unwanted.pop()
            await self._shims.stop(group)
        for name, size in self._sizes.items():
            while len(self._warm[name]) < size:
                await self._until_idle()
                self._starting = group = secrets.token_hex(32)
                await self._shims.start(group, self._handlers[name], timeout=START_TIMEOUT)
                self._starting = ""
                self._warm[name].append(group)

    async def _until_idle(self) -> None:
        loop = asyncio.get_running_loop()
        while self._making or loop.time() < self._rested_at:
            await self._idle.wait()
            await asyncio.sleep(max(0.0, self._rested_at - loop.time()))

    async def close(self) -> None:
        """Ends them all: nobody knows of a next server that would want them."""
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.wait([self._filling])
        groups = {*self.groups, *self._unwanted, self._starting} - {""}
        for warm in self._warm.values():
            warm.clear()
        await asyncio.gather(*map(self._end, groups))

    async def _end(self, group: str) -> None:
        try:
            await self._shims.stop(group)
        except (Error, OSError) as error:  # the next server tries again
            _log.warning("warm shim not ended", group=group, error=one_line(error))
