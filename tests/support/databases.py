"""The databases that the suites of engine, model and store run on: the same tests on each."""

from __future__ import annotations

import asyncio

import asyncpg  # type: ignore[import-untyped]
import pytest

from tests.support.postgres import Postgres

KINDS = ("sqlite", "postgresql")
_REUSED: dict[int, str] = {}


def url_of(kind: str, request: pytest.FixtureRequest) -> str:
    """An empty database of the kind, as --database-url takes it: nothing for SQLite in the data directory.

    One database of PostgreSQL serves all tests of a process in turn, which is much faster than
    one a test; what these tests assert does not depend on its fsync, so that is off.
    """
    if kind == "sqlite":
        return ""
    postgres: Postgres = request.getfixturevalue("postgres")
    if id(postgres) not in _REUSED:
        _REUSED[id(postgres)] = postgres.create_database()
        asyncio.run(_hurry(_REUSED[id(postgres)]))
    url = _REUSED[id(postgres)]
    asyncio.run(_empty(url))
    return url


async def _hurry(url: str) -> None:
    connection = await asyncpg.connect(url)
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
        await connection.execute(f"ALTER SYSTEM SET {setting} = off")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()


async def _empty(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await connection.close()
