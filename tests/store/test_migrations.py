"""A migrated database is a fresh one: the same tables, and the tasks that were there before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.task_pb2 import TASK_STATE_QUEUED, TASK_STATE_SUCCEEDED, Task
from kapell_server.store.migrate import prepare, upgrade
from kapell_server.store.schema import VERSION, metadata, specialise
from kapell_server.store.usage_tables import usage_values
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from tests.engine.test_usage import history
from tests.support.databases import KINDS, url_of
from tests.support.live_engine import live_engine

VERSIONS = Path(upgrade.__code__.co_filename).parent / "migrations" / "versions"


def opened(path: Path) -> Connection:
    return sa.create_engine(f"sqlite:///{path}", poolclass=sa.NullPool).connect()


def shape(connection: Connection) -> dict[str, Any]:
    """Tables with their columns in order, and indexes."""
    rows = connection.execute(sa.text("SELECT name, type FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")).all()
    inspector = sa.inspect(connection)
    columns = {
        name: [(column["name"], str(column["type"]), column["nullable"]) for column in inspector.get_columns(name)]
        for name, kind in rows
        if kind == "table"
    }
    return {**columns, "indexes": sorted(name for name, kind in rows if kind == "index")}


def test_the_newest_migration_is_the_version_of_the_schema() -> None:
    assert max(file.name[:4] for file in VERSIONS.glob("[0-9]*.py")) == VERSION


def test_a_migrated_database_is_a_fresh_one(tmp_path: Path) -> None:
    with opened(tmp_path / "fresh.db") as fresh, opened(tmp_path / "migrated.db") as migrated:
        prepare(fresh)
        upgrade(migrated)

        assert shape(migrated) == shape(fresh)
        assert compare_metadata(MigrationContext.configure(migrated), metadata) == []


def test_tasks_of_before_templates_are_still_there(tmp_path: Path) -> None:
    with opened(tmp_path / "kapell.db") as connection:
        upgrade(connection, "0001")
        connection.execute(sa.text("INSERT INTO meta VALUES ('log_id', 'log_old')"))
        connection.execute(
            sa.text(
                "INSERT INTO tasks (create_revision, task_id, state, agent_type, priority, create_ns, queue_ns, data)"
                " VALUES (7, 'task_old', 2, 'shell', 500, 1, 1, x'00')"
            )
        )
        connection.commit()

        prepare(connection)

        assert connection.execute(sa.text("SELECT task_id, template_id FROM tasks")).one() == ("task_old", None)
        assert connection.scalar(sa.text("SELECT version_num FROM alembic_version")) == VERSION
        assert connection.scalar(sa.text("SELECT value FROM meta WHERE name = 'log_id'")) == "log_old"


def test_tasks_that_had_ended_are_known_by_their_end(tmp_path: Path) -> None:
    ended = Task(task_id="task_done", state=TASK_STATE_SUCCEEDED, end_time=Timestamp(seconds=7, nanos=5))
    insert = sa.text(
        "INSERT INTO tasks (create_revision, task_id, state, agent_type, priority, create_ns, queue_ns, data)"
        " VALUES (:revision, :task_id, :state, 'shell', 500, 1, 1, :data)"
    )
    with opened(tmp_path / "kapell.db") as connection:
        upgrade(connection, "0002")
        for number in range(2500):
            data = {"revision": number + 1, "task_id": f"task_{number}", "data": ended.SerializeToString()}
            connection.execute(insert, {**data, "state": TASK_STATE_SUCCEEDED if number % 2 else TASK_STATE_QUEUED})
        connection.commit()

        prepare(connection)

        rows = connection.execute(sa.text("SELECT state, end_ns, count(*) FROM tasks GROUP BY state, end_ns")).all()
        assert sorted(rows) == [(TASK_STATE_QUEUED, None, 1250), (TASK_STATE_SUCCEEDED, 7_000_000_005, 1250)]


@pytest.mark.parametrize("table", ["templates", "template_versions", "artifacts"])
def test_the_way_back_removes_what_came(tmp_path: Path, table: str) -> None:
    from alembic import command
    from alembic.config import Config

    with opened(tmp_path / "kapell.db") as connection:
        upgrade(connection)
        config = Config()
        config.set_main_option("script_location", str(VERSIONS.parent))
        config.attributes["connection"] = connection

        command.downgrade(config, "0001")

        assert not sa.inspect(connection).has_table(table)


@pytest.fixture(params=KINDS)
def any_url(request: pytest.FixtureRequest) -> str:
    return url_of(request.param, request)


async def test_usage_of_before_has_its_sums_by_value(any_url: str, tmp_path: Path) -> None:
    """What the migration sums up is what the ledger has written: the way back and there again changes nothing."""
    from alembic import command
    from alembic.config import Config

    async with live_engine(any_url, tmp_path) as live:
        await history(live, 8, 200)

        def again(connection: sa.Connection) -> tuple[list[Any], list[Any]]:
            config = Config()
            config.set_main_option("script_location", str(VERSIONS.parent))
            config.attributes["connection"] = connection
            everything = sa.select(usage_values).order_by(*usage_values.primary_key)
            before = connection.execute(everything).all()
            command.downgrade(config, "0016-1")
            command.upgrade(config, "head")
            return list(before), list(connection.execute(everything).all())

        before, after = await live.database.write(again)

    counting = [row for row in before if any(row[4:])]
    assert {row.name for row in counting} == {"task", "root_task", "label:team", "label:other"}
    assert after == counting


async def test_a_migrated_postgresql_is_a_fresh_one(postgres_url: str) -> None:
    specialise("postgresql")
    engine = create_async_engine(postgres_url.replace("postgresql://", "postgresql+asyncpg://"))

    async with engine.connect() as connection:
        await connection.run_sync(lambda sync: upgrade(sync, "0001"))
        await connection.run_sync(prepare)
        differences = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), metadata)
        )

    await engine.dispose()
    assert differences == []
