"""Rows of what schedules have besides their record: the whole task, with prompt and parameters, and live runs."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from kapell.v1.task_pb2 import TaskSpec
from sqlalchemy import bindparam
from sqlalchemy.engine import Connection

from kapell_server.domain.transitions import TASK_FINAL
from kapell_server.store.bulk import Bulk
from kapell_server.store.schema import schedule_runs, schedule_tasks, tasks

_by_id = sa.select(schedule_tasks.c.data).where(schedule_tasks.c.schedule_id == bindparam("schedule_id"))
_delete = Bulk(sa.delete(schedule_tasks).where(schedule_tasks.c.schedule_id == bindparam("key")), "key")
_insert = Bulk(sa.insert(schedule_tasks), "schedule_id", "data")
_delete_runs = Bulk(sa.delete(schedule_runs).where(schedule_runs.c.task_id == bindparam("key")), "key")
_insert_runs = Bulk(sa.insert(schedule_runs), "task_id", "schedule_id")
_lives = tasks.c.state.not_in(TASK_FINAL)
_runs = (
    sa.select(
        schedule_runs.c.schedule_id,
        schedule_runs.c.task_id,
        sa.select(sa.func.count())
        .select_from(tasks)
        .where(tasks.c.task_id == schedule_runs.c.task_id, _lives)
        .scalar_subquery()
        .label("top"),
        sa.select(sa.func.count())
        .select_from(tasks)
        .where(tasks.c.root_id == schedule_runs.c.task_id, _lives)
        .scalar_subquery()
        .label("below"),
    )
).order_by(schedule_runs.c.task_id)


def load_schedule_task(connection: Connection, schedule_id: str) -> TaskSpec | None:
    """The whole task of a schedule; None where there is no such schedule."""
    data = connection.scalar(_by_id, {"schedule_id": schedule_id})
    return None if data is None else TaskSpec.FromString(data)


def write_schedule_tasks(connection: Connection, specs: Mapping[str, TaskSpec | None]) -> None:
    """Puts each in the place of what was there; None deletes."""
    _delete.execute(connection, [(schedule_id,) for schedule_id in specs])
    kept = [(schedule_id, spec.SerializeToString()) for schedule_id, spec in specs.items() if spec is not None]
    _insert.execute(connection, kept)


def load_schedule_runs(connection: Connection) -> list[tuple[str, str, int]]:
    """(schedule, first task, tasks that have not ended) of every live run, the eldest first."""
    return [(schedule_id, task_id, top + below) for schedule_id, task_id, top, below in connection.execute(_runs)]


def write_schedule_runs(connection: Connection, runs: Mapping[str, str]) -> None:
    """Records which runs live, each with its schedule; an empty one deletes."""
    _delete_runs.execute(connection, [(task_id,) for task_id in runs])
    _insert_runs.execute(connection, [(task_id, schedule_id) for task_id, schedule_id in runs.items() if schedule_id])
