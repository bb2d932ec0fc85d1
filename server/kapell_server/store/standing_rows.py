"""Rows of standing resources: what all kinds have in common, in two tables, which a start reads whole.

Locks, tickets and sessions come and go by the thousand; they have a table of their own, so that those that
stay are not to be looked for among them.
"""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from kapell.v1.lock_pb2 import Lock, LockSession, LockTicket
from sqlalchemy import bindparam
from sqlalchemy.engine import Connection

from kapell_server.domain.pending import Change
from kapell_server.domain.standing import KINDS, Standing, standing_id
from kapell_server.store.bulk import Bulk
from kapell_server.store.schema import locks, standing

_TYPES = {kind.number: kind.type for kind in KINDS.values()}
OF_LOCKS: frozenset[type] = frozenset({Lock, LockTicket, LockSession})
"""The kinds whose rows are in the table `locks`."""


class _Rows:
    """The statements of one of the tables."""

    def __init__(self, table: sa.Table) -> None:
        of_id = (table.c.kind == bindparam("of_kind"), table.c.resource_id == bindparam("of_id"))
        update = sa.update(table).where(*of_id).values(data=bindparam("data"))
        self._select = sa.select(table.c.kind, table.c.data).order_by(table.c.create_revision)
        self._insert = Bulk(sa.insert(table), "create_revision", "kind", "resource_id", "data")
        self._update = Bulk(update, "data", "of_kind", "of_id")
        self._delete = Bulk(sa.delete(table).where(*of_id), "of_kind", "of_id")

    def load(self, connection: Connection) -> list[Standing]:
        return [_TYPES[kind].FromString(data) for kind, data in connection.execute(self._select)]

    def write(self, connection: Connection, changes: list[Change], encoded: Mapping[int, bytes]) -> None:
        """The last form of each. Deletes come first: an id may be used again in the same batch."""
        created: dict[tuple[int, str], int] = {}
        latest: dict[tuple[int, str], Change] = {}
        deleted: list[tuple[int, str]] = []
        for change in changes:
            resource: Standing = change.resource  # type: ignore[assignment]
            key = KINDS[type(resource)].number, standing_id(resource)
            if change.created:
                created[key] = resource.revision
            if change.deleted:
                deleted.append(key)
            latest[key] = change
        kept = [(key, change.resource.revision) for key, change in latest.items() if not change.deleted]
        inserts = [(created[key], *key, encoded[revision]) for key, revision in kept if key in created]
        self._delete.execute(connection, deleted)
        self._insert.execute(connection, inserts)
        self._update.execute(connection, [(encoded[revision], *key) for key, revision in kept if key not in created])


_standing = _Rows(standing)
_locks = _Rows(locks)


def load_standing(connection: Connection) -> list[Standing]:
    """Every standing resource, those of a kind in order of creation."""
    return _standing.load(connection) + _locks.load(connection)


def write_standing(connection: Connection, changes: list[Change], encoded: Mapping[int, bytes]) -> None:
    """The last form of each resource that the changes are about."""
    of_locks = [change for change in changes if type(change.resource) in OF_LOCKS]
    if of_locks:
        _locks.write(connection, of_locks, encoded)
    if len(of_locks) < len(changes):
        others = [change for change in changes if type(change.resource) not in OF_LOCKS]
        _standing.write(connection, others, encoded)
