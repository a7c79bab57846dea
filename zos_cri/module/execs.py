"""Processes run in a container beside its init: their streams, their end, their clean-up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zos_cri.errors import DeadlineExceeded, Error, NotFound, one_line
from zos_cri.failpoints import step
from zos_cri.linux import blocking
from zos_cri.linux.oomscore import follow_oom_score_adj
from zos_cri.log import get_log
from zos_cri.module.types import ContainerEventKind, ExecResult
from zos_cri.shim import bundle as bundles
from zos_cri.streaming.pipes import open_read_end, open_write_end, wait_for_reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from zos_cri.linux.moves import Moves
    from zos_cri.metrics import Metrics
    from zos_cri.module.containers import Containers
    from zos_cri.module.types import ContainerNotice
    from zos_cri.shim.manager import Shim

_log = get_log(__name__)

OUTPUT_LIMIT: Final = 16 << 20  # bytes a stream: what a kubelet takes in one gRPC message
EXEC_TIMEOUT: Final = 60.0  # the runtime's own exec takes 20 ms; a frozen container never ends it
KILL_TIMEOUT: Final = 10.0  # from SIGKILL to the exit
DELETE_TIMEOUT: Final = 15.0  # the shim itself waits up to 10 s for the output's end
DELETE_PATIENCE: Final = 0.5  # takes 1 ms, unless a child keeps the output open
_OUTPUTS: Final = ("stdout", "stderr")
_CHUNK: Final = 1 << 16  # a pipe's default size


class Exec:
    """One process in a container. Its owner calls `aclose`, whatever happened."""

    def __init__(
        self,
        *,
        container: str,
        directory: Path,
        shim: Shim,
        behind: set[asyncio.Task[None]],
    ) -> None:
        """`behind` holds what goes on after `aclose`."""
        self.container = container
        self.id = directory.name
        self.pid = 0
        self.stdin = -1  # descriptors of ours: FIFOs, non-blocking; -1 = not asked for
        self.stdin_guard = -1  # see `open_write_end`
        self.stdout = -1
        self.stderr = -1
        self._directory = directory
        self._shim = shim
        self._behind = behind
        self._with_stdin = False
        self._starting: asyncio.Task[int] | None = None
        self._wait: asyncio.Task[int] | None = None

    async def start(
        self, process: dict[str, Any], *, streams: Sequence[str], terminal: bool
    ) -> None:
        """Starts it.

        Args:
            process: the OCI Process.
            streams: which of "stdin", "stdout", "stderr" are wanted; with a terminal never stderr.

        Raises:
            Error: the shim or the runtime failed.
        """
        self._with_stdin = "stdin" in streams
        async with step("exec.fifos"):
            paths = self._open(streams)
        task = self._shim.task
        await task.exec(
            self.container,
            self.id,
            process,
            terminal=terminal,
            stdin=paths.get("stdin", ""),
            stdout=paths.get("stdout", ""),
            stderr=paths.get("stderr", ""),
            timeout=EXEC_TIMEOUT,
        )
        self._wait = asyncio.create_task(self._wait_for_exit(), name=f"wait exec {self.id}")
        # Not to be cancelled: what was started and has no pid here could not be killed.
        self._starting = asyncio.create_task(
            task.start(self.container, self.id, timeout=EXEC_TIMEOUT), name=f"exec {self.id}"
        )
        self.pid = await asyncio.shield(self._starting)
        if "oomScoreAdj" in process:
            self._rescore(process["oomScoreAdj"])

    def _rescore(self, value: int) -> None:
        """Runtimes give an exec what its container was created with, whatever was updated."""
        try:
            follow_oom_score_adj(self.pid, value)
        except Error as error:
            _log.warning("exec's oom_score_adj", container=self.container, error=one_line(error))

    def _open(self, streams: Sequence[str]) -> dict[str, str]:
        """Makes the FIFOs and opens our ends before the shim can: it would block otherwise.

        On the loop: it takes some 0.1 ms in /run, and a thread could be left in the midst of it.
        """
        self._directory.mkdir(parents=True, mode=0o700)
        paths = {}
        for name in streams:
            paths[name] = str(self._directory / name)
            os.mkfifo(paths[name], 0o600)
            if name == "stdin":
                self.stdin, self.stdin_guard = open_write_end(paths[name])
            else:
                setattr(self, name, open_read_end(paths[name]))
        return paths

    async def _wait_for_exit(self) -> int:
        return (await self._shim.task.wait(self.container, self.id)).status

    async def wait(self) -> int:
        """Its exit code, once it has ended.

        Raises:
            Unavailable: the shim is gone.
        """
        assert self._wait is not None, "start first"
        return await asyncio.shield(self._wait)

    async def resize(self, width: int, height: int) -> None:
        """Sets the size of its terminal, in characters."""
        await self._shim.task.resize_pty(self.container, self.id, width=width, height=height)

    def take(self, name: str) -> int:
        """Hands the descriptor of a stream over: its new owner closes it."""
        descriptor: int = getattr(self, name)
        setattr(self, name, -1)
        return descriptor

    async def end_stdin(self) -> None:
        """Lets it read the end of its input, once our own descriptor is closed."""
        with contextlib.suppress(NotFound):  # it has ended
            await self._shim.task.close_io(self.container, self.id)

    def kill(self) -> None:
        """SIGKILL to the whole process group, which the runtime made it the leader of."""
        if self._wait is None or self._wait.done() or not self.pid:
            return
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)

    async def aclose(self) -> None:
        """Ends it where it runs, and removes what there is of it. May be called again."""
        await self._end_start()
        try:
            async with step("exec.kill"):
                self.kill()
        except (Error, OSError) as error:
            self._failed("exec not killed", error)
        if self._wait is not None:
            done, _ = await asyncio.wait((self._wait,), timeout=KILL_TIMEOUT)
            if not done:
                self._wait.cancel()
                _log.warning("exec outlived SIGKILL", container=self.container, exec=self.id)
            elif not self._wait.cancelled():
                self._wait.exception()
        _close(self.take("stdin_guard"))
        if self.stdin >= 0 and self.pid:
            await wait_for_reader(self.stdin)
        _close(self.take("stdin"))
        deletion = asyncio.create_task(self._delete(), name=f"delete exec {self.id}")
        self._behind.add(deletion)
        deletion.add_done_callback(self._behind.discard)
        # The shim holds its answer back while a child keeps the output open: nobody else need wait.
        await asyncio.wait((deletion,), timeout=DELETE_PATIENCE)

    async def _delete(self) -> None:
        with _drained(self._directory):
            for name in _OUTPUTS:
                _close(self.take(name))
            try:
                if self._with_stdin:
                    # runc's shims keep a writer of their own to a FIFO that is a terminal's input,
                    # and Delete doesn't close it: with it each exec would cost four descriptors.
                    await self.end_stdin()
                await self._shim.task.delete(self.container, self.id, timeout=DELETE_TIMEOUT)
            except NotFound:
                pass
            except Error as error:
                self._failed("exec not deleted", error)
        try:
            async with step("exec.remove"):
                _remove_fifos(self._directory)
        except (Error, OSError) as error:  # they go with the container
            self._failed("exec's FIFOs not removed", error)

    def _failed(self, what: str, error: Exception) -> None:
        _log.warning(what, container=self.container, exec=self.id, error=one_line(error))

    async def _end_start(self) -> None:
        """Lets a start come to its end (it has a deadline): only then it is known what to kill."""
        if self._starting is None or self._wait is None:
            return
        await asyncio.wait((self._starting,))
        if self._starting.exception() is None:
            self.pid = self._starting.result()
            return
        try:
            await self._shim.task.kill(self.container, signal.SIGKILL, self.id)
        except Error:
            self._wait.cancel()  # it didn't start, so there is no end to wait for


class Execs:
    """Starts processes in running containers."""

    def __init__(
        self,
        *,
        containers: Containers,
        directory: Path,
        metrics: Metrics,
        moves: Moves,
        drain_timeout: float,
    ) -> None:
        """
        Args:
            directory: where FIFOs are made.
            moves: told of each start.
            drain_timeout: seconds that a child holding the output open can delay a result.
        """
        self._containers = containers
        self._directory = directory
        self._metrics = metrics
        self._moves = moves
        self._drain_timeout = drain_timeout
        self._behind: set[asyncio.Task[None]] = set()
        containers.subscribe(self._forget)

    def _forget(self, notice: ContainerNotice) -> None:
        """What could not be removed after an exec goes with its container."""
        if notice.kind is ContainerEventKind.DELETED:
            for directory in _directories(self._directory, notice.record.meta.id):
                _remove_fifos(directory)

    async def recover(self) -> None:
        """Ends the execs of an earlier server: nobody reads what they write any more."""
        for directory in await blocking.call(_directories, self._directory):
            shim = self._containers.shim_of(directory.parent.name)
            if shim is not None:
                with _drained(directory):
                    await self._end(shim, directory.parent.name, directory.name)
            _remove_fifos(directory)

    async def _end(self, shim: Shim, container: str, exec_id: str) -> None:
        try:
            await shim.task.kill(container, signal.SIGKILL, exec_id)
            await shim.task.wait(container, exec_id, timeout=KILL_TIMEOUT)
            await shim.task.delete(container, exec_id)
        except Error as error:
            _log.info("exec of an earlier server", exec=exec_id, error=one_line(error))

    async def open(
        self,
        id_: str,
        process: Callable[[dict[str, Any]], dict[str, Any]],
        *,
        streams: Sequence[str],
        terminal: bool,
    ) -> Exec:
        """Starts a process; the caller owns the result and closes it.

        Args:
            process: the OCI Process to run, given the container's OCI spec.

        Raises:
            NotFound: no such container.
            FailedPrecondition: it doesn't run.
            Error: the shim or the runtime failed; nothing is left behind.
        """
        record = self._containers.running(id_)
        shim = self._containers.shim(id_)
        # On the loop, as `_open`: some 20 KiB in /run; a thread would take longer to be woken.
        spec = bundles.read_config(Path(record.meta.bundle))
        exec_ = Exec(
            container=record.meta.id,
            directory=self._directory / record.meta.id / secrets.token_hex(16),
            shim=shim,
            behind=self._behind,
        )
        try:
            with self._metrics.stage("exec", "start"), self._moves.expected():
                await exec_.start(process(spec), streams=streams, terminal=terminal)
        except BaseException:
            await asyncio.shield(exec_.aclose())
            raise
        return exec_

    async def run(
        self,
        id_: str,
        process: Callable[[dict[str, Any]], dict[str, Any]],
        *,
        timeout: float | None,
        limit: int = OUTPUT_LIMIT,
    ) -> ExecResult:
        """Runs a process to its end and keeps what it writes.

        Args:
            timeout: seconds, from now; None = no limit.
            limit: bytes kept of each stream; the rest is read and dropped.

        Raises:
            DeadlineExceeded: the timeout ran out; its process group was killed.
        """
        try:
            async with asyncio.timeout(timeout) as deadline:
                return await self._run(id_, process, limit)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise DeadlineExceeded(
                f"container {id_}: the command did not end within {timeout:g} s and was killed"
            ) from None

    async def _run(
        self, id_: str, process: Callable[[dict[str, Any]], dict[str, Any]], limit: int
    ) -> ExecResult:
        exec_ = await self.open(id_, process, streams=("stdout", "stderr"), terminal=False)
        outputs = [_Capture(fd, limit) for fd in (exec_.stdout, exec_.stderr)]
        try:
            code = await exec_.wait()
            # Whatever it wrote is in the FIFO or on its way there; a child of it that still holds
            # the output may not keep us.
            await asyncio.wait([o.eof for o in outputs], timeout=self._drain_timeout)
        finally:
            for output in outputs:
                output.close()
            await asyncio.shield(exec_.aclose())
        out, err = outputs
        return ExecResult(bytes(out.data), bytes(err.data), code, out.truncated or err.truncated)


class _Capture:
    """Reads a FIFO as data come; keeps the first `limit` bytes."""

    def __init__(self, fd: int, limit: int) -> None:
        self.data = bytearray()
        self.truncated = False
        self.fd = fd  # stays its owner's
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self.eof: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(fd, self._read)

    def _read(self) -> None:
        try:
            chunk = os.read(self.fd, _CHUNK)
        except BlockingIOError:
            return
        if not chunk:
            self.close()
            return
        room = self._limit - len(self.data)
        self.data += chunk[:room]
        self.truncated = self.truncated or len(chunk) > room

    def close(self) -> None:
        if not self.eof.done():
            self._loop.remove_reader(self.fd)
            self.eof.set_result(None)


@contextlib.contextmanager
def _drained(directory: Path) -> Iterator[None]:
    """Reads and drops what an ended exec has written, for as long as the shim is deleting it.

    A shim keeps reading ends of its own open: what it can't write to a FIFO that nobody reads any
    more it would wait with for ever, and the FIFO would stay.
    """
    drains = []
    for name in _OUTPUTS:
        with contextlib.suppress(FileNotFoundError):
            drains.append(_Capture(open_read_end(str(directory / name)), 0))
    try:
        yield
    finally:
        for drain in drains:
            drain.close()
            os.close(drain.fd)


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)


def _directories(root: Path, container: str = "*") -> list[Path]:
    return sorted(root.glob(f"{container}/*"))


def _remove_fifos(directory: Path) -> None:
    for name in ("stdin", "stdout", "stderr"):
        (directory / name).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        directory.rmdir()
    with contextlib.suppress(OSError):  # the container has other execs
        directory.parent.rmdir()
