"""The state file: SQLite in WAL mode, one writer thread, one row a record.

Every record is held in memory as well: reads never touch the file. A write is in the file before it
can be seen in memory (`synchronous=NORMAL`: it survives the death of the process; after the death
of the host no container is left for it to speak of). Where it can't be written, what is only meant
to happen doesn't (`update`), and what has happened already (`note`) is told all the same, and
written as soon as the file takes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

import msgspec

from zos_cri.errors import (
    AlreadyExists,
    DataLoss,
    Error,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    Unavailable,
    one_line,
)
from zos_cri.failpoints import step
from zos_cri.linux.threads import Threads
from zos_cri.log import get_log
from zos_cri.store.model import (
    VERSION,
    ContainerMeta,
    ContainerStatus,
    SandboxMeta,
    SandboxStatus,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from pathlib import Path

_log = get_log(__name__)

FORMAT: Final = 1  # of the file; rows carry their own version
ID_LENGTH: Final = 64  # hex digits, as containerd's ids: tools truncate them to 13
BUSY_TIMEOUT: Final = 5.0  # seconds; only `zos-cri audit` or a person's sqlite3 can be in the way
BEHIND_PAUSE: Final = 1.0  # seconds between tries to write what could not be written
_TABLES: Final = ("sandbox", "container")

Meta = TypeVar("Meta", SandboxMeta, ContainerMeta)
Status = TypeVar("Status", SandboxStatus, ContainerStatus)
T = TypeVar("T")


def container_key(meta: ContainerMeta) -> str:
    """What is unique among containers beside the id: the name within its namespace."""
    return f"{meta.ns}/{meta.name}"


class Record(NamedTuple, Generic[Meta, Status]):
    """One sandbox or container, as it was at one moment."""

    meta: Meta
    status: Status


# Told of a record as it was before a change and as it is after it; None = not there.
Watcher: TypeAlias = "Callable[[Record[Meta, Status] | None, Record[Meta, Status] | None], None]"


class Database:
    """The state file, open. `sandboxes` and `containers` are its tables."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the file.

        Raises:
            FailedPrecondition: the file was written by a newer version.
            DataLoss: it is no SQLite file, or a damaged one.
        """
        self._path = path
        self._thread = Threads("state-db", 1)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
        try:
            self._connection = self._thread.wait_for(self._open)
        except BaseException:
            self._thread.close()
            raise
        self.sandboxes: Table[SandboxMeta, SandboxStatus] = Table(
            self, "sandbox", SandboxMeta, SandboxStatus, key=lambda meta: meta.name
        )
        self.containers: Table[ContainerMeta, ContainerStatus] = Table(
            self, "container", ContainerMeta, ContainerStatus, key=container_key
        )
        try:
            self.sandboxes.load()
            self.containers.load()
        except BaseException:
            self.close()
            raise

    def _open(self) -> sqlite3.Connection:
        # It holds environments, which hold secrets. SQLite gives its other files the same mode.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT, isolation_level=None)
        try:
            self._prepare(connection)
        except sqlite3.DatabaseError as error:
            connection.close()
            raise DataLoss(f"{self._path}: {error}: move it away to start anew") from error
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        found = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if found > FORMAT:
            raise FailedPrecondition(
                f"{self._path}: format {found} is newer than {FORMAT}, the newest this version"
                " knows: run the version that wrote it"
            )
        for table in _TABLES:
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS {table}"
                " (id TEXT PRIMARY KEY, meta BLOB NOT NULL, status BLOB NOT NULL) STRICT"
            )
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS {table}_damaged"
                " (id TEXT PRIMARY KEY, meta BLOB, status BLOB, why TEXT) STRICT"
            )
        connection.execute(f"PRAGMA user_version={FORMAT}")

    def damaged(self) -> tuple[str, ...]:
        """The ids of the records that are set aside, now and earlier. Blocks; for start-up."""
        return tuple(
            str(id_)
            for table in _TABLES
            for (id_,) in self.execute_now(f"SELECT id FROM {table}_damaged")
        )

    async def execute(self, sql: str, *values: Any) -> None:
        """Runs one statement in the writer thread and waits for it.

        Raises:
            ResourceExhausted: the disk is full.
            Unavailable: the file can't be written for another reason.
        """
        try:
            await self._thread.submit(self._connection.execute, sql, values)
        except sqlite3.Error as error:
            full = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
            kind = ResourceExhausted if full else Unavailable
            raise kind(f"{self._path}: {error}") from error

    def execute_now(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """The same, for start-up: blocks the caller; answers the rows."""

        def run() -> list[tuple[Any, ...]]:
            return self._connection.execute(sql, values).fetchall()

        return self._thread.wait_for(run)

    def close(self) -> None:
        """Ends the writer after what was queued, and closes the file."""
        self.sandboxes.close()
        self.containers.close()
        self._thread.wait_for(self._connection.close)
        self._thread.close()


class Table(Generic[Meta, Status]):
    """All records of one kind, in memory and in the file."""

    def __init__(
        self,
        db: Database,
        name: str,
        meta: type[Meta],
        status: type[Status],
        *,
        key: Callable[[Meta], str],
    ) -> None:
        self._db = db
        self._name = name
        self._key: Callable[[Meta], str] = key
        self._meta: msgspec.json.Decoder[Meta] = msgspec.json.Decoder(meta)
        self._status: msgspec.json.Decoder[Status] = msgspec.json.Decoder(status)
        self._records: dict[str, Record[Meta, Status]] = {}
        self._ids: dict[str, str] = {}  # by key
        self._ordered: list[str] = []  # ids, oldest first; empty = to be sorted anew
        self._locks: dict[str, asyncio.Lock] = {}
        self._watchers: list[Watcher[Meta, Status]] = []
        self._behind: dict[str, asyncio.Event] = {}  # what the file doesn't say yet; set = it does
        self._catching_up: asyncio.Task[None] | None = None
        self.set_aside = 0  # rows that `load` could not read

    def load(self) -> None:
        """Reads the file's rows; a row that can't be read is set aside, never fatal.

        Raises:
            FailedPrecondition: a row was written by a newer version. It isn't set aside: what it
                names may well be running.
        """
        for id_, meta, status in self._db.execute_now(f"SELECT id, meta, status FROM {self._name}"):
            try:
                record = Record(self._meta.decode(meta), self._status.decode(status))
            except msgspec.MsgspecError as error:
                self.set_aside += 1
                _log.error("record set aside", table=self._name, id=id_, error=error)
                self._db.execute_now(
                    f"INSERT OR REPLACE INTO {self._name}_damaged VALUES (?, ?, ?, ?)",
                    *(id_, meta, status, str(error)),
                )
                self._db.execute_now(f"DELETE FROM {self._name} WHERE id = ?", id_)
            else:
                _check_version(record, f"{self._name} {id_}")
                self._records[id_] = record
                self._ids[self._key(record.meta)] = id_

    def watch(self, watcher: Watcher[Meta, Status]) -> None:
        """Tells of every change from now on: the record before and after it, None = not there.

        The watcher is called as the change can be seen, in the changes' order; it must return at
        once and not raise.
        """
        self._watchers.append(watcher)

    def _set(self, id_: str, record: Record[Meta, Status] | None) -> None:
        before = self._records.get(id_)
        if record is not None:
            self._records[id_] = record
        else:
            del self._records[id_]
        for watcher in self._watchers:
            watcher(before, record)

    def __iter__(self) -> Iterator[Record[Meta, Status]]:
        """A snapshot of all records, oldest first."""
        if not self._ordered:
            records = sorted(self._records.values(), key=lambda r: (r.meta.created_at, r.meta.id))
            self._ordered = [record.meta.id for record in records]
        return iter([self._records[id_] for id_ in self._ordered])

    def __len__(self) -> int:
        return len(self._records)

    def get(self, id_: str) -> Record[Meta, Status] | None:
        """The record with exactly this id."""
        return self._records.get(id_)

    def by_key(self, key: str) -> Record[Meta, Status] | None:
        """The record with this key (see `container_key`; a sandbox's is its name)."""
        id_ = self._ids.get(key)
        return self._records.get(id_) if id_ is not None else None

    def find(self, prefix: str) -> Record[Meta, Status]:
        """The record with this id, or the only one whose id begins so (crictl truncates ids).

        Raises:
            NotFound: there is none, or more than one.
        """
        exact = self._records.get(prefix)
        if exact is not None:
            return exact
        whole = len(prefix) >= ID_LENGTH or not prefix
        matches = [] if whole else [id_ for id_ in self._records if id_.startswith(prefix)]
        if len(matches) == 1:
            return self._records[matches[0]]
        if matches:
            raise NotFound(f'{self._name} id "{prefix}" is ambiguous: {len(matches)} begin so')
        raise NotFound(f'no {self._name} with id "{prefix}"')

    async def insert(self, meta: Meta, status: Status) -> None:
        """Adds a record.

        Raises:
            AlreadyExists: the id or the key is taken.
        """
        await _to_its_end(self._insert(meta, status))

    async def _insert(self, meta: Meta, status: Status) -> None:
        key = self._key(meta)
        holder = meta.id if meta.id in self._records else self._ids.get(key)
        if holder is not None:
            raise AlreadyExists(f'{self._name} "{key}" exists already, with id {holder}')
        self._ids[key] = meta.id
        try:
            async with step("record.insert"):
                await self._db.execute(
                    f"INSERT INTO {self._name} VALUES (?, ?, ?)",
                    *(meta.id, msgspec.json.encode(meta), msgspec.json.encode(status)),
                )
        except BaseException:
            del self._ids[key]
            raise
        self._ordered = []
        self._set(meta.id, Record(meta, status))

    async def update(self, id_: str, change: Callable[[Status], Status]) -> Status:
        """Replaces the status by `change` of the present one: copy, change, persist, swap.

        Whatever `change` raises leaves the record as it was.

        Raises:
            NotFound: no such record (any more).
        """
        return await _to_its_end(self._update(id_, change))

    async def _update(
        self, id_: str, change: Callable[[Status], Status], *, noted: bool = False
    ) -> Status:
        async with self._lock(id_):
            record = self._records[id_]
            status = change(record.status)
            if status != record.status:
                try:
                    await self._write(id_, status)
                except Error as error:
                    if not noted:
                        raise
                    self._fall_behind(id_, error)
                self._set(id_, Record(record.meta, status))
            return status

    async def _write(self, id_: str, status: Status) -> None:
        async with step("record.update"):
            await self._db.execute(
                f"UPDATE {self._name} SET status = ? WHERE id = ?",
                *(msgspec.json.encode(status), id_),
            )
        self._caught_up(id_)

    async def note(self, id_: str, change: Callable[[Status], Status]) -> Status:
        """As `update`, of what has happened already: it counts whether it can be written or not.

        What can't be is tried again until it is; `written` waits for that.

        Raises:
            NotFound: no such record (any more).
        """
        return await _to_its_end(self._update(id_, change, noted=True))

    async def written(self, id_: str) -> None:
        """Waits until the file says of a record what memory does, or the record is gone."""
        behind = self._behind.get(id_)
        if behind is not None:
            await behind.wait()

    def _fall_behind(self, id_: str, error: Error) -> None:
        _log.error("record not written", table=self._name, id=id_, error=one_line(error))
        self._behind.setdefault(id_, asyncio.Event())
        if self._catching_up is None or self._catching_up.done():
            self._catching_up = asyncio.create_task(self._catch_up())

    def _caught_up(self, id_: str) -> None:
        behind = self._behind.pop(id_, None)
        if behind is not None:
            behind.set()

    async def _catch_up(self) -> None:
        while self._behind:
            await asyncio.sleep(BEHIND_PAUSE)
            for id_ in list(self._behind):
                with contextlib.suppress(Error):
                    await self._write_behind(id_)
        _log.info("all records written", table=self._name)

    async def _write_behind(self, id_: str) -> None:
        try:
            async with self._lock(id_):
                await self._write(id_, self._records[id_].status)
        except NotFound:
            self._caught_up(id_)

    def close(self) -> None:
        """Writes what is behind, if it can be now. Blocks; for the end."""
        if self._catching_up is not None:
            self._catching_up.cancel()
        for id_ in self._behind:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute_now(
                    f"UPDATE {self._name} SET status = ? WHERE id = ?",
                    *(msgspec.json.encode(self._records[id_].status), id_),
                )

    async def delete(self, id_: str) -> None:
        """Forgets a record; nothing to do where there is none."""
        await _to_its_end(self._delete(id_))

    async def _delete(self, id_: str) -> None:
        with contextlib.suppress(NotFound):
            async with self._lock(id_):
                async with step("record.delete"):
                    await self._db.execute(f"DELETE FROM {self._name} WHERE id = ?", id_)
                self._ordered = []
                del self._ids[self._key(self._records[id_].meta)]
                del self._locks[id_]
                self._set(id_, None)
                self._caught_up(id_)

    @contextlib.asynccontextmanager
    async def _lock(self, id_: str) -> AsyncIterator[None]:
        """Holds the record alone; there are locks for records only, so they don't pile up."""
        if id_ in self._records:
            async with self._locks.setdefault(id_, asyncio.Lock()):
                if id_ in self._records:
                    yield
                    return
        raise NotFound(f'no {self._name} with id "{id_}"')


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """A caller that goes away doesn't part what is in the file from what is in memory."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_seen)
        raise


def _seen(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # it was for the caller, who has left


def _check_version(record: Record[Meta, Status], what: str) -> None:
    newest = max(record.meta.version, record.status.version)
    if newest > VERSION:
        raise FailedPrecondition(
            f"{what}: version {newest} is newer than {VERSION}, the newest this version knows: run"
            " the version that wrote it"
        )
