"""Rows of what schedules are made of besides their record: the whole task, with prompt and parameters."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from kapell.v1.task_pb2 import TaskSpec
from sqlalchemy import bindparam
from sqlalchemy.engine import Connection

from kapell_server.store.bulk import Bulk
from kapell_server.store.schema import schedule_tasks

_by_id = sa.select(schedule_tasks.c.data).where(schedule_tasks.c.schedule_id == bindparam("schedule_id"))
_delete = Bulk(sa.delete(schedule_tasks).where(schedule_tasks.c.schedule_id == bindparam("key")), "key")
_insert = Bulk(sa.insert(schedule_tasks), "schedule_id", "data")


def load_schedule_task(connection: Connection, schedule_id: str) -> TaskSpec | None:
    """The whole task of a schedule; None where there is no such schedule."""
    data = connection.scalar(_by_id, {"schedule_id": schedule_id})
    return None if data is None else TaskSpec.FromString(data)


def write_schedule_tasks(connection: Connection, specs: Mapping[str, TaskSpec | None]) -> None:
    """Puts each in the place of what was there; None deletes."""
    _delete.execute(connection, [(schedule_id,) for schedule_id in specs])
    kept = [(schedule_id, spec.SerializeToString()) for schedule_id, spec in specs.items() if spec is not None]
    _insert.execute(connection, kept)
