"""What retention asks of the database, and the removal of what was compacted."""

from __future__ import annotations

import sqlalchemy as sa
from kapell.v1.event_pb2 import Event
from kapell.v1.watch_pb2 import EVENT_KIND_TASK_DELETED
from sqlalchemy.engine import Connection

from kapell_server.domain.times import timestamp_ns
from kapell_server.store.schema import OLDEST_REVISION, events, meta, tasks

_oldest = sa.select(meta.c.value).where(meta.c.name == OLDEST_REVISION)
_bounds = sa.select(sa.func.min(events.c.revision), sa.func.max(events.c.revision))
_first = sa.select(sa.func.min(events.c.revision))
_event = sa.select(events.c.data).where(events.c.revision == sa.bindparam("revision"))
_ended = sa.select(sa.func.count()).select_from(tasks).where(tasks.c.end_ns.is_not(None))
_oldest_ended = (
    sa.select(tasks.c.task_id, tasks.c.end_ns)
    .where(tasks.c.end_ns.is_not(None))
    .order_by(tasks.c.end_ns)
    .limit(sa.bindparam("limit"))
    .offset(sa.bindparam("skip"))
)
_drop = sa.delete(events).where(events.c.revision < sa.bindparam("below"))


def oldest_revision(connection: Connection) -> int:
    """Up to which revision the log was compacted; 0 where it never was."""
    return int(connection.scalar(_oldest) or 0)


def count_ended(connection: Connection) -> int:
    """How many tasks have ended."""
    return connection.scalar(_ended) or 0


def oldest_ended(connection: Connection, *, skip: int, limit: int) -> list[tuple[str, int]]:
    """The tasks that ended first, without the first `skip` of them: (task id, time of the end)."""
    rows = connection.execute(_oldest_ended, {"skip": skip, "limit": limit})
    return [(task_id, end_ns) for task_id, end_ns in rows]


def newest_event_before(connection: Connection, time_ns: int) -> int:
    """The revision of the newest event from before the time; 0 where there is none.

    By halving, since time rises with revisions; where a clock was set back, about there.
    """
    low, high = connection.execute(_bounds).one()
    if low is None:
        return 0
    found = 0
    while low <= high:
        middle = (low + high) // 2
        data = connection.scalar(_event, {"revision": middle})
        if data is not None and timestamp_ns(Event.FromString(data).event_time) >= time_ns:
            high = middle - 1
        else:
            found, low = middle, middle + 1
    return found


def drop_events(connection: Connection, limit: int) -> int:
    """Removes up to `limit` of the oldest events that were compacted. Returns how many, 0 when none is left."""
    first = connection.scalar(_first)
    if first is None:
        return 0
    below = min(first + limit, oldest_revision(connection) + 1)
    if below <= first:
        return 0
    connection.execute(_drop, {"below": below})
    return int(below - first)


def tasks_deleted_lately(connection: Connection, events_back: int) -> list[str]:
    """The tasks that were deleted within the latest events and do not exist."""
    head = connection.scalar(sa.select(sa.func.max(events.c.revision))) or 0
    there = sa.select(tasks.c.task_id).where(tasks.c.task_id == events.c.resource_id)
    statement = sa.select(events.c.resource_id).where(
        events.c.revision > head - events_back, events.c.kind == EVENT_KIND_TASK_DELETED, ~there.exists()
    )
    return list(connection.scalars(statement))
