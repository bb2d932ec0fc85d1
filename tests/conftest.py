"""Fixtures that every level may use: a real server process and a throw-away PostgreSQL."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.postgres import Postgres, running_postgres
from tests.support.server_process import ServerProcess

# Many servers at a time: none of them takes the port that is everybody's default.
os.environ.setdefault("KAPELL_HTTP_ADDRESS", "127.0.0.1:0")

# How long an example takes says more about the machine than about the code.
settings.register_profile("untimed", settings.default, deadline=None)
settings.load_profile("untimed")

_servers: pytest.StashKey[list[ServerProcess]] = pytest.StashKey()


@pytest.fixture
def server_process(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerProcess]:
    """A real server with a fresh data directory, serving. A failed test shows its log.

    More command line comes by indirect parametrizing: `[("--lease-duration", "3s")]`.
    """
    server = ServerProcess(tmp_path / "data", arguments=getattr(request, "param", ()))
    request.node.stash.setdefault(_servers, []).append(server)
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One PostgreSQL for the session."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """The URL of an empty database that only this test uses."""
    url = postgres.create_database()
    yield url
    postgres.drop_database(url)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the logs of the test's servers to the report of a failure."""
    report = yield
    if report.failed:
        for server in item.stash.get(_servers, []):
            report.sections.append(("server log", server.log[-20_000:]))
    return report
