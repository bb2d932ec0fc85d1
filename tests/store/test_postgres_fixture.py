"""The throw-away PostgreSQL gives every test a database of its own."""

from __future__ import annotations

import asyncpg

from tests.support.postgres import Postgres


async def test_databases_are_empty_and_apart(postgres: Postgres) -> None:
    one, other = postgres.create_database(), postgres.create_database()

    connection = await asyncpg.connect(one)
    await connection.execute("CREATE TABLE here (id int)")
    await connection.close()

    connection = await asyncpg.connect(other)
    assert await connection.fetchval("SELECT count(*) FROM pg_tables WHERE tablename = 'here'") == 0
    await connection.close()
    postgres.drop_database(one)
    postgres.drop_database(other)
