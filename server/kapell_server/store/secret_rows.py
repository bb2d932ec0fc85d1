"""Rows of the values of secrets, which are sealed before they come here."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.engine import Connection

from kapell_server.store.bulk import Bulk
from kapell_server.store.schema import secret_values

_delete = Bulk(sa.delete(secret_values).where(secret_values.c.name == bindparam("key")), "key")
_insert = Bulk(sa.insert(secret_values), "name", "data")


def load_secret_values(connection: Connection) -> dict[str, bytes]:
    """Every sealed value, by name."""
    return {name: bytes(data) for name, data in connection.execute(sa.select(secret_values))}


def write_secret_values(connection: Connection, values: Mapping[str, bytes]) -> None:
    """Puts each in the place of what was there; an empty one deletes."""
    _delete.execute(connection, [(name,) for name in values])
    _insert.execute(connection, [(name, data) for name, data in values.items() if data])
