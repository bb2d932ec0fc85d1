"""Finds the tasks of a filter for a change of many, past the writer, which looks again at what changes meanwhile."""

from __future__ import annotations

import sqlalchemy as sa
from kapell.v1.task_pb2 import Task, TaskFilter
from sqlalchemy.engine import Connection

from kapell_server.domain.tasks.bulk_job import Selection
from kapell_server.domain.tasks.task_filter import task_test
from kapell_server.store.database import Database
from kapell_server.store.loads import head
from kapell_server.store.queries import in_bytes_only, task_conditions
from kapell_server.store.schema import tasks

_SCAN = 2_000


async def select_tasks(database: Database, wanted: TaskFilter, limit: int) -> Selection:
    """All tasks that match, the oldest first; the ids of `limit` of them at most.

    Labels and reasons of failure stand in the bytes of a row: with these every row that the rest of the filter
    leaves is decoded, some at a time, so that no read is long.
    """
    if not in_bytes_only(wanted):
        return await database.read(lambda connection: _by_columns(connection, wanted, limit))
    # Taken before the first row: whatever changes from here on is looked at again.
    revision = await database.read(head)
    test = task_test(wanted)
    found: list[str] = []
    matched = after = 0
    while True:
        rows = await database.read(lambda connection, after=after: _chunk(connection, wanted, after))  # type: ignore[misc]
        for cursor, data in rows:
            after = cursor
            task = Task.FromString(data)
            if test(task):
                matched += 1
                if len(found) < limit:
                    found.append(task.task_id)
        if len(rows) < _SCAN:
            return Selection(revision, found, matched)


def _by_columns(connection: Connection, wanted: TaskFilter, limit: int) -> Selection:
    revision = head(connection)
    conditions = task_conditions(wanted)
    statement = sa.select(tasks.c.task_id).where(*conditions).order_by(tasks.c.create_revision).limit(limit)
    found = list(connection.scalars(statement))
    if len(found) < limit:
        return Selection(revision, found, len(found))
    matched = connection.scalar(sa.select(sa.func.count()).select_from(tasks).where(*conditions)) or 0
    return Selection(revision, found, matched)


def _chunk(connection: Connection, wanted: TaskFilter, after: int) -> list[tuple[int, bytes]]:
    statement = (
        sa.select(tasks.c.create_revision, tasks.c.data)
        .where(*task_conditions(wanted), tasks.c.create_revision > after)
        .order_by(tasks.c.create_revision)
        .limit(_SCAN)
    )
    return [(cursor, data) for cursor, data in connection.execute(statement)]
