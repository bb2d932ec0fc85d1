"""The statements and the shape of rows that artifacts are kept by."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from kapell.v1.artifact_pb2 import ARTIFACT_STATE_READY, ARTIFACT_STATE_UPLOADING, Artifact
from kapell.v1.task_pb2 import Task
from sqlalchemy import bindparam
from sqlalchemy.engine import Connection

from kapell_server.domain.tasks.artifact import may_go_on
from kapell_server.store.schema import artifacts, tasks

TASK = sa.select(tasks.c.task_id).where(tasks.c.task_id == bindparam("task_id"))
ROW = sa.select(artifacts.c.task_id, artifacts.c.state, artifacts.c.size, artifacts.c.data).where(
    artifacts.c.artifact_id == bindparam("artifact_id")
)
READY_SIZE = sa.case((artifacts.c.state == ARTIFACT_STATE_READY, artifacts.c.size), else_=0)
USED = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(READY_SIZE), 0)).where(
    artifacts.c.task_id == bindparam("task_id")
)
UPLOADS = (
    sa.select(artifacts.c.artifact_id, artifacts.c.task_id, artifacts.c.size)
    .where(artifacts.c.state == ARTIFACT_STATE_UPLOADING)
    .order_by(artifacts.c.number)
)
USED_BESIDE_UPLOADS = (
    sa.select(artifacts.c.task_id, sa.func.sum(READY_SIZE))
    .where(artifacts.c.task_id.in_(sa.select(UPLOADS.subquery().c.task_id)))
    .group_by(artifacts.c.task_id)
)
LAST_NUMBER = sa.select(sa.func.max(artifacts.c.number))
INSERT = sa.insert(artifacts)
MAKE_READY = (
    sa.update(artifacts)
    .where(artifacts.c.artifact_id == bindparam("id"))
    .values(state=ARTIFACT_STATE_READY, size=bindparam("bytes"), data=bindparam("message"))
)
DELETE = sa.delete(artifacts).where(artifacts.c.artifact_id == bindparam("id"))


UPLOADING = artifacts.c.state == ARTIFACT_STATE_UPLOADING


def superseded(task_id: str, attempt: int) -> sa.ColumnElement[bool]:
    """Uploads that attempts of the task before this one have left."""
    of_attempts = artifacts.c.attempt > 0, artifacts.c.attempt < attempt
    return sa.and_(artifacts.c.task_id == task_id, UPLOADING, *of_attempts)


def next_rows(connection: Connection, cursor: int, limit: int) -> list[Any]:
    """What the housekeeping looks at next: number, id, state, creation, whether the task is gone, and whether it is the
    upload of an attempt that is over.
    """
    columns = (artifacts.c.number, artifacts.c.artifact_id, artifacts.c.state, artifacts.c.create_ns)
    task_of_upload = sa.case((UPLOADING & (artifacts.c.attempt > 0), tasks.c.data))
    statement = (
        sa.select(*columns, tasks.c.task_id.is_(None), artifacts.c.attempt, task_of_upload)
        .join(tasks, tasks.c.task_id == artifacts.c.task_id, isouter=True)
        .where(artifacts.c.number > cursor)
        .order_by(artifacts.c.number)
        .limit(limit)
    )
    return [
        (*row, task is not None and not may_go_on(attempt, Task.FromString(task)))
        for *row, attempt, task in connection.execute(statement)
    ]


def as_row(artifact: Artifact, number: int, announced: int | None, now_ns: int) -> dict[str, Any]:
    """The columns of a new artifact, `announced` bytes long where that was said."""
    return {
        "number": number,
        "artifact_id": artifact.artifact_id,
        "task_id": artifact.task_id,
        "attempt": artifact.attempt,
        "state": artifact.state,
        "size": announced,
        "create_ns": now_ns,
        "data": artifact.SerializeToString(),
    }
