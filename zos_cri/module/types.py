"""What the module's parts hand to each other and to the layers above."""

from __future__ import annotations

import enum
import time
from typing import Any, NamedTuple, Protocol

import msgspec

from zos_cri.linux.mount import Mount
from zos_cri.store.db import Record
from zos_cri.store.model import ContainerMeta, ContainerStatus, Stdio

ContainerRecord = Record[ContainerMeta, ContainerStatus]


class NewContainer(msgspec.Struct, frozen=True, kw_only=True):
    """All that `Containers.create` needs. The OCI spec is complete: the module adds nothing to it.

    Attributes:
        group: whose shim holds it: the pod's id, or the container's own.
        cgroup: the logical cgroup path that the spec asks for, "" where it names none.
        root_uid, root_gid: who root in its user namespace is on the host, 0 where it has the
            host's: its pipes are that user's, and the bundle may be entered by that group.
        kill_all: it has no pid namespace of its own, so ending its init ends nothing else.
        owner: the layer above that `Containers.own` knows, "" for none.
        extra: that layer's own metadata.
        checkpoint: the directory of CRIU's images that it is started from, "" for a new process.
        resources: its limits in the layer above's own encoding, where they aren't in `extra`.
    """

    id: str
    ns: str
    name: str
    group: str
    handler: str
    spec: dict[str, Any]
    cgroup: str
    rootfs: tuple[Mount, ...]
    stdio: Stdio = Stdio()
    stop_signal: int = 15
    stop_timeout: float = 5.0
    kill_all: bool = False
    root_uid: int = 0
    root_gid: int = 0
    tags: dict[str, str] = {}
    owner: str = ""
    extra: bytes = b""
    checkpoint: str = ""
    resources: bytes = b""
    created_at: int = 0  # ns since the epoch; 0 = now

    def meta(self, bundle: str) -> ContainerMeta:
        """What is remembered of it."""
        return ContainerMeta(
            id=self.id,
            ns=self.ns,
            name=self.name,
            group=self.group,
            handler=self.handler,
            created_at=self.created_at or time.time_ns(),
            bundle=bundle,
            cgroup=self.cgroup,
            rootfs=self.rootfs,
            stdio=self.stdio,
            stop_signal=self.stop_signal,
            stop_timeout=self.stop_timeout,
            kill_all=self.kill_all,
            root_uid=self.root_uid,
            root_gid=self.root_gid,
            tags=self.tags,
            owner=self.owner,
            extra=self.extra,
            checkpoint=self.checkpoint,
        )


class Owner(Protocol):
    """The layer above a container. Every call may come again, after a restart as well.

    Attributes:
        shim_writes_log: the shim itself writes the container's log, which is complete only when
            the task is deleted; the exit isn't published before.
    """

    @property
    def shim_writes_log(self) -> bool: ...

    async def starting(self, record: ContainerRecord) -> None:
        """Its task is about to be created: make ready what it writes to.

        Raises:
            Error: it can't be; the start fails with this.
        """

    async def attaching(self, record: ContainerRecord) -> None:
        """Its task is being created meanwhile, and isn't started before this returns.

        Until then nothing reads what it writes to, and the shim must not have to wait for that.

        Raises:
            Error: it can't be read; the start fails with this.
        """

    async def task_created(self, record: ContainerRecord, pid: int) -> None:
        """Its task is there and stopped before its first instruction.

        Raises:
            Error: it is not to be started; the start fails with this.
        """

    async def start_undone(self, record: ContainerRecord) -> None:
        """A start that a killed server left half done was taken back: it may be started again."""

    async def exited(self, record: ContainerRecord) -> None:
        """Its processes are gone and its exit isn't published yet: take its last output in.

        Bounded by the owner; must not raise.
        """

    async def removing(self, record: ContainerRecord) -> None:
        """It has ended, or never ran, and is about to be removed. Bounded; must not raise."""

    async def removed(self, meta: ContainerMeta) -> None:
        """It is gone: release what was lent to it. Raises where that must be tried again."""


class ContainerEventKind(enum.StrEnum):
    """What subscribers are told of."""

    CREATED = "created"
    STARTED = "started"
    STOPPED = "stopped"
    DELETED = "deleted"


class ContainerNotice(NamedTuple):
    """A container's change, with its record as it was right after it."""

    kind: ContainerEventKind
    record: ContainerRecord
    timestamp: int  # ns since the epoch


class ExecResult(NamedTuple):
    """What a process run in a container left.

    Attributes:
        exit_code: 128 + n after signal n.
        truncated: more than the limit came on a stream; the rest was dropped.
    """

    stdout: bytes
    stderr: bytes
    exit_code: int
    truncated: bool = False
