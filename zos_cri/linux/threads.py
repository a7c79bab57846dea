"""A few threads that run short blocking calls for event loops.

What concurrent.futures does with a future of each kind, a condition and two chained callbacks a
call is done here with one queue and one `call_soon_threadsafe`: a container's life takes some forty
such calls, and they were a fifth of the server's CPU time.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Threads:
    """A bounded number of daemon threads, started as they are needed; calls queue for them.

    Args:
        name: of the threads.
        size: how many at the most; with 1 the calls run in the order they were made.
    """

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._queue: SimpleQueue[_Call | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._under_way = 0  # queued or running
        self._closed = False

    def submit(self, fn: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Runs `fn(*args)` in one of the threads, in the caller's context.

        The future is the running loop's. Cancelling it drops the result and nothing else: the call
        is made all the same, and goes on to its end.

        Raises:
            RuntimeError: it is closed.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._put(_Call(fn, args, _Deliver(loop, future)))
        return future

    def wait_for(self, fn: Callable[..., T], *args: Any) -> T:
        """The same, for a caller without a loop: blocks until it has the result."""
        done = _Done()
        self._put(_Call(fn, args, done))
        done.event.wait()
        if done.error is not None:
            raise done.error
        result: T = done.result
        return result

    def _put(self, call: _Call) -> None:
        with self._lock:
            if self._closed:
                raise RuntimeError(f"{self._name}: closed")
            self._under_way += 1
            if len(self._threads) < min(self._under_way, self._size):
                name = f"{self._name}_{len(self._threads)}"
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
            self._queue.put(call)

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            call.run()
            del call  # what it holds isn't kept until the next one
            with self._lock:
                self._under_way -= 1

    def close(self) -> None:
        """Ends the threads when what was queued is done; blocks until then. Idempotent."""
        with self._lock:
            self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()


class _Call:
    __slots__ = ("_args", "_context", "_deliver", "_fn")

    def __init__(
        self, fn: Callable[..., Any], args: tuple[Any, ...], deliver: _Deliver | _Done
    ) -> None:
        self._fn = fn
        self._args = args
        self._deliver = deliver
        self._context = contextvars.copy_context()

    def run(self) -> None:
        try:
            result = self._context.run(self._fn, *self._args)
        except BaseException as error:
            self._deliver(None, error)
        else:
            self._deliver(result, None)


class _Deliver:
    """Hands a result to the loop that waits for it."""

    __slots__ = ("_future", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any]) -> None:
        self._loop = loop
        self._future = future

    def __call__(self, result: Any, error: BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear it
            self._loop.call_soon_threadsafe(_settle, self._future, result, error)


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():  # cancelled: nobody waits any more
        return
    if error is None:
        future.set_result(result)
        return
    if isinstance(error, StopIteration):  # a future refuses it
        wrapped = RuntimeError("the call raised StopIteration")
        wrapped.__cause__ = error
        error = wrapped
    future.set_exception(error)
    future.exception()  # seen, even where the caller is cancelled in this turn


class _Done:
    """A result for a thread that waits for it."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None

    def __call__(self, result: Any, error: BaseException | None) -> None:
        self.result, self.error = result, error
        self.event.set()
