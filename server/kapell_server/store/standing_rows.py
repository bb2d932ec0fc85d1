"""Rows of standing resources: all kinds share one table, which a start reads whole."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.engine import Connection

from kapell_server.domain.pending import Change
from kapell_server.domain.standing import KINDS, Standing, standing_id
from kapell_server.store.bulk import Bulk
from kapell_server.store.schema import standing

_TYPES = {kind.number: kind.type for kind in KINDS.values()}

_of_id = (standing.c.kind == bindparam("of_kind"), standing.c.resource_id == bindparam("of_id"))
_insert = Bulk(sa.insert(standing), "create_revision", "kind", "resource_id", "data")
_update = Bulk(sa.update(standing).where(*_of_id).values(data=bindparam("data")), "data", "of_kind", "of_id")
_delete = Bulk(sa.delete(standing).where(*_of_id), "of_kind", "of_id")


def load_standing(connection: Connection) -> list[Standing]:
    """Every standing resource, in order of creation."""
    rows = connection.execute(sa.select(standing.c.kind, standing.c.data).order_by(standing.c.create_revision))
    return [_TYPES[kind].FromString(data) for kind, data in rows]


def write_standing(connection: Connection, changes: list[Change], encoded: Mapping[int, bytes]) -> None:
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
    _delete.execute(connection, deleted)
    _insert.execute(connection, [(created[key], *key, encoded[revision]) for key, revision in kept if key in created])
    _update.execute(connection, [(encoded[revision], *key) for key, revision in kept if key not in created])
