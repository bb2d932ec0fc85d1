"""What makes an acknowledged commit survive a loss of power, which no kill can show.

With synchronous=FULL each commit of the WAL is synced before it returns; with NORMAL the latest
ones could be lost.
"""

from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest
from kapell_server.store.database import open_database
from sqlalchemy.engine import Connection

FULL = 2


def pragma(name: str, connection: Connection) -> object:
    """What SQLite says of itself on this connection."""
    return connection.exec_driver_sql(f"PRAGMA {name}").scalar()


@pytest.mark.parametrize(("name", "value"), [("journal_mode", "wal"), ("synchronous", FULL)])
async def test_the_connection_that_commits_is_durable(tmp_path: Path, name: str, value: object) -> None:
    database = await open_database("", tmp_path)

    found = await database.write(lambda connection: pragma(name, connection))
    await database.close()

    assert found == value


async def test_a_commit_is_still_durable_after_housekeeping(tmp_path: Path) -> None:
    database = await open_database("", tmp_path)

    await database.maintain()
    found = await database.write(lambda connection: pragma("synchronous", connection))
    await database.close()

    assert found == FULL


async def test_postgresql_answers_a_commit_after_its_sync(tmp_path: Path, postgres_url: str) -> None:
    cluster = await asyncpg.connect(postgres_url)
    name = await cluster.fetchval("SELECT current_database()")
    await cluster.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    await cluster.close()
    database = await open_database(postgres_url, tmp_path)

    found = await database.write(lambda connection: connection.exec_driver_sql("SHOW synchronous_commit").scalar())
    await database.close()

    assert found == "on"
