from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
from contextlib import closing

import msgspec
import pytest

from tests.conftest import ROOT
from zos_cri import failpoints
from zos_cri.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from zos_cri.store.db import Database
from zos_cri.store.lifecycle import ContainerState
from zos_cri.store.model import ContainerMeta, ContainerStatus, SandboxMeta, SandboxStatus

KILL_AFTER = 200  # writes


def container(id_="a" * 64, *, name="web", created_at=1):
    return ContainerMeta(
        id=id_,
        ns="ns",
        name=name,
        group=id_,
        handler="runc",
        created_at=created_at,
        bundle=f"/b/{id_}",
        cgroup="",
    )


def sandbox(id_="s" * 64, name="pod_ns_uid_0"):
    return SandboxMeta(id=id_, name=name, config=b"\0", handler="runc", created_at=1)


def to(state):
    return lambda status: msgspec.structs.replace(status, state=state)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "state.db"


@pytest.fixture
def db(path):
    database = Database(path)
    yield database
    database.close()


def edit(path, sql, *values):
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(sql, values).fetchall()


# ---- records


async def test_records_are_there_after_reopening(path):
    db = Database(path)
    await db.containers.insert(container(), ContainerStatus())
    await db.sandboxes.insert(sandbox(), SandboxStatus(ips=("10.0.0.1",)))
    await db.containers.update("a" * 64, to(ContainerState.RUNNING))
    db.close()
    db = Database(path)
    assert db.containers.find("a" * 64).status.state is ContainerState.RUNNING
    assert [record.status.ips for record in db.sandboxes] == [("10.0.0.1",)]
    assert db.sandboxes.by_key("pod_ns_uid_0") is not None
    await db.containers.delete("a" * 64)
    db.close()
    db = Database(path)
    assert len(db.containers) == 0
    db.close()


async def test_the_oldest_comes_first(db):
    for age, id_ in ((3, "c"), (1, "b"), (1, "a")):
        await db.containers.insert(container(id_, name=id_, created_at=age), ContainerStatus())
    assert [record.meta.id for record in db.containers] == ["a", "b", "c"]
    assert len(db.containers) == 3


async def test_a_taken_name_or_id_is_refused_and_names_its_holder(db):
    await db.containers.insert(container(), ContainerStatus())
    with pytest.raises(AlreadyExists, match=r'container "ns/web" exists already, with id a{64}$'):
        await db.containers.insert(container("b" * 64), ContainerStatus())
    with pytest.raises(AlreadyExists):
        await db.containers.insert(container(name="other"), ContainerStatus())
    await db.containers.delete("a" * 64)
    await db.containers.insert(container("b" * 64), ContainerStatus())


async def test_of_two_inserts_of_one_name_at_once_one_succeeds(db):
    results = await asyncio.gather(
        *(db.containers.insert(container(id_), ContainerStatus()) for id_ in "abc"),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [type(None), AlreadyExists, AlreadyExists]
    assert [record.meta.id for record in db.containers] == ["a"]


async def test_find_takes_the_whole_id_or_an_unambiguous_beginning(db):
    for id_ in ("ab" * 32, "ac" * 32, "ab" * 31 + "aa"):
        await db.containers.insert(container(id_, name=id_[-4:]), ContainerStatus())
    assert db.containers.find("ab" * 32).meta.id == "ab" * 32
    assert db.containers.find("ac").meta.id == "ac" * 32
    with pytest.raises(NotFound, match='container id "ab" is ambiguous: 2 begin so'):
        db.containers.find("ab")
    for absent in ("", "f", "ab" * 31 + "ff", "ab" * 40):
        with pytest.raises(NotFound, match=f'no container with id "{absent}"'):
            db.containers.find(absent)


# ---- updates


async def test_an_update_that_raises_changes_nothing(db):
    await db.containers.insert(container(), ContainerStatus(exit_code=3))

    def fail(status):
        raise FailedPrecondition("no")

    with pytest.raises(FailedPrecondition, match="no"):
        await db.containers.update("a" * 64, fail)
    assert db.containers.get("a" * 64).status == ContainerStatus(exit_code=3)


async def test_updates_of_one_record_come_after_one_another(db):
    await db.containers.insert(container(), ContainerStatus())

    def more(status):
        return msgspec.structs.replace(status, exit_code=status.exit_code + 1)

    await asyncio.gather(*(db.containers.update("a" * 64, more) for _ in range(50)))
    assert db.containers.get("a" * 64).status.exit_code == 50


async def test_what_is_seen_is_in_the_file(db, path):
    await db.containers.insert(container(), ContainerStatus())
    update = asyncio.create_task(db.containers.update("a" * 64, to(ContainerState.EXITED)))
    while db.containers.get("a" * 64).status.state is not ContainerState.EXITED:
        await asyncio.sleep(0)
    [(status,)] = edit(path, "SELECT status FROM container")
    assert b'"exited"' in status
    await update


async def test_a_caller_that_leaves_parts_nothing(db, path):
    await db.containers.insert(container(), ContainerStatus())
    changes = [
        asyncio.create_task(db.containers.update("a" * 64, to(ContainerState.EXITED))),
        asyncio.create_task(db.containers.insert(container("b", name="b"), ContainerStatus())),
    ]
    await asyncio.sleep(0)
    for change in changes:
        change.cancel()
    await asyncio.gather(*changes, return_exceptions=True)
    await db.execute("SELECT 1")  # behind the others
    await asyncio.sleep(0)
    assert db.containers.get("a" * 64).status.state is ContainerState.EXITED
    assert db.containers.by_key("ns/b").meta.id == "b"
    assert edit(path, "SELECT count(*) FROM container") == [(2,)]


async def test_a_record_that_is_gone_is_not_updated_nor_is_a_lock_kept_for_it(db):
    with pytest.raises(NotFound, match='no container with id "x"'):
        await db.containers.update("x", to(ContainerState.EXITED))
    await db.containers.delete("x")
    await db.containers.insert(container(), ContainerStatus())
    await db.containers.update("a" * 64, to(ContainerState.EXITED))
    results = await asyncio.gather(
        db.containers.delete("a" * 64),
        db.containers.update("a" * 64, to(ContainerState.RUNNING)),
        db.containers.delete("a" * 64),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [type(None), NotFound, type(None)]
    assert not db.containers._locks


async def test_a_write_that_fails_leaves_the_record_as_it_was(db, path):
    await db.containers.insert(container(), ContainerStatus())
    await db.execute("PRAGMA query_only=1")
    with pytest.raises(Unavailable, match=r"state\.db: attempt to write a readonly database"):
        await db.containers.update("a" * 64, to(ContainerState.EXITED))
    with pytest.raises(Unavailable):
        await db.containers.insert(container("b", name="b"), ContainerStatus())
    await db.execute("PRAGMA query_only=0")
    assert db.containers.get("a" * 64).status.state is ContainerState.CREATING
    await db.containers.insert(container("b", name="b"), ContainerStatus())


async def test_a_full_disk_is_said_so(db):
    await db.execute("PRAGMA max_page_count=1")
    large = msgspec.structs.replace(container(), extra=b"x" * 100_000)
    with pytest.raises(ResourceExhausted, match="full"):
        await db.containers.insert(large, ContainerStatus())
    assert len(db.containers) == 0


# ---- the file


async def test_what_has_happened_counts_and_is_written_later(db, path, monkeypatch):
    monkeypatch.setattr("zos_cri.store.db.BEHIND_PAUSE", 0.01)
    meta = container()
    await db.containers.insert(meta, ContainerStatus())
    failpoints.arm({"record.update.before": "error"})
    try:
        with pytest.raises(failpoints.Failpoint):
            await db.containers.update(meta.id, to(ContainerState.CREATED))
        assert db.containers.get(meta.id).status.state is ContainerState.CREATING
        await db.containers.note(meta.id, to(ContainerState.EXITED))
        assert db.containers.get(meta.id).status.state is ContainerState.EXITED
        waiting = asyncio.create_task(db.containers.written(meta.id))
        await asyncio.sleep(0.05)
        assert not waiting.done()
    finally:
        failpoints.arm({})
    await waiting
    with closing(sqlite3.connect(path)) as other:
        (status,) = other.execute("SELECT status FROM container").fetchone()
    assert b'"exited"' in status
    await db.containers.written(meta.id)  # nothing to wait for any more


async def test_what_is_not_written_at_the_end_is_written_by_closing(path):
    database = Database(path)
    meta = container()
    await database.containers.insert(meta, ContainerStatus())
    failpoints.arm({"record.update.before": "error"})
    try:
        await database.containers.note(meta.id, to(ContainerState.EXITED))
    finally:
        failpoints.arm({})
    database.close()
    again = Database(path)
    assert [record.status.state for record in again.containers] == [ContainerState.EXITED]
    again.close()


async def test_nobody_waits_for_a_record_that_is_gone(db):
    meta = container()
    await db.containers.insert(meta, ContainerStatus())
    failpoints.arm({"record.update.before": "error"})
    try:
        await db.containers.note(meta.id, to(ContainerState.EXITED))
        waiting = asyncio.create_task(db.containers.written(meta.id))
        await db.containers.delete(meta.id)
        await waiting
    finally:
        failpoints.arm({})


def test_nobody_else_may_read_the_file_nor_its_companions(path):
    mask = os.umask(0)
    try:
        db = Database(path)
    finally:
        os.umask(mask)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()}
    db.close()
    assert set(modes) >= {"state.db", "state.db-wal"}
    assert set(modes.values()) == {0o600}


def test_a_damaged_row_is_set_aside_and_the_others_are_read(path):
    db = Database(path)
    asyncio.run(fill(db))
    db.close()
    edit(path, "UPDATE container SET status = x'00' WHERE id = 'b'")
    for _ in range(2):
        db = Database(path)
        assert [record.meta.id for record in db.containers] == ["a", "c"]
        assert db.containers.by_key("ns/b") is None
        db.close()
    [(id_, why)] = edit(path, "SELECT id, why FROM container_damaged")
    assert id_ == "b"
    assert "JSON" in why


def test_rows_that_are_set_aside_are_counted(path):
    db = Database(path)
    asyncio.run(fill(db))
    db.close()
    edit(path, "UPDATE container SET meta = x'7b7d' WHERE id <> 'b'")
    db = Database(path)
    assert db.containers.set_aside == 2
    assert db.sandboxes.set_aside == 0
    db.close()


def test_a_file_of_a_newer_version_is_refused_untouched(path):
    Database(path).close()
    edit(path, "PRAGMA user_version=7")
    with pytest.raises(
        FailedPrecondition, match=r"state\.db: format 7 is newer than 1, .* run the"
    ):
        Database(path)
    assert edit(path, "PRAGMA user_version") == [(7,)]


def test_a_row_of_a_newer_version_is_refused_not_set_aside(path):
    db = Database(path)
    asyncio.run(fill(db))
    db.close()
    newer = msgspec.json.encode(ContainerStatus(version=9))
    edit(path, "UPDATE container SET status = ? WHERE id = 'b'", newer)
    with pytest.raises(FailedPrecondition, match="container b: version 9 is newer than 2"):
        Database(path)
    assert edit(path, "SELECT count(*) FROM container") == [(3,)]


def test_what_is_no_database_is_said_so(path):
    path.parent.mkdir()
    path.write_bytes(b"no database at all, but long enough to be read as one" * 100)
    with pytest.raises(DataLoss, match=r"state\.db: file is not a database: move it away"):
        Database(path)


def test_every_acknowledged_write_survives_sigkill(path):
    program = textwrap.dedent(
        f"""
        import asyncio, sys
        from pathlib import Path
        from tests.unit.store.test_db import container
        from zos_cri.store.db import Database
        from zos_cri.store.model import ContainerStatus

        async def main():
            db = Database(Path({str(path)!r}))
            for n in range(100_000):
                await db.containers.insert(container(str(n), name=str(n)), ContainerStatus())
                await db.containers.update(
                    str(n), lambda status: ContainerStatus(exit_code=n)
                )
                print(n, flush=True)

        asyncio.run(main())
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == KILL_AFTER:
                break
        process.send_signal(signal.SIGKILL)
        acknowledged = [KILL_AFTER, *(int(x) for x in process.stdout.read().split(b"\n")[:-1])]
    db = Database(path)
    try:
        for n in range(max(acknowledged) + 1):
            assert db.containers.find(str(n).ljust(1)).status.exit_code == n
        assert len(db.containers) <= max(acknowledged) + 2
    finally:
        db.close()


async def fill(db):
    for id_ in "abc":
        await db.containers.insert(container(id_, name=id_), ContainerStatus())


async def test_watchers_are_told_of_every_change_with_the_record_before_and_after(db):
    told = []
    db.sandboxes.watch(lambda before, after: told.append((before, after)))
    meta = sandbox()
    await db.sandboxes.insert(meta, SandboxStatus())
    first = db.sandboxes.get(meta.id)
    await db.sandboxes.update(meta.id, lambda status: status)  # no change
    await db.sandboxes.update(meta.id, to("ready"))
    second = db.sandboxes.get(meta.id)
    await db.sandboxes.delete(meta.id)
    await db.sandboxes.delete(meta.id)
    assert told == [(None, first), (first, second), (second, None)]
