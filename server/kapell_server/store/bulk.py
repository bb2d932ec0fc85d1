"""Statements that are executed for many rows at once, compiled once and fed with tuples.

SQLAlchemy's own executemany turns every row from a dict into parameters, which costs as much as
SQLite's insert. The SQL is still Core's, for the dialect at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection


class Bulk:
    """An insert, update or delete whose parameters are named by `names`, in the order of each row's tuple."""

    def __init__(self, statement: sa.Executable, *names: str) -> None:
        self._statement = statement
        self._names = names
        self._sql: dict[str, tuple[str, list[int]]] = {}

    def execute(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Executes the statement for each row; nothing for no rows."""
        if not rows:
            return
        sql, order = self._sql.get(connection.dialect.name) or self._compile(connection)
        if order:
            rows = [tuple([row[index] for index in order]) for row in rows]
        connection.exec_driver_sql(sql, rows if len(rows) > 1 else rows[0])  # type: ignore[arg-type]

    def _compile(self, connection: Connection) -> tuple[str, list[int]]:
        assert isinstance(self._statement, sa.sql.ClauseElement)
        keys = list(self._names) if isinstance(self._statement, sa.Insert) else None
        compiled: Any = self._statement.compile(dialect=connection.dialect, column_keys=keys)
        positions = list(compiled.positiontup)
        assert sorted(positions) == sorted(self._names), f"{positions} are not {self._names}"
        order = [self._names.index(name) for name in positions]
        made = str(compiled), [] if order == list(range(len(order))) else order
        self._sql[connection.dialect.name] = made
        return made
