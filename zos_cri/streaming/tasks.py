"""Tasks that end in order: cancelled ones are waited for, clean-up isn't cut short."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from zos_cri.errors import one_line
from zos_cri.log import get_log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

_log = get_log(__name__)

# Clean-up that takes longer goes on by itself: whoever waits for it isn't held up.
CLEANUP_TIMEOUT: Final = 30.0


async def cancel_all(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancels what isn't done and waits until all are. Their errors are dropped."""
    waiting = list(tasks)
    for task in waiting:
        task.cancel()
    if waiting:
        await uninterrupted(lambda: asyncio.wait(waiting), "cancelling tasks")
    for task in waiting:
        if task.done() and not task.cancelled():
            task.exception()  # marks it as seen


async def uninterrupted(action: Callable[[], Awaitable[object]], what: str) -> None:
    """Runs clean-up to its end even if the caller is cancelled meanwhile, for `CLEANUP_TIMEOUT`.

    An error of the clean-up is logged, not raised: there is nothing else to be done about it.
    """

    async def run() -> None:
        try:
            await action()
        except Exception as error:
            _log.warning("clean-up failed", what=what, error=one_line(error))

    task = asyncio.ensure_future(run())
    interrupted: asyncio.CancelledError | None = None
    deadline = asyncio.get_running_loop().time() + CLEANUP_TIMEOUT
    while not task.done():
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            _log.warning("clean-up goes on behind", what=what, seconds=CLEANUP_TIMEOUT)
            break
        try:
            await asyncio.wait([task], timeout=left)
        except asyncio.CancelledError as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted
