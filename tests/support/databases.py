"""The databases that the suites of engine and store run on: the same tests on each."""

from __future__ import annotations

import pytest

KINDS = ("sqlite", "postgresql")


def url_of(kind: str, request: pytest.FixtureRequest) -> str:
    """An empty database of the kind, as --database-url takes it: nothing for SQLite in the data directory."""
    if kind == "sqlite":
        return ""
    url: str = request.getfixturevalue("postgres_url")
    return url
