"""Reads of parents and children, past the writer: the children of a task, and the tree below it."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from kapell.v1.task_pb2 import GetTaskTreeResponse, Task
from sqlalchemy import bindparam
from sqlalchemy.engine import Connection

from kapell_server.domain.not_found import task_not_found
from kapell_server.domain.tasks.family import root_of
from kapell_server.store.bulk import Lookup
from kapell_server.store.database import Database
from kapell_server.store.loads import head
from kapell_server.store.pages import ANSWER_BYTES
from kapell_server.store.schema import task_contents, tasks

MOST_NODES = 1001
"""A root and all that may be below it."""
_CHUNK = 64

_task = sa.select(tasks.c.data).where(tasks.c.task_id == bindparam("task_id"))
_children = sa.select(tasks.c.data).where(tasks.c.parent_id == bindparam("task_id")).order_by(tasks.c.create_revision)
_family = sa.select(tasks.c.data).where(tasks.c.root_id == bindparam("root_id")).order_by(tasks.c.create_revision)
_contents = Lookup(sa.select(task_contents.c.task_id, task_contents.c.data), task_contents.c.task_id)


class FamilyReads:
    """Answers from committed state."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def tree(self, task_id: str) -> GetTaskTreeResponse:
        """The task and all below it, depth-first. Raises TASK_NOT_FOUND."""

        def work(connection: Connection) -> GetTaskTreeResponse:
            data = connection.scalar(_task, {"task_id": task_id})
            if data is None:
                raise task_not_found(task_id)
            top = Task.FromString(data)
            family = connection.scalars(_family, {"root_id": root_of(top)}).all()
            response = _tree(top, [Task.FromString(member) for member in family])
            response.revision = head(connection)
            return response

        return await self._database.read(work)

    async def children(self, task_id: str) -> tuple[list[Task], int]:
        """The children of a task without their contents, the eldest first, and the revision they were read at."""

        def work(connection: Connection) -> tuple[list[Task], int]:
            rows = connection.scalars(_children, {"task_id": task_id}).all()
            return [Task.FromString(data) for data in rows], head(connection)

        return await self._database.read(work)

    async def add_results(self, found: Sequence[Task], most_bytes: int) -> list[str]:
        """Writes the results into these tasks, in order, until they are so many bytes; the ids of those left out."""
        room = most_bytes
        for start in range(0, len(found), _CHUNK):
            chunk = found[start : start + _CHUNK]
            contents = await self._contents([task.task_id for task in chunk])
            for index, task in enumerate(chunk, start):
                content = Task.FromString(contents.get(task.task_id, b""))
                room -= content.result.ByteSize()
                if room < 0:
                    return [left_out.task_id for left_out in found[index:]]
                if content.HasField("result"):
                    task.result.CopyFrom(content.result)
        return []

    async def _contents(self, task_ids: Sequence[str]) -> dict[str, bytes]:
        return dict(await self._database.read(lambda connection: list(_contents.rows(connection, task_ids))))


def _tree(top: Task, family: list[Task]) -> GetTaskTreeResponse:
    """The nodes below `top`. A member whose parent was deleted stands below the top of its family."""
    known = {task.task_id for task in family} | {top.task_id}
    children: dict[str, list[Task]] = {}
    for task in family:
        parent_id = task.parent_task_id if task.parent_task_id in known else task.root_task_id
        children.setdefault(parent_id, []).append(task)
    response = GetTaskTreeResponse()
    pending = [(top, 0)]
    size = 0
    while pending:
        task, depth = pending.pop()
        size += task.ByteSize()
        if len(response.nodes) == MOST_NODES or (response.nodes and size > ANSWER_BYTES):
            response.truncated = True
            break
        response.nodes.add(task=task, depth=depth)
        pending += [(child, depth + 1) for child in reversed(children.get(task.task_id, ()))]
    return response
