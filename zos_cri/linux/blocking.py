"""Blocking calls kept off the event loop: a shared pool for ours, a thread each for the users'.

Our own paths (`/run/zos-cri`, `/var/lib/zos-cri`, `/proc`, `/sys`) answer in microseconds to
milliseconds: `call` runs them in a bounded number of threads. A path that a user names may lie on a
dead NFS server, where a system call never returns and can't be interrupted: `call_abandonable`
gives each such call a daemon thread of its own, so that one stuck volume uses up no pool and
doesn't keep the process from ending.
"""

from __future__ import annotations

import _thread
import asyncio
import contextvars
import os
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from zos_cri.errors import DeadlineExceeded, ResourceExhausted
from zos_cri.linux.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")

# A stuck thread costs a stack's touched pages (about 20 KiB) and one task of the pids limit. Beyond
# this many, the host's storage is gone and a further thread would only hide it.
MAX_STUCK: Final = 256


# The process's, whichever loop asks: what they do is short, and none belongs to a loop.
_SHARED: Final = Threads("blocking", min(32, (os.cpu_count() or 1) + 4))


async def call(fn: Callable[..., T], *args: Any, timeout: float | None = None) -> T:
    """The result of `fn(*args)`, run in one of a bounded number of threads.

    A running thread can't be stopped: when the caller is cancelled or `timeout` (seconds) runs
    out, the call goes on to its end and its result is dropped. Undo what it may have done.

    Raises:
        DeadlineExceeded: `timeout` ran out.
    """
    future = _SHARED.submit(fn, *args)
    if timeout is None:
        return await future
    try:
        async with asyncio.timeout(timeout):
            return await future
    except TimeoutError as error:
        if not future.cancelled() and future.exception() is error:
            raise  # the function's own
        raise DeadlineExceeded(f"{_name(fn)}: not done within {timeout:g} s") from None


async def call_abandonable(
    fn: Callable[..., T],
    *args: Any,
    timeout: float,
    what: str | Callable[[], str] | None = None,
) -> T:
    """The result of `fn(*args)`, run in a daemon thread of its own that may be left behind.

    Args:
        timeout: seconds until the thread is given up; where `what` is a function, seconds in
            which it is at one and the same thing.
        what: what the error names (the volume's path), or a function that says what it is at; by
            default the function and its arguments.

    Raises:
        DeadlineExceeded: it took longer than `timeout`.
        ResourceExhausted: `MAX_STUCK` threads have been left behind and are stuck still.
    """
    made = _Abandonable(
        asyncio.get_running_loop(),
        lambda: fn(*args),
        what or f"{_name(fn)}({', '.join(map(repr, args))})",
    )
    if len(left_behind()) >= MAX_STUCK:
        raise ResourceExhausted(f"{made.what}: {MAX_STUCK} earlier calls on host paths are stuck")
    made.start()
    try:
        at = made.what
        while not (await asyncio.wait([made.future], timeout=timeout))[0]:
            if made.what == at:
                raise DeadlineExceeded(f"{at}: no answer from the file system within {timeout:g} s")
            at = made.what
        result: T = made.future.result()
        return result
    finally:
        made.future.cancel()  # where nobody waits for it any more
        made.abandoned = True  # harmless where it has ended: only what runs is counted


def left_behind() -> list[str]:
    """What the threads that nobody waits for any more are stuck in (for metrics and status)."""
    return [call.what for call in list(_running) if call.abandoned]


class _Abandonable:
    """One call in a thread of its own, and the future that hears of its end.

    Not by threading.Thread: its start waits until the new thread has run, on a busy host 20 ms and
    more, in which the loop stands still.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        fn: Callable[[], Any],
        what: str | Callable[[], str],
    ) -> None:
        self._what = what
        self.abandoned = False
        self.future: asyncio.Future[Any] = loop.create_future()
        self._loop = loop
        self._fn = fn
        self._context = contextvars.copy_context()

    @property
    def what(self) -> str:
        """What it is stuck in, where it is."""
        return self._what if isinstance(self._what, str) else self._what()

    def start(self) -> None:
        """
        Raises:
            RuntimeError: the host or a limit has no thread left.
        """
        _running.add(self)
        try:
            _thread.start_new_thread(self._run, ())
        except BaseException:
            _running.discard(self)
            raise

    def _run(self) -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = self._context.run(self._fn)
        except BaseException as raised:
            error = raised
        _running.discard(self)
        try:
            self._loop.call_soon_threadsafe(self._deliver, result, error)
        except RuntimeError:
            return  # the loop is closed: nobody is left to hear it

    def _deliver(self, result: Any, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


_running: Final[set[_Abandonable]] = set()


def _name(fn: Callable[..., object]) -> str:
    return getattr(fn, "__qualname__", None) or repr(fn)
