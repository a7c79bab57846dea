"""Shims kept warm: started for pods that nobody has asked for yet.

A shim needs to know its group's id and nothing else, so that can be chosen ahead. A shim that its
pod has left is as good as a new one: where pods come and go those are kept too, some more of them,
for as long as they are of use. What a server that was killed kept warm has a bundle and a
record like any other shim, and no pod: the next one takes it over, or ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from typing import TYPE_CHECKING, Final

from zos_cri.errors import Error, NotFound, one_line
from zos_cri.linux import blocking
from zos_cri.log import get_log
from zos_cri.shim import bundle

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from zos_cri.shim.handler import Handler
    from zos_cri.shim.manager import ShimManager
    from zos_cri.shim.shim import Shim

_log = get_log(__name__)

# The containers of a pod are started right after it: until then the CPUs are theirs.
REST: Final = 0.05
RETRY: Final = 10.0  # a shim that can't be started can't be in the next instant either
ASK_TIMEOUT: Final = 2.0  # for a shim without tasks to answer
START_TIMEOUT: Final = 30.0
# How many times as many may wait where pods have left some, and for how long when no pod takes any:
# pods that come and go do so about ten at once.
SURPLUS: Final = 4
SURPLUS_TIME: Final = 60.0


class WarmShims:
    """The shims without a pod.

    Args:
        sizes: how many to keep, by handler.
        rest: seconds without a pod being made before one is started.
        surplus_time: seconds without a pod being made after which there are no more than these.
    """

    def __init__(
        self,
        shims: ShimManager,
        sizes: Mapping[str, int],
        handlers: Mapping[str, Handler],
        *,
        rest: float = REST,
        surplus_time: float = SURPLUS_TIME,
    ) -> None:
        self._shims = shims
        self._sizes = {name: size for name, size in sizes.items() if size}
        self._handlers = handlers
        self._rest = rest
        self._surplus_time = surplus_time
        self._taken_at = 0.0
        self._timer: asyncio.TimerHandle | None = None  # for a look at the surplus
        self._warm: dict[str, deque[str]] = {name: deque() for name in self._sizes}
        self._unwanted: set[str] = set()  # groups to end: theirs have died
        self._starting: dict[str, str] = {}  # the group being started, if any, by its handler
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

    def wants(self, handler: str) -> bool:
        """Whether any are kept for a handler."""
        return handler in self._sizes

    def has_room(self, handler: str) -> bool:
        """Whether one that a pod has left would be kept."""
        return self._has_room(handler, SURPLUS)

    def _has_room(self, handler: str, factor: int = 1) -> bool:
        number = len(self._warm.get(handler, ())) + (handler in self._starting)
        return number < factor * self._sizes.get(handler, 0)

    def take(self, handler: str) -> str | None:
        """The group of a shim that runs already, for a new pod; None where there is none."""
        warm = self._warm.get(handler, ())
        self._taken_at = asyncio.get_running_loop().time()
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
        if shim is None or shim.handler.name not in self._warm:
            return
        if self.has_room(shim.handler.name):
            self._warm[shim.handler.name].append(group)
        else:
            self._unwanted.add(group)
            self._wanted.set()

    async def keep(self, group: str) -> bool:
        """Keeps a shim that its pods have left, where one is wanted that is as a new one would be.

        Returns:
            Whether it is kept.
        """
        shim = self._shims.get(group)
        if shim is None or not await self._accept(shim, SURPLUS):
            return False
        if not self._has_room(shim.handler.name):
            self._look_again(self._surplus_time)
        return True

    def _look_again(self, seconds: float) -> None:
        """One timer at a time: pods that come and go ask for one each."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._wanted.set)

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

        Only what is surely without tasks: a container has a bundle before it has a task, and the
        shim is asked for those that have one. And only as many as are wanted, started from the
        same binary with the same options.

        Returns:
            The groups that are kept: those that were taken, and those that a pod has left since.
        """
        groups = list(strays)
        taken = set(groups).intersection(self.groups)
        if len(taken) == len(groups) or not self._warm:
            return taken
        containers = await blocking.call(bundle.containers, self._shims.bundles)
        for group in groups:
            if group in taken:
                continue
            shim = self._shims.get(group)
            if shim is None or not shim.alive or not self._has_room(shim.handler.name):
                continue
            # It knows no task by the group's name either, but so it says whether it answers.
            tasks = [group, *containers.get(group, ())]
            if await is_empty(shim, tasks) and await self._accept(shim):
                taken.add(group)
        return taken

    async def _accept(self, shim: Shim, factor: int = 1) -> bool:
        name = shim.handler.name
        if not self._has_room(name, factor) or shim.handler != self._handlers[name]:
            return False
        try:
            current = await self._shims.is_current(shim)
        except (Error, OSError) as error:
            _log.info("shim not kept", group=shim.group, error=one_line(error))
            return False
        if not current or not shim.alive or not self._has_room(name, factor):
            return False
        assert shim.group not in self._warm[name]  # two pods would share it
        self._warm[name].append(shim.group)
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
                self._unwanted.update(self._starting.values())
                self._starting.clear()
                await asyncio.sleep(RETRY)
                self._wanted.set()

    async def _fill(self) -> None:
        self._drop_surplus()
        while self._unwanted:
            group = next(iter(self._unwanted))
            await self._shims.stop(group)
            self._unwanted.discard(group)
        for name, size in self._sizes.items():
            while len(self._warm[name]) < size:
                await self._until_idle()
                if len(self._warm[name]) >= size:  # pods have left theirs meanwhile
                    break
                self._starting[name] = group = secrets.token_hex(32)
                await self._shims.start(group, self._handlers[name], timeout=START_TIMEOUT)
                self._warm[name].append(self._starting.pop(name))

    def _drop_surplus(self) -> None:
        surplus = [(name, len(self._warm[name]) - size) for name, size in self._sizes.items()]
        if not any(number > 0 for _, number in surplus):
            return
        early = self._taken_at + self._surplus_time - asyncio.get_running_loop().time()
        if early > 0:
            self._look_again(early)
            return
        for name, number in surplus:
            self._unwanted.update(self._warm[name].popleft() for _ in range(number))

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
        groups = {*self.groups, *self._unwanted, *self._starting.values()}
        self._sizes = {}
        if self._timer is not None:
            self._timer.cancel()
        for warm in self._warm.values():
            warm.clear()
        await asyncio.gather(*map(self._end, groups))

    async def _end(self, group: str) -> None:
        try:
            await self._shims.stop(group)
        except (Error, OSError) as error:  # the next server tries again
            _log.warning("warm shim not ended", group=group, error=one_line(error))


async def is_empty(shim: Shim, tasks: Iterable[str]) -> bool:
    """Whether a shim that answers has none of these tasks.

    Args:
        tasks: the ids of containers that it had, or may have.
    """
    try:
        for id_ in tasks:
            with contextlib.suppress(NotFound):
                await shim.task.state(id_, timeout=ASK_TIMEOUT)
                return False
    except Error as error:
        _log.info("shim not kept", group=shim.group, error=one_line(error))
        return False
    return True
