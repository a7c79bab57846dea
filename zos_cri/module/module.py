"""Run, Inspect, Delete: the container module as 0-OS has it, and what 0-OS added later."""

from __future__ import annotations

import os
import secrets
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol

import msgspec

from zos_cri.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
)
from zos_cri.linux import blocking, namespaces
from zos_cri.log import bind
from zos_cri.module.model import Container, Inspection, Usage, check, check_name
from zos_cri.module.types import NewContainer
from zos_cri.oci import signals
from zos_cri.store.lifecycle import ContainerState
from zos_cri.store.model import Stdio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from pathlib import Path

    from zos_cri.linux.mount import Mount
    from zos_cri.module.containers import Containers
    from zos_cri.module.execs import Execs
    from zos_cri.module.types import ContainerRecord, ExecResult
    from zos_cri.store.model import ContainerMeta

OWNER: Final = "module"
PATH_TIMEOUT: Final = 10.0  # a look at a path that the caller names, which may be on a dead mount
LOG_CHUNK: Final = 64 * 1024
LOG_POLL: Final = 0.2  # seconds between looks at a log that is followed: files can't be awaited
MAX_TAIL_LINES: Final = 1_000_000


class RootfsProvider(Protocol):
    """Turns what `flist` says into mounts for a container's own use."""

    async def prepare(self, flist: str, container_id: str) -> tuple[Mount, ...]:
        """The mounts that the shim makes. Raises NotFound, InvalidArgument."""

    async def release(self, container_id: str) -> None:
        """Gives back what `prepare` made; nothing to do a second time."""


class SpecBuilder(Protocol):
    """Makes the OCI spec of a module container (`zos_cri.oci`, with this host's facts).

    It is called in a thread: an elevated container's has the host's devices.
    """

    def __call__(self, *, id: str, container: Container, cgroup: str) -> dict[str, Any]: ...  # noqa: A002


class ContainerModule:
    """The module's calls. All of them may be made at any time, from many tasks."""

    def __init__(
        self,
        *,
        containers: Containers,
        execs: Execs,
        rootfs: RootfsProvider,
        spec: SpecBuilder,
        exec_process: Callable[[dict[str, Any], Sequence[str]], dict[str, Any]],
        usage: Callable[[str], Usage],
        handler: str,
        logs: Path,
    ) -> None:
        """
        Args:
            exec_process: the OCI Process for a command, given the container's spec.
            usage: reads what a cgroup (logical path) uses; called in a thread.
            handler: the runtime handler of the module's own containers.
            logs: logs are `<logs>/<ns>/<name>.log`.
        """
        self._containers = containers
        self._execs = execs
        self._rootfs = rootfs
        self._spec = spec
        self._exec_process = exec_process
        self._usage = usage
        self._handler = handler
        self._logs = logs
        containers.own(OWNER, self)

    # ---- run, inspect, delete

    async def run(self, ns: str, container: Container) -> str:
        """Creates and starts a container; returns its id.

        Raises:
            InvalidArgument: a field is wrong.
            NotFound: the root filesystem, the network namespace or a mount's source isn't there.
            AlreadyExists: the name is taken in this namespace.
            Error: it could not be started. Nothing is left behind in any of these cases.
        """
        check_name(ns, "ns")
        check(container)
        if self._containers.table.by_key(f"{ns}/{container.name}") is not None:
            raise AlreadyExists(f'ns "{ns}" has a container named "{container.name}" already')
        id_ = secrets.token_hex(32)
        with bind(container=id_):
            await self._containers.to_its_end(lambda: self._run(ns, id_, container))
        return id_

    async def _run(self, ns: str, id_: str, container: Container) -> None:
        await self._check_paths(container)
        async with AsyncExitStack() as undo:
            rootfs = await self._rootfs.prepare(container.flist, id_)
            undo.push_async_callback(self._rootfs.release, id_)
            log = self.log_path(ns, container.name)
            await blocking.call(_prepare_log, log, container.interactive)
            cgroup = f"/zos/{ns}/{id_}"
            spec = await blocking.call(
                partial(self._spec, id=id_, container=container, cgroup=cgroup)
            )
            await self._containers.create(
                NewContainer(
                    id=id_,
                    ns=ns,
                    name=container.name,
                    group=id_,
                    handler=self._handler,
                    spec=spec,
                    cgroup=cgroup,
                    rootfs=rootfs,
                    stdio=_stdio(log, container.interactive),
                    stop_timeout=container.shutdown_timeout,
                    tags=container.tags,
                    owner=OWNER,
                    extra=msgspec.json.encode(msgspec.structs.replace(container, id=id_)),
                )
            )
            undo.push_async_callback(self._containers.remove, id_)
            await self._containers.start(id_)
            undo.pop_all()

    async def _check_paths(self, container: Container) -> None:
        """Looks at the paths that the caller names, where a dead one can't hold up others."""
        await blocking.call_abandonable(
            _check_network, container.network.path, timeout=PATH_TIMEOUT
        )
        for index, mount in enumerate(container.mounts):
            if mount.type in ("", "bind"):
                await blocking.call_abandonable(
                    partial(_check_source, f"mounts[{index}].source", mount.source),
                    timeout=PATH_TIMEOUT,
                    what=mount.source,
                )

    def inspect(self, ns: str, id_: str) -> Inspection:
        """A container as it is now, by its id or name.

        Raises:
            NotFound: there is none in this namespace.
        """
        return self._inspection(self._find(ns, id_))

    async def delete(self, ns: str, id_: str) -> None:
        """Stops and removes a container, by its id or name; its log stays.

        Raises:
            NotFound: there is none in this namespace.
        """
        meta = self._find(ns, id_).meta
        with bind(container=meta.id):
            await self._containers.stop(meta.id)
            await self._containers.remove(meta.id)

    # ---- what 0-OS added

    def list(self, ns: str) -> Sequence[Inspection]:
        """The containers of a namespace, oldest first."""
        return [self._inspection(r) for r in self._own() if r.meta.ns == ns]

    def list_ns(self) -> Sequence[str]:
        """The namespaces that have a container, sorted."""
        return sorted({record.meta.ns for record in self._own()})

    async def exec(
        self, ns: str, id_: str, argv: Sequence[str], *, timeout: float | None = None
    ) -> ExecResult:
        """Runs a command in a running container, in its environment, and waits for its end.

        Raises:
            NotFound: no such container.
            FailedPrecondition: it doesn't run.
            InvalidArgument: no command.
            DeadlineExceeded: `timeout` seconds ran out; the command's processes were killed.
        """
        if not argv or not argv[0]:
            raise InvalidArgument("argv: no command given")
        meta = self._find(ns, id_).meta
        return await self._execs.run(
            meta.id, lambda spec: self._exec_process(spec, argv), timeout=timeout
        )

    async def signal(self, ns: str, id_: str, sig: str) -> None:
        """Sends a signal (`TERM`, `SIGTERM`, `15`) to a container's first process.

        Raises:
            NotFound, FailedPrecondition: as `exec`.
            InvalidArgument: there is no such signal.
        """
        number = parse_signal(sig)
        await self._containers.signal(self._find(ns, id_).meta.id, number)

    async def logs(
        self, ns: str, id_: str, *, follow: bool = False, tail_lines: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """What a container wrote, oldest first; with `follow` until it ends.

        Raises:
            NotFound: no such container.
            InvalidArgument: more lines than `MAX_TAIL_LINES` were asked for.
        """
        record = self._find(ns, id_)
        if tail_lines is not None and tail_lines > MAX_TAIL_LINES:
            raise InvalidArgument(f"tail_lines: more than {MAX_TAIL_LINES}")
        path = self.log_path(ns, record.meta.name)
        try:
            file = await blocking.call(_open, path)
        except FileNotFoundError:
            return
        with file:
            if tail_lines is not None:
                await blocking.call(file.seek, await blocking.call(_tail, path, tail_lines))
            while True:
                # Looked at before the read, so that nothing written before the end is missed.
                ended = self._ended(record.meta.id)
                while chunk := await blocking.call(file.read, LOG_CHUNK):
                    yield chunk
                if ended or not follow:
                    return
                await self._containers.exits.wait(record.meta.id, timeout=LOG_POLL)

    async def stats(self, ns: str, id_: str) -> Usage:
        """What a running container uses.

        Raises:
            NotFound, FailedPrecondition: as `exec`.
        """
        meta = self._containers.running(self._find(ns, id_).meta.id).meta
        return await blocking.call(self._usage, meta.cgroup)

    # ---- recovery

    async def recover(self) -> None:
        """Removes what an interrupted `run` left: its caller never got an id."""
        for record in self._own():
            if record.status.state is ContainerState.CREATED:
                await self._containers.remove(record.meta.id)

    # ---- Owner: called by Containers

    async def starting(self, record: ContainerRecord) -> None:
        """Nothing to prepare: the shim writes the log by itself."""

    async def attaching(self, record: ContainerRecord) -> None:
        """Nor to read."""

    async def task_created(self, record: ContainerRecord, pid: int) -> None:
        """Nobody has a word in it."""

    async def start_undone(self, record: ContainerRecord) -> None:
        """`recover` removes it: nobody was told its id."""

    shim_writes_log: Final = True

    async def exited(self, record: ContainerRecord) -> None:
        """Nothing to take in."""

    async def removing(self, record: ContainerRecord) -> None:
        """Nobody is told."""

    async def removed(self, meta: ContainerMeta) -> None:
        await self._rootfs.release(meta.id)

    # ---- shared

    def log_path(self, ns: str, name: str) -> Path:
        return self._logs / ns / f"{name}.log"

    def _own(self) -> Sequence[ContainerRecord]:
        return [record for record in self._containers if record.meta.owner == OWNER]

    def _ended(self, id_: str) -> bool:
        record = self._containers.get(id_)
        return record is None or record.status.state in (
            ContainerState.EXITED,
            ContainerState.REMOVING,
        )

    def _find(self, ns: str, id_: str) -> ContainerRecord:
        """By id, the beginning of one, or name."""
        record = self._containers.table.by_key(f"{ns}/{id_}")
        if record is None:
            try:
                record = self._containers.find(id_)
            except NotFound:
                record = None
        if record is None or record.meta.ns != ns or record.meta.owner != OWNER:
            raise NotFound(f'ns "{ns}" has no container "{id_}"')
        return record

    def _inspection(self, record: ContainerRecord) -> Inspection:
        meta, status = record
        return Inspection(
            ns=meta.ns,
            container=msgspec.json.decode(meta.extra, type=Container),
            state=status.state.value,
            pid=status.pid,
            created_at=meta.created_at,
            started_at=status.started_at,
            finished_at=status.finished_at,
            exit_code=status.exit_code,
            reason=status.reason,
            message=status.message,
            log_path=str(self.log_path(meta.ns, meta.name)),
        )


def parse_signal(text: str) -> int:
    """A signal's number from its name, with or without SIG, or its number.

    Raises:
        InvalidArgument: there is none.
    """
    number = signals.number(text)
    if number is None:
        raise InvalidArgument(f'signal: there is no "{text[:80]}"')
    return number


def _stdio(log: Path, terminal: bool) -> Stdio:
    # With a terminal, shims take no file:// but open a plain path for writing.
    where = str(log) if terminal else f"file://{log}"
    return Stdio(stdout=where, stderr="" if terminal else where, terminal=terminal)


def _prepare_log(path: Path, terminal: bool) -> None:
    """Makes the log's directory, and the file: the shim's own would be readable by everyone."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    # A terminal's output is written from the file's start: the log of an earlier container of this
    # name would be overwritten in part.
    os.close(os.open(path, flags | (os.O_TRUNC if terminal else os.O_APPEND), 0o640))


def _open(path: Path) -> BinaryIO:
    return path.open("rb")


def _check_network(path: str) -> None:
    if not path.startswith("/"):
        raise InvalidArgument(f'network.namespace: "{path}" is not an absolute path')
    try:
        os.stat(path)
    except OSError as error:
        raise NotFound(f"network.namespace: {path}: {error.strerror}") from error
    if namespaces.kind_of(path) != "net":
        raise InvalidArgument(f"network.namespace: {path} is not a network namespace")


def _check_source(field: str, source: str) -> None:
    if not source.startswith("/"):
        raise InvalidArgument(f'{field}: "{source}" is not an absolute path')
    try:
        os.stat(source)
    except OSError as error:
        raise NotFound(f"{field}: {source}: {error.strerror}") from error


def _tail(path: Path, lines: int) -> int:
    """Where the last `lines` lines of a file begin: found from its end, a chunk at a time."""
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        if not lines or not position:
            return position
        file.seek(position - 1)
        # The newline at the end ends the last line and begins none.
        wanted = lines + (file.read(1) == b"\n")
        while position:
            size = min(LOG_CHUNK, position)
            position -= size
            file.seek(position)
            chunk = file.read(size)
            found = chunk.count(b"\n")
            if found >= wanted:
                at = len(chunk)
                for _ in range(wanted):
                    at = chunk.rindex(b"\n", 0, at)
                return position + at + 1
            wanted -= found
        return 0
