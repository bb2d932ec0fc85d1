"""The same suite on each database: an engine to write with, and the reads under test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.databases import KINDS, url_of
from tests.support.live_engine import LiveEngine, live_engine


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest) -> str:
    return url_of(request.param, request)


@pytest.fixture
def postgresql_url(request: pytest.FixtureRequest) -> str:
    """For what only PostgreSQL has: connections to lose, and a second server on another machine."""
    return url_of("postgresql", request)


@pytest.fixture
async def live(database_url: str, tmp_path: Path) -> AsyncIterator[LiveEngine]:
    async with live_engine(database_url, tmp_path) as live:
        yield live
