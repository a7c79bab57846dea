"""Processes held by pidfd, so that a pid given to another process is never mistaken for them."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class PidFd:
    """A process, ours or not, named by a descriptor that no other process can take over."""

    def __init__(self, pid: int, fd: int) -> None:
        self.pid = pid
        self._fd = fd

    @classmethod
    def open(cls, pid: int, start_time: int | None = None) -> PidFd | None:
        """The process of that pid; None where there is none, or it isn't the one that was meant.

        Args:
            start_time: what the function of that name said of the process that is meant, when it
                was noted down. Without it, whoever has the pid now is taken.
        """
        try:
            process = cls(pid, os.pidfd_open(pid))
        except OSError as error:
            # EINVAL or ENOENT: a thread's id (no group leader has it), or no pid at all
            if error.errno not in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
                raise
            return None
        if start_time is not None and not process._started_at(start_time):
            process.close()
            return None
        return process

    def _started_at(self, expected: int) -> bool:
        try:
            return start_time(self.pid) == expected and self._exists()
        except ProcessLookupError:
            return False

    def _exists(self) -> bool:
        """Whether the pid is still this process's, running or a zombie: nobody else can have it."""
        try:
            self.send_signal(0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    @property
    def alive(self) -> bool:
        """Whether it runs. A zombie has ended."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return not poll.poll(0)

    def fileno(self) -> int:
        return self._fd

    def send_signal(self, sig: int) -> None:
        """Sends a signal.

        Raises:
            ProcessLookupError: it has ended and is reaped.
        """
        signal.pidfd_send_signal(self._fd, sig)

    async def wait(self, timeout: float | None = None) -> bool:
        """Waits for its end; False where `timeout` seconds ran out before. Several may wait."""
        return await readable(self._fd, timeout)

    def close(self) -> None:
        """Lets go of the descriptor; the process isn't touched."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot: with its pid, its name for this boot.

    Field 22 of /proc/<pid>/stat (proc(5)). The second field, the program's name, may contain
    spaces and parentheses, so the fields are counted from the last closing one.

    Raises:
        ProcessLookupError: no such process.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, "no such process", f"/proc/{pid}") from None
    return int(stat.rpartition(b")")[2].split()[19])


async def readable(fd: int, timeout: float | None = None) -> bool:
    """Waits until a descriptor is readable; False where `timeout` seconds ran out before.

    It is watched through a duplicate: a loop knows one reader for a descriptor, and several tasks
    may wait for the same.
    """
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    duplicate = os.dup(fd)

    def wake() -> None:
        loop.remove_reader(duplicate)
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(duplicate, wake)
    try:
        async with asyncio.timeout(timeout):
            await ready
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(duplicate)
        os.close(duplicate)
    return True
