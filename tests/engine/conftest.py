"""A real engine on each database, and one on a database that fails where it is told to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.databases import KINDS, url_of
from tests.support.faulty_database import FaultyDatabase
from tests.support.live_engine import LiveEngine, live_engine


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest) -> str:
    return url_of(request.param, request)


@pytest.fixture
async def live(database_url: str, tmp_path: Path) -> AsyncIterator[LiveEngine]:
    async with live_engine(database_url, tmp_path, FaultyDatabase) as live:
        yield live


@pytest.fixture
async def on_sqlite(tmp_path: Path) -> AsyncIterator[LiveEngine]:
    """For what does not depend on the database."""
    async with live_engine("", tmp_path, FaultyDatabase) as live:
        yield live
