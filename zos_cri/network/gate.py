"""Who may act at the same time: one operation for a pod, any number of pods, collection alone.

Source of the rule: the CNI specification 1.1.0, section 3, "Lifecycle & Ordering".
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from zos_cri.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class PodLocks:
    """A lock for each pod that somebody holds or waits for, and none for the others."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def hold(self, container_id: str) -> AsyncIterator[None]:
        lock, users = self._locks.get(container_id, (asyncio.Lock(), 0))
        self._locks[container_id] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(container_id)
            if users > 1:
                self._locks[container_id] = (lock, users - 1)


class Gate:
    """Shared by operations on pods, exclusive for collection.

    Collection waits for a quiet instant and holds nobody up while it waits: a plugin that hangs in
    one pod must not keep the other pods from their networks.
    """

    def __init__(self) -> None:
        self._sharing = 0
        self._quiet = asyncio.Event()
        self._open = asyncio.Event()
        self._quiet.set()
        self._open.set()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        while not self._open.is_set():
            await self._open.wait()
        self._sharing += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._sharing -= 1
            if not self._sharing:
                self._quiet.set()

    @asynccontextmanager
    async def exclusive(self, *, wait: float) -> AsyncIterator[None]:
        """Raises Unavailable when no quiet instant comes in `wait` seconds."""
        try:
            async with asyncio.timeout(wait):
                while self._sharing or not self._open.is_set():
                    await (self._quiet if self._sharing else self._open).wait()
        except TimeoutError:
            raise Unavailable(f"networks are in use: no quiet moment in {wait:g} s") from None
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()
