"""One shim: a process of its own that outlives us, held by a pidfd."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from zos_cri import errors
from zos_cri.linux import blocking
from zos_cri.linux.spawn import PidFd, start_time
from zos_cri.log import get_log
from zos_cri.shim import processes, sandbox
from zos_cri.shim.client import Redialler, socket_path
from zos_cri.shim.handler import Handler
from zos_cri.shim.sandbox import SandboxClient
from zos_cri.shim.task import Exit, TaskClient

if TYPE_CHECKING:
    from pathlib import Path

    from zos_cri.shim.bundle import Record
    from zos_cri.shim.logs import LogPump

_log = get_log(__name__)


class Client(NamedTuple):
    """What speaks to a shim: `sandbox` is None where it makes no sandboxes."""

    connection: Redialler
    task: TaskClient
    sandbox: SandboxClient | None


class Shim:
    """A running shim.

    Attributes:
        group: its id; its bundle is `bundle`.
        task: its Task API; it dials again when the connection is gone.
        sandbox: its sandbox API, over the same; None where its handler doesn't use it.
        silent: it didn't answer when it was met after a restart of ours, nor has it since.
        cleaned: set once it has died and what its containers left is removed, or nobody will
            do so. Until then their bundles are needed.
    """

    def __init__(
        self, record: Record, pidfd: PidFd, *, bundle: Path, log: LogPump, client: Client
    ) -> None:
        self.group = record.group
        self.handler = record.handler
        self.bundle = bundle
        self.record = record
        self.connection, self.task, self.sandbox = client
        self.stopping = False
        self.silent = False
        self.cleaned = asyncio.Event()
        self._closed = False
        self._pidfd = pidfd
        self._log = log

    @property
    def pid(self) -> int:
        return self.record.pid

    @property
    def address(self) -> str:
        return self.record.address

    @property
    def version(self) -> int:
        """Of its Task API: 2 or 3."""
        return self.task.version

    @property
    def alive(self) -> bool:
        """Whether its process runs; it may not answer for all that. False once it is let go."""
        return not self._closed and self._pidfd.alive

    async def gone(self, timeout: float | None = None) -> bool:
        """Waits for its process to end; False where `timeout` seconds ran out before."""
        return await self._pidfd.wait(timeout)

    async def answers(self, timeout: float) -> None:
        """Asks for a sign of life.

        Raises:
            Unavailable, DeadlineExceeded: there is none.
        """
        try:
            if self.sandbox is not None:
                await self.sandbox.ping(self.group, timeout=timeout)
            else:
                await self.task.connect(self.group, timeout=timeout)
        except (errors.Unavailable, errors.DeadlineExceeded):
            raise
        except errors.Error as error:
            if self.sandbox is None:
                raise
            _log.debug("shim ping", group=self.group, error=error)  # a no is an answer

    async def ask_to_go(self) -> None:
        """Asks the shim to end, with its sandbox where it has made one.

        Raises:
            Error: it won't, or went before its answer did.
        """
        if self.sandbox is None:
            await self.task.shutdown(self.group)
            return
        try:
            await self.sandbox.stop(self.group)
        except errors.NotFound:
            pass  # it was never created
        except errors.Error as error:
            _log.warning("sandbox not stopped", group=self.group, error=errors.one_line(error))
        await self.sandbox.shutdown(self.group)

    def kill(self) -> None:
        """SIGKILL to this very process. Its containers live on without it."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self._pidfd.send_signal(signal.SIGKILL)

    async def close(self) -> None:
        """Lets go of it; the process isn't touched."""
        self._closed = True
        await self.connection.close()
        self._log.close()
        self._pidfd.close()

    def __repr__(self) -> str:
        return f"<Shim {self.group} pid={self.pid} v{self.version}>"


class DeadShim(msgspec.Struct, frozen=True):
    """A shim proved dead, after `delete` was run for each of its containers.

    Attributes:
        pid: 0 for one that was about to be started when we were killed.
        exits: of every container that has a bundle, by id, also of those that had ended or were
            never created: keep what you know better. From the shim's notes where it made any (2.3
            and later), else 137; 255 where `delete` failed.
        failures: of those `delete`s, by container id; the next `stop` of the group tries again.
    """

    group: str
    handler: Handler
    pid: int
    exits: dict[str, Exit]
    failures: dict[str, str] = {}


def client(record: Record, namespace: str) -> Client:
    """What speaks to a shim; it dials when it is first used."""
    connection = Redialler(record.address, peer=f"shim {record.group}")
    task = TaskClient(connection, version=record.version, namespace=namespace)
    if not record.handler.makes_sandboxes:
        return Client(connection, task, None)
    return Client(connection, task, SandboxClient(connection, namespace=namespace))


async def identify(client: Client, record: Record, path: Path, *, timeout: float) -> int:
    """The pid of a shim that was just started.

    Raises:
        FailedPrecondition: it can't make sandboxes, which its handler wants of it.
        Error: it doesn't say, and can't be found.
    """
    try:
        connected = await client.task.connect(record.group, timeout=timeout)
    except (errors.Unavailable, errors.DeadlineExceeded):
        raise
    except errors.Error:
        # Some know nothing of tasks before there is a sandbox.
        if client.sandbox is None:
            raise
        pid = await blocking.call(_listening, record, path)
        if not pid:
            raise
    else:
        pid = connected.shim_pid
    if client.sandbox is not None and client.task.version < sandbox.TASK_VERSION:
        raise errors.FailedPrecondition(
            f"shim {record.binary}: speaks version {client.task.version} of the Task API:"
            f' sandboxer = "shim" of the handler "{record.handler.name}" needs version'
            f" {sandbox.TASK_VERSION} and the sandbox API (containerd.runtime.sandbox.v1)"
        )
    return pid


def _listening(record: Record, path: Path) -> int:
    """The process of a bundle that listens on the shim's address; 0 where there is none; blocks."""
    address = socket_path(record.address)
    pids = processes.of_bundle(path, record.group)
    return next((pid for pid in pids if processes.listens_on(pid, address)), 0)


def prove(pid: int, path: Path, record: Record) -> tuple[PidFd, int]:
    """A descriptor of the process that a shim says it is, and its start time; blocks.

    Raises:
        FailedPrecondition: that process isn't the shim.
    """
    pidfd = PidFd.open(pid) if pid else None
    if pidfd is None:
        raise errors.FailedPrecondition(f"shim for {record.group}: its pid {pid} is no process")
    try:
        started = start_time(pid)
        if not (
            processes.is_shim(pid, path, record.group)
            or processes.listens_on(pid, socket_path(record.address))
        ):
            raise errors.FailedPrecondition(
                f"shim for {record.group}: pid {pid} neither runs in {path}"
                f" nor listens on {record.address}"
            )
    except BaseException:
        pidfd.close()
        raise
    return pidfd, started
