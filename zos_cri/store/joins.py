"""Operations that a repeated request joins instead of repeating.

A kubelet that has given up on RunPodSandbox asks again with the same metadata. Here the operation
goes on in a task of its own whoever waits for it; the same key and fingerprint joins it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

from zos_cri.errors import AlreadyExists

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Result = TypeVar("Result")


class Joins(Generic[Result]):
    """Operations under way, by key."""

    def __init__(self) -> None:
        self._running: dict[object, tuple[bytes, asyncio.Task[Result]]] = {}

    async def run(
        self, key: str, fingerprint: bytes, operation: Callable[[], Awaitable[Result]]
    ) -> Result:
        """The result of `operation`, or of the one under way with this key.

        The caller's cancellation ends its waiting only; the operation goes on.

        Args:
            key: what names the thing that is being made.
            fingerprint: what must be equal for a caller to want the same.

        Raises:
            AlreadyExists: one with this key and another fingerprint is under way.
        """
        running = self._running.get(key)
        if running is None:
            return await asyncio.shield(self._begin(key, fingerprint, operation))
        if running[0] != fingerprint:
            raise AlreadyExists(f'"{key}" is being created with another configuration')
        return await asyncio.shield(running[1])

    async def alone(self, operation: Callable[[], Awaitable[Result]]) -> Result:
        """The same for an operation that none can join."""
        return await asyncio.shield(self._begin(object(), b"", operation))

    async def ended(self, key: str) -> None:
        """Waits for the end of the operation under way with this key, whatever its result."""
        running = self._running.get(key)
        if running is not None:
            await asyncio.wait((running[1],))

    def _begin(
        self, key: object, fingerprint: bytes, operation: Callable[[], Awaitable[Result]]
    ) -> asyncio.Task[Result]:
        task = asyncio.create_task(_run(operation))
        self._running[key] = (fingerprint, task)
        task.add_done_callback(lambda done: self._ended(key, done))
        return task

    def _ended(self, key: object, task: asyncio.Task[Result]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # seen, even where every caller has left

    async def settle(self) -> None:
        """Waits until every operation under way has ended, whatever its result."""
        await asyncio.gather(*(task for _, task in self._running.values()), return_exceptions=True)


async def _run(operation: Callable[[], Awaitable[Result]]) -> Result:
    return await operation()
