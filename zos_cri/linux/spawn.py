"""Child processes: started without fork, watched by pidfd, bounded in time and output.

How a child is started, and why: `subprocess.Popen` without `preexec_fn` uses vfork, which costs the
same 0.2 ms as `os.posix_spawn` (fork in a 100 MiB process: 3.3 ms, and it fires gRPC's fork
handlers). Unlike posix_spawn it sets the working directory, closes every descriptor above 2, and
tells which of directory and program was missing. It is called on the event loop itself: on
CPython 3.11 vfork holds the GIL until the child has exec'd, so a thread would stall the loop as
long and add two switches (0.6 ms). Hence the one rule: never run a program that lies on a file
system this very process serves.

Neither asyncio's nor uvloop's subprocess support is used (uvloop's forks). A pidfd in the loop's
selector tells of the end, so any loop will do and SIGCHLD is left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri.errors import DeadlineExceeded
from zos_cri.linux import openfiles
from zos_cri.linux.pidfd import PidFd, start_time

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Completed", "PidFd", "Process", "open_pid", "run", "start", "start_time"]

open_pid = PidFd.open

# What any of our short programs (shims, CNI plugins, runc) has reason to say.
MAX_OUTPUT: Final = 1 << 20
# After the end of the child whatever it wrote is in the pipe already; this is for the children it
# leaves behind that may still have something to say (a shell's pipeline).
LINGER: Final = 1.0
# How long we wait for a killed process to be gone. Longer means that it is stuck in the kernel
# (D state); it is reaped whenever it ends, nobody waits for it.
KILL_GRACE: Final = 2.0
_CHUNK: Final = 65536
_ERROR_TAIL: Final = 512  # bytes of stderr in an error's message


class Completed(msgspec.Struct, frozen=True):
    """A child that has ended.

    Attributes:
        returncode: its exit code; where a signal ended it, the signal's number, negative.
        truncated: more than `max_output` came on stdout or stderr; the rest was dropped.
        held_open: it left children behind that still held its stdout or stderr when we stopped
            reading.
    """

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False
    held_open: bool = False

    def failure(self) -> str:
        """One line for an error: the program, how it ended, the end of its stderr."""
        how = (
            f"exit code {self.returncode}"
            if self.returncode >= 0
            else f"killed by {_signal_name(-self.returncode)}"
        )
        said = _tail(self.stderr) or _tail(self.stdout)
        return f"{self.argv[0]}: {how}" + (f": {said}" if said else "")


class Process:
    """A running child of ours. It is reaped as soon as it ends, whether or not anyone waits."""

    def __init__(self, argv: tuple[str, ...], popen: subprocess.Popen[bytes]) -> None:
        self.argv = argv
        self.pid = popen.pid
        self._popen = popen
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        # The child isn't reaped yet, so the pid is surely still its own.
        self.pidfd = os.pidfd_open(popen.pid)
        self._loop.add_reader(self.pidfd, self._reap)

    @property
    def returncode(self) -> int | None:
        """None while it runs; else as in `Completed`."""
        return self._popen.returncode

    async def wait(self, timeout: float | None = None) -> int:
        """Its return code, when it has ended.

        Raises:
            DeadlineExceeded: it still runs after `timeout` seconds. It isn't killed.
        """
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(self._ended)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{self.argv[0]}: pid {self.pid} still runs after {timeout:g} s"
            ) from None

    def kill(self, sig: int = signal.SIGKILL, *, group: bool = False) -> None:
        """Sends a signal to it, or to its whole process group. Nothing happens after its end.

        The pid is safe to use here: only `_reap` frees it, in this same thread.
        """
        if self._popen.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(self.pid, sig)
            else:
                os.kill(self.pid, sig)

    def release(self) -> None:
        """Lets a process that shall outlive us go: it is watched and reaped by us no more.

        Call it before the loop closes. If the process ends before we do, it stays a zombie until
        we end.
        """
        if self._popen.returncode is None:
            self._popen.returncode = 0  # or Popen warns of a child still running when collected
            self._unwatch()
            self._ended.cancel()

    def _reap(self) -> None:
        code = self._popen.poll()
        if code is None:
            return
        self._unwatch()
        if not self._ended.done():
            self._ended.set_result(code)

    def _unwatch(self) -> None:
        self._loop.remove_reader(self.pidfd)
        os.close(self.pidfd)
        self.pidfd = -1


async def start(
    argv: Sequence[str],
    *,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    pass_fds: Sequence[int] = (),
    new_session: bool = False,
) -> Process:
    """Starts a child in a process group of its own, with descriptors 0, 1 and 2 and few others.

    Args:
        argv: the program (a path, or a name looked up in PATH) and its arguments.
        env: its whole environment; ours where None.
        stdin: descriptor to connect; `/dev/null` where None. Likewise stdout and stderr. They stay
            the caller's to close.
        pass_fds: more descriptors that the child has, by the same numbers.
        new_session: also a session of its own, for daemons that outlive us.

    Raises:
        OSError: the program or `cwd` can't be used; `filename` names which.
    """
    # Popen blocks for 0.2 ms: see the module's docstring for why it isn't in a thread.
    popen = subprocess.Popen(  # noqa: ASYNC220
        list(argv),
        cwd=cwd,
        env=None if env is None else dict(env),
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        stdout=subprocess.DEVNULL if stdout is None else stdout,
        stderr=subprocess.DEVNULL if stderr is None else stderr,
        close_fds=True,
        pass_fds=tuple(pass_fds),
        start_new_session=new_session,
        process_group=None if new_session else 0,
    )
    openfiles.restore_limit(popen.pid)
    try:
        return Process(tuple(argv), popen)
    except BaseException:  # no descriptor left for the pidfd: an unwatched child is a leak
        os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()
        raise


async def run(
    argv: Sequence[str],
    *,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    timeout: float,
    max_output: int = MAX_OUTPUT,
    linger: float = LINGER,
) -> Completed:
    """Runs a program to its end.

    Args:
        stdin: what it reads there; then end of file.
        timeout: seconds until its whole process group is killed.
        max_output: bytes kept of stdout and of stderr, each; the rest is read and dropped.
        linger: seconds to wait, after its end, for children it left behind to close its stdout and
            stderr. What the program itself wrote is never lost, so 0 does for a program that is
            known to leave a daemon behind.

    Raises:
        OSError: the program or `cwd` can't be used.
        DeadlineExceeded: it took longer than `timeout`; the message has the end of its stderr.
    """
    child = _Run(tuple(argv), max_output)
    try:
        await child.start(cwd=cwd, env=env, stdin=stdin)
        try:
            code = await child.process.wait(timeout)
        except DeadlineExceeded:
            child.process.kill(group=True)
            raise DeadlineExceeded(await child.timed_out(timeout)) from None
        held_open = not await child.drained(linger)
        return Completed(
            argv=tuple(argv),
            returncode=code,
            stdout=bytes(child.stdout.data),
            stderr=bytes(child.stderr.data),
            truncated=child.stdout.truncated or child.stderr.truncated,
            held_open=held_open,
        )
    finally:
        await child.close()


class _Run:
    """The state of one `run`: the process and its three pipes' ends on our side."""

    process: Process

    def __init__(self, argv: tuple[str, ...], max_output: int) -> None:
        self._argv = argv
        self._started = False
        self._stdin: _Writer | None = None
        self.stdout = _Reader(max_output)
        self.stderr = _Reader(max_output)

    async def start(
        self,
        *,
        cwd: str | os.PathLike[str] | None,
        env: Mapping[str, str] | None,
        stdin: bytes,
    ) -> None:
        with contextlib.ExitStack() as theirs:  # the child's ends, closed here once it has them
            out, err = self.stdout.open(theirs), self.stderr.open(theirs)
            source = None
            if stdin:
                self._stdin = _Writer(stdin)
                source = self._stdin.open(theirs)
            self.process = await start(
                self._argv, cwd=cwd, env=env, stdin=source, stdout=out, stderr=err
            )
            self._started = True
        self.stdout.begin()
        self.stderr.begin()
        if self._stdin is not None:
            self._stdin.begin()

    async def drained(self, linger: float) -> bool:
        """Whether both pipes came to their end; by then everything the child wrote is read."""
        pipes = [self.stdout, self.stderr]
        for pipe in pipes:
            pipe.read_available()
        ends = [pipe.ended for pipe in pipes if not pipe.ended.done()]
        if ends and linger > 0:
            await asyncio.wait(ends, timeout=linger)
        return all(pipe.ended.done() for pipe in pipes)

    async def timed_out(self, timeout: float) -> str:
        """The message of a timeout, after the killed process is gone (or is seen to be stuck)."""
        stage = "its process group was killed"
        try:
            await self.process.wait(KILL_GRACE)
        except DeadlineExceeded:
            stage = f"killed, but pid {self.process.pid} is stuck in the kernel"
        self.stdout.read_available()
        self.stderr.read_available()
        said = _tail(bytes(self.stderr.data))
        message = f"{self._argv[0]}: still running after {timeout:g} s, {stage}"
        return message + (f"; stderr: {said}" if said else "; it wrote nothing to stderr")

    async def close(self) -> None:
        """Kills what still runs (the caller was cancelled), and lets go of the pipes."""
        try:
            if self._started and self.process.returncode is None:
                self.process.kill(group=True)
                with contextlib.suppress(DeadlineExceeded):
                    await self.process.wait(KILL_GRACE)
        finally:
            for pipe in (self.stdout, self.stderr, self._stdin):
                if pipe is not None:
                    pipe.close()


class _Reader:
    """The read end of a pipe: keeps the first `limit` bytes, reads on and drops what follows."""

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self.truncated = False
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._fd = -1
        self._watched = False

    def open(self, theirs: contextlib.ExitStack) -> int:
        """Makes the pipe; its write end is closed with `theirs`."""
        self._fd, write_end = os.pipe()
        theirs.callback(os.close, write_end)
        os.set_blocking(self._fd, False)
        return write_end

    def begin(self) -> None:
        self._loop.add_reader(self._fd, self._read)
        self._watched = True

    def read_available(self) -> None:
        """Reads what is in the pipe now.

        Bounded by what a pipe holds (a child left behind may write without end): 1 MiB is the
        default of /proc/sys/fs/pipe-max-size, beyond which nothing can be the ended child's own.
        """
        for _ in range((1 << 20) // _CHUNK + 1):
            if self._fd < 0 or not self._read():
                return

    def _read(self) -> bool:
        try:
            chunk = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return False
        if not chunk:
            self.close()
            if not self.ended.done():
                self.ended.set_result(None)
            return False
        room = self._limit - len(self.data)
        self.data += chunk[:room]
        self.truncated = self.truncated or len(chunk) > room
        return True

    def close(self) -> None:
        if self._fd < 0:
            return
        if self._watched:
            self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1


class _Writer:
    """The write end of a pipe: feeds bytes to it, then closes it."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._loop = asyncio.get_running_loop()
        self._fd = -1
        self._watched = False

    def open(self, theirs: contextlib.ExitStack) -> int:
        """Makes the pipe; its read end is closed with `theirs`."""
        read_end, self._fd = os.pipe()
        theirs.callback(os.close, read_end)
        os.set_blocking(self._fd, False)
        return read_end

    def begin(self) -> None:
        self._write()  # mostly it all fits into the pipe at once
        if self._fd >= 0:
            self._loop.add_writer(self._fd, self._write)
            self._watched = True

    def _write(self) -> None:
        try:
            self._data = self._data[os.write(self._fd, self._data) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._data = self._data[:0]  # it doesn't want to read (more); that is its choice
        if not self._data:
            self.close()

    def close(self) -> None:
        if self._fd < 0:
            return
        if self._watched:
            self._loop.remove_writer(self._fd)
        os.close(self._fd)
        self._fd = -1


def _tail(output: bytes) -> str:
    """The end of an output on one line."""
    text = " ".join(output[-_ERROR_TAIL:].decode(errors="replace").split())
    return f"…{text}" if len(output) > _ERROR_TAIL else text


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
