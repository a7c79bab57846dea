"""The records, read from the state file beside whoever has it open."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from zos_cri.audit.expected import Records
from zos_cri.errors import DataLoss, FailedPrecondition
from zos_cri.store.db import BUSY_TIMEOUT, FORMAT
from zos_cri.store.model import (
    VERSION,
    ContainerMeta,
    ContainerStatus,
    SandboxMeta,
    SandboxStatus,
)

if TYPE_CHECKING:
    from pathlib import Path

Meta = TypeVar("Meta", SandboxMeta, ContainerMeta)
Status = TypeVar("Status", SandboxStatus, ContainerStatus)
_TABLES: Final = ("sandbox", "container")


def read(path: Path) -> Records:
    """All records in a state file; none where there is no file. Blocks.

    A record that can't be read counts as damaged: what it names may well be wanted.

    Raises:
        FailedPrecondition: a newer version wrote it.
        DataLoss: it is no state file.
    """
    if not path.exists():
        return Records()
    try:
        # Not mode=ro: that can't read a file in WAL mode whose last writer has closed it.
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT)
        ) as connection:
            connection.execute("PRAGMA query_only=1")
            found = int(connection.execute("PRAGMA user_version").fetchone()[0])
            if found > FORMAT:
                raise FailedPrecondition(
                    f"{path}: format {found} is newer than {FORMAT}, the newest this version knows"
                )
            return _read(connection)
    except sqlite3.Error as error:
        raise DataLoss(f"{path}: {error}") from error


def _read(connection: sqlite3.Connection) -> Records:
    connection.execute("BEGIN")  # one moment for all tables
    damaged = [
        str(id_)
        for table in _TABLES
        for (id_,) in connection.execute(f"SELECT id FROM {table}_damaged")
    ]
    sandboxes = _table(connection, "sandbox", (SandboxMeta, SandboxStatus), damaged)
    containers = _table(connection, "container", (ContainerMeta, ContainerStatus), damaged)
    return Records(tuple(sandboxes), tuple(containers), tuple(damaged))


def _table(
    connection: sqlite3.Connection,
    name: str,
    types: tuple[type[Meta], type[Status]],
    damaged: list[str],
) -> list[tuple[Meta, Status]]:
    decoders = msgspec.json.Decoder(types[0]), msgspec.json.Decoder(types[1])
    rows = []
    for id_, meta_data, status_data in connection.execute(f"SELECT id, meta, status FROM {name}"):
        try:
            meta, status = decoders[0].decode(meta_data), decoders[1].decode(status_data)
        except msgspec.MsgspecError:
            damaged.append(id_)
            continue
        newest = max(meta.version, status.version)
        if newest > VERSION:
            raise FailedPrecondition(f"{name} {id_}: version {newest} is newer than {VERSION}")
        rows.append((meta, status))
    return rows
