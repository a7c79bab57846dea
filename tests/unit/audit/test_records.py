"""Records are read from the file, whoever has it open."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from zos_cri.audit import records
from zos_cri.audit.expected import Records
from zos_cri.errors import DataLoss, FailedPrecondition
from zos_cri.store.db import Database
from zos_cri.store.model import SandboxMeta, SandboxStatus

if TYPE_CHECKING:
    from pathlib import Path


async def _fill(path: Path) -> Database:
    database = Database(path)
    meta = SandboxMeta(id="p", name="p", config=b"", handler="runc", created_at=1)
    await database.sandboxes.insert(meta, SandboxStatus())
    return database


async def test_beside_a_server_and_after_it(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    database = await _fill(path)
    beside = records.read(path)
    database.close()
    assert [meta.id for meta, _ in beside.sandboxes] == ["p"]
    assert records.read(path) == beside


def test_no_file_has_no_records(tmp_path: Path) -> None:
    assert records.read(tmp_path / "state.db") == Records()
    assert list(tmp_path.iterdir()) == []


async def test_damaged_rows_are_known_by_their_ids(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    (await _fill(path)).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE sandbox SET status = CAST('nonsense' AS BLOB)")
        connection.execute("INSERT INTO container_damaged VALUES ('c', NULL, NULL, NULL)")
    found = records.read(path)
    assert found == Records(damaged=("c", "p"))


async def test_newer_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    (await _fill(path)).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=999")
    with pytest.raises(FailedPrecondition, match="format 999 is newer"):
        records.read(path)


def test_another_file_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_text("no database " * 100)
    with pytest.raises(DataLoss, match=r"state\.db"):
        records.read(path)
