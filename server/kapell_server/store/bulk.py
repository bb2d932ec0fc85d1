"""Statements for many rows or keys at once, compiled once and fed with tuples.

SQLAlchemy's own executemany turns every row from a dict into parameters, which costs as much as
SQLite's insert, and an expanding IN is rendered anew at each call. The SQL is still Core's, for
the dialect at hand.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
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
        connection.exec_driver_sql(sql, rows if len(rows) > 1 else rows[0])

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


class Lookup:
    """A select of the rows whose `key` is one of many. Keys are padded to a few sizes, so that few
    statements exist and both databases keep them prepared."""

    _SIZES = (1, 8, 64, 512)

    def __init__(self, statement: sa.Select[Any], key: sa.Column[Any]) -> None:
        self._statement = statement
        self._key = key
        self._sql: dict[tuple[str, int], str] = {}

    def rows(self, connection: Connection, keys: Collection[Any]) -> Iterator[Any]:
        """The rows of the keys that exist, in no order."""
        wanted = list(keys)
        largest = self._SIZES[-1]
        for start in range(0, len(wanted), largest):
            chunk = wanted[start : start + largest]
            size = next(size for size in self._SIZES if size >= len(chunk))
            padded = chunk + chunk[-1:] * (size - len(chunk))
            sql = self._sql.get((connection.dialect.name, size)) or self._compile(connection, size)
            yield from connection.exec_driver_sql(sql, tuple(padded))

    def _compile(self, connection: Connection, size: int) -> str:
        places = [sa.bindparam(f"key_{index}", type_=self._key.type) for index in range(size)]
        condition = self._key == places[0] if size == 1 else self._key.in_(places)
        compiled: Any = self._statement.where(condition).compile(dialect=connection.dialect)
        assert list(compiled.positiontup) == [place.key for place in places], "keys come in their order"
        sql = str(compiled)
        self._sql[connection.dialect.name, size] = sql
        return sql
