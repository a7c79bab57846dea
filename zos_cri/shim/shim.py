"""One shim: a process of its own that outlives us, held by a pidfd."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

import msgspec

from zos_cri import errors
from zos_cri.linux.spawn import PidFd, start_time
from zos_cri.shim import processes
from zos_cri.shim.client import Redialler, socket_path
from zos_cri.shim.handler import Handler
from zos_cri.shim.task import Exit, TaskClient

if TYPE_CHECKING:
    from pathlib import Path

    from zos_cri.shim.bundle import Record
    from zos_cri.shim.logs import LogPump

    Client = tuple[Redialler, TaskClient]


class Shim:
    """A running shim.

    Attributes:
        group: the pod's id; its bundle is `bundle`.
        task: its Task API; it dials again when the connection is gone.
        silent: it didn't answer when it was met after a restart of ours, nor has it since.
    """

    def __init__(
        self, record: Record, pidfd: PidFd, *, bundle: Path, log: LogPump, client: Client
    ) -> None:
        self.group = record.group
        self.handler = record.handler
        self.bundle = bundle
        self.record = record
        self.connection, self.task = client
        self.stopping = False
        self.silent = False
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
    return connection, TaskClient(connection, version=record.version, namespace=namespace)


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
