"""Opening, migrating, writing and closing: what a database promises whichever it is."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from kapell_server.domain.errors import KapellError
from kapell_server.store import migrate
from kapell_server.store.database import Database, SqliteDatabase, StorageError, open_database
from kapell_server.store.schema import VERSION, meta, metadata
from sqlalchemy import event
from sqlalchemy.engine import Connection

from tests.support.live_engine import live_engine, new_task, settled


@pytest.fixture
async def database(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    database = await open_database(database_url, tmp_path)
    yield database
    await database.close()


def put(name: str, value: str = "x") -> sa.Insert:
    return sa.insert(meta).values(name=name, value=value)


def names(connection: Connection) -> list[str]:
    return sorted(connection.scalars(sa.select(meta.c.name)))


# -- schema --------------------------------------------------------------------------------------


def described(connection: Connection) -> dict[str, object]:
    """Tables, columns, keys and indexes as the database has them."""
    inspector = sa.inspect(connection)
    return {
        table: (
            [(column["name"], str(column["type"]), column["nullable"]) for column in inspector.get_columns(table)],
            inspector.get_pk_constraint(table)["constrained_columns"],
            sorted(
                (index["name"], index["column_names"], bool(index["unique"])) for index in inspector.get_indexes(table)
            ),
        )
        for table in sorted(inspector.get_table_names())
    }


async def test_a_fresh_schema_and_a_migrated_one_are_the_same(database: Database) -> None:
    fresh = await database.read(described)

    def rebuild(connection: Connection) -> dict[str, object]:
        metadata.drop_all(connection)
        connection.execute(sa.text("DROP TABLE alembic_version"))
        migrate.upgrade(connection)
        return described(connection)

    assert await database.write(rebuild) == fresh


async def test_alembic_finds_nothing_to_change(database: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata))

    assert await database.read(differences) == []


def test_the_version_is_the_newest_migration() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))

    assert ScriptDirectory.from_config(config).get_heads() == [VERSION]


async def test_a_database_keeps_its_identity(database_url: str, tmp_path: Path) -> None:
    ids = set()
    for _ in range(2):
        database = await open_database(database_url, tmp_path)
        ids.add(await database.read(lambda c: c.scalar(sa.select(meta.c.value).where(meta.c.name == "log_id"))))
        await database.close()

    [log_id] = ids
    assert str(log_id).startswith("log_")


async def test_a_copied_database_gets_an_identity_of_its_own(database: Database) -> None:
    def log_id(connection: Connection) -> str | None:
        return connection.scalar(sa.select(meta.c.value).where(meta.c.name == "log_id"))

    before = await database.read(log_id)

    begun = await database.write(migrate.begin_new_log)

    assert await database.read(log_id) == begun
    assert begun != before


async def test_an_empty_database_that_knows_migrations_is_migrated(database_url: str, tmp_path: Path) -> None:
    database = await open_database(database_url, tmp_path)
    await database.write(metadata.drop_all)
    await database.write(lambda connection: connection.execute(sa.text("DELETE FROM alembic_version")))
    await database.close()

    database = await open_database(database_url, tmp_path)

    assert set(metadata.tables) <= set(await database.read(lambda c: sa.inspect(c).get_table_names()))
    await database.close()


async def test_a_database_of_a_newer_version_is_refused(database_url: str, tmp_path: Path) -> None:
    database = await open_database(database_url, tmp_path)
    await database.write(lambda c: c.execute(sa.text("UPDATE alembic_version SET version_num = '9999'")))
    await database.close()

    with pytest.raises(StorageError, match=r"schema 9999 is not known .* Start the version that made it"):
        await open_database(database_url, tmp_path)


# -- opening -------------------------------------------------------------------------------------


async def test_an_unsupported_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="'mysql', which is not supported"):
        await open_database("mysql://user@host/name", tmp_path)


async def test_a_sqlite_file_may_be_named(tmp_path: Path) -> None:
    database = await open_database(f"sqlite:///{tmp_path / 'other.db'}", tmp_path)

    assert database.kind == "sqlite"
    assert (tmp_path / "other.db").exists()
    await database.close()


async def test_what_is_in_a_sqlite_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        database = await open_database("", tmp_path)
    finally:
        os.umask(before)

    modes = {file.name: oct(stat.S_IMODE(file.stat().st_mode)) for file in tmp_path.iterdir()}
    await database.close()

    assert modes == dict.fromkeys(("kapell.db", "kapell.db-wal", "kapell.db-shm"), "0o600")


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kapell.db").write_bytes(b"these are not the pages you are looking for" * 100)

    with pytest.raises(StorageError, match=r"cannot be opened: file is not a database"):
        await open_database("", tmp_path)


async def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot be opened: unable to open database file"):
        await open_database("", tmp_path / "missing")


async def test_an_unreachable_postgresql_is_refused_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Check that PostgreSQL runs") as caught:
        await open_database("postgresql://user:secret@127.0.0.1:1/name", tmp_path)

    assert "secret" not in str(caught.value)


async def test_a_second_server_on_one_postgresql_is_refused(postgresql_url: str, tmp_path: Path) -> None:
    first = await open_database(postgresql_url, tmp_path)

    with pytest.raises(StorageError, match="Another Kapell server uses this database"):
        await open_database(postgresql_url, tmp_path)

    await first.close()
    second = await open_database(postgresql_url, tmp_path)
    await second.close()


# -- writing and reading -------------------------------------------------------------------------


async def test_what_was_written_is_read(database: Database) -> None:
    assert await database.write(lambda connection: connection.execute(put("a")).rowcount) == 1

    assert await database.read(names) == ["a", "log_id"]


async def test_a_write_that_raises_leaves_nothing(database: Database) -> None:
    def work(connection: Connection) -> None:
        connection.execute(put("a"))
        raise LookupError

    with pytest.raises(LookupError):
        await database.write(work)

    assert await database.read(names) == ["log_id"]
    await database.write(lambda connection: connection.execute(put("b")))
    assert await database.read(names) == ["b", "log_id"]


async def test_a_defect_of_ours_is_not_called_a_busy_database(database: Database) -> None:
    def work(connection: Connection) -> None:
        connection.execute(put("a"))
        connection.execute(put("a", "a secret value"))

    with pytest.raises(sa.exc.IntegrityError) as caught:
        await database.write(work)

    assert "a secret value" not in str(caught.value)
    assert await database.read(names) == ["log_id"]


async def test_writes_wait_for_each_other(database: Database) -> None:
    def add(connection: Connection) -> None:
        count = connection.scalar(sa.select(sa.func.count()).select_from(meta))
        connection.execute(put(f"row-{count}"))

    await asyncio.gather(*[database.write(add) for _ in range(10)])

    assert len(await database.read(names)) == 11


async def test_a_read_sees_one_committed_state(database: Database) -> None:
    """The second look of a read, after a write was committed, still sees what the first one saw."""
    looked, written = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def write() -> None:
        await looked.wait()
        await database.write(lambda connection: connection.execute(put("a")))
        written.set()

    def look_twice(connection: Connection) -> tuple[list[str], list[str]]:
        first = names(connection)
        if database.kind == "sqlite":
            loop.call_soon_threadsafe(looked.set)
            asyncio.run_coroutine_threadsafe(written.wait(), loop).result(30)
        else:
            from sqlalchemy.util import await_only

            looked.set()
            await_only(written.wait())
        return first, names(connection)

    (first, second), _ = await asyncio.gather(database.read(look_twice), write())

    assert first == second == ["log_id"]
    assert await database.read(names) == ["a", "log_id"]


async def test_housekeeping_changes_nothing(database: Database) -> None:
    await database.write(lambda connection: connection.execute(put("a")))

    await database.maintain()

    assert await database.read(names) == ["a", "log_id"]


# -- durability and failures ---------------------------------------------------------------------


async def test_sqlite_syncs_each_commit(tmp_path: Path) -> None:
    database = await open_database("", tmp_path)

    def pragmas(connection: Connection) -> tuple[object, ...]:
        names = ("journal_mode", "synchronous", "wal_autocheckpoint")
        return tuple(connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names)

    full = 2
    assert await database.write(pragmas) == ("wal", full, 0)
    assert (await database.read(pragmas))[:2] == ("wal", full)
    await database.close()


async def test_the_checkpoint_moves_the_log_into_the_file(tmp_path: Path) -> None:
    database = await open_database("", tmp_path)
    before = (tmp_path / "kapell.db").stat().st_size

    await database.maintain()

    assert (tmp_path / "kapell.db").stat().st_size > before
    await database.close()


async def test_a_long_wal_begins_anew_though_the_first_look_cannot_move_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kapell_server.store.database._LONG_WAL", 8)
    database = await SqliteDatabase.open(tmp_path / "kapell.db")
    reader = sqlite3.connect(tmp_path / "kapell.db", isolation_level=None, check_same_thread=False)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM meta").fetchall()
    for number in range(8):
        await database.write(lambda c, number=number: c.execute(put(f"row-{number}", "x" * 4096)))  # type: ignore[misc]
    look = database._checkpoint

    def look_before_the_reader_ends() -> int:
        frames = look()
        reader.close()
        return frames

    monkeypatch.setattr(database, "_checkpoint", look_before_the_reader_ends)

    await database.maintain()

    size = (tmp_path / "kapell.db-wal").stat().st_size
    await database.write(lambda connection: connection.execute(put("after")))
    assert (tmp_path / "kapell.db-wal").stat().st_size == size
    await database.close()


async def test_a_locked_file_is_a_busy_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = await open_database("", tmp_path)
    await database.write(lambda connection: connection.exec_driver_sql("PRAGMA busy_timeout=1"))
    thief = sqlite3.connect(tmp_path / "kapell.db", isolation_level=None)
    thief.execute("BEGIN IMMEDIATE")

    with pytest.raises(KapellError) as caught:
        await database.write(lambda connection: connection.execute(put("a")))

    assert caught.value.reason_name == "STORAGE_BUSY"
    thief.execute("ROLLBACK")
    thief.close()
    await database.write(lambda connection: connection.execute(put("a")))
    await database.close()


async def test_a_full_database_refuses_and_changes_nothing_until_there_is_room(tmp_path: Path) -> None:
    async with live_engine("", tmp_path) as live:
        await live.create(prompt="before")

        def limit(connection: Connection) -> int:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            return int(connection.exec_driver_sql(f"PRAGMA max_page_count={pages}").scalar() or 0)

        await live.database.write(limit)
        refusal = await live.refusal(new_task(prompt="x" * 200_000, request_id="r1"))

        assert refusal.reason_name == "STORAGE_FULL"
        assert "Free some space" in refusal.message
        assert [record.revision for record in await live.log()] == [1]
        await live.database.write(lambda c: c.exec_driver_sql("PRAGMA max_page_count=1000000"))
        answer = await live.call(new_task(prompt="x" * 200_000, request_id="r1"))
        assert (answer.revision, answer.replayed) == (2, False)


async def test_a_cancelled_write_is_done_or_not_but_never_half(tmp_path: Path) -> None:
    database = await SqliteDatabase.open(tmp_path / "kapell.db")
    write = asyncio.ensure_future(database.write(lambda connection: connection.execute(put("a"))))
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    write.cancel()
    await asyncio.wait([write])

    await database.write(lambda connection: connection.execute(put("b")))
    assert await database.read(names) in (["a", "b", "log_id"], ["b", "log_id"])
    await database.close()


async def test_a_write_that_is_cancelled_again_and_again_still_ends_before_its_caller(tmp_path: Path) -> None:
    database = await SqliteDatabase.open(tmp_path / "kapell.db")
    begun, go_on = threading.Event(), threading.Event()

    def commit(connection: Connection) -> None:
        begun.set()
        assert go_on.wait(30)

    event.listen(database._write_engine, "commit", commit)
    write = asyncio.ensure_future(database.write(lambda connection: connection.execute(put("a"))))
    await asyncio.get_running_loop().run_in_executor(None, begun.wait)

    for _ in range(3):
        write.cancel()
        await settled(asyncio.sleep(0))
    assert not write.done()
    go_on.set()
    await asyncio.wait([write])

    assert write.cancelled()
    assert await database.read(names) == ["a", "log_id"]
    await database.close()


async def test_lost_connections_are_a_busy_database_and_are_replaced(postgresql_url: str, tmp_path: Path) -> None:
    async with live_engine(postgresql_url, tmp_path) as live:
        first = await live.create()
        await kill_connections(postgresql_url)

        refusal = await live.refusal(new_task())

        assert refusal.reason_name == "STORAGE_BUSY"
        assert (await live.create()).revision == first.revision + 1
        assert [record.revision for record in await live.log()] == [1, 2]


async def test_a_lost_connection_of_a_read_is_a_busy_database(postgresql_url: str, tmp_path: Path) -> None:
    database = await open_database(postgresql_url, tmp_path)
    await database.read(names)
    await kill_connections(postgresql_url)

    with pytest.raises(KapellError) as caught:
        await database.read(names)

    assert caught.value.reason_name == "STORAGE_BUSY"
    assert await database.read(names) == ["log_id"]
    await database.close()


async def test_a_server_that_lost_its_lock_to_another_writes_nothing(postgresql_url: str, tmp_path: Path) -> None:
    first = await open_database(postgresql_url, tmp_path)
    await kill_connections(postgresql_url)
    second = await open_database(postgresql_url, tmp_path)

    for _ in range(3):
        with pytest.raises(KapellError):
            await first.write(lambda connection: connection.execute(put("a")))

    assert await second.read(names) == ["log_id"]
    await first.close()
    await second.close()


async def kill_connections(url: str) -> None:
    """Ends every connection to the database, as an administrator or a failover does, and waits until they are gone."""
    import asyncpg  # type: ignore[import-untyped]

    connection = await asyncpg.connect(url)
    await connection.execute(
        "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await connection.close()
