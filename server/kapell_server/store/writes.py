"""Writes one batch of the engine: rows, events and answers, each statement once for all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from kapell.v1.agent_pb2 import Agent
from kapell.v1.task_pb2 import Task
from sqlalchemy import bindparam
from sqlalchemy.engine import Connection

from kapell_server.domain.deadlines import next_deadline_ns
from kapell_server.domain.settings import Settings
from kapell_server.domain.state import Change, Pending
from kapell_server.domain.times import timestamp_ns
from kapell_server.store.encode import encode_event, encode_time
from kapell_server.store.record import Record
from kapell_server.store.schema import agents, answers, attempts, events, task_contents, tasks

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """The first answer to a request_id."""

    key: str
    fingerprint: bytes
    data: bytes


@dataclass(slots=True)
class Written:
    """What a batch has written: the events in order, and each change's encoded resource by revision."""

    records: list[Record]
    encoded: dict[int, bytes]


_insert_events = sa.insert(events)
_insert_tasks = sa.insert(tasks)
_insert_contents = sa.insert(task_contents)
_insert_attempts = sa.insert(attempts)
_insert_agents = sa.insert(agents)
_insert_answers = sa.insert(answers)

_update_tasks = (
    sa.update(tasks)
    .where(tasks.c.task_id == bindparam("key"))
    .values({name: bindparam(name) for name in ("state", "priority", "queue_ns", "due_ns", "data")})
)
_update_contents = (
    sa.update(task_contents).where(task_contents.c.task_id == bindparam("key")).values(data=bindparam("data"))
)
_update_attempts = (
    sa.update(attempts)
    .where(attempts.c.task_id == bindparam("key"), attempts.c.attempt == bindparam("number"))
    .values(state=bindparam("state"), data=bindparam("data"))
)
_update_agents = (
    sa.update(agents)
    .where(agents.c.agent_id == bindparam("key"))
    .values(state=bindparam("state"), data=bindparam("data"))
)
_update_seen = sa.update(agents).where(agents.c.agent_id == bindparam("key")).values(seen_ns=bindparam("seen_ns"))
_update_instance_key = (
    sa.update(agents).where(agents.c.agent_id == bindparam("key")).values(instance_key=bindparam("instance_key"))
)
_delete_tasks = sa.delete(tasks).where(tasks.c.task_id == bindparam("key"))
_delete_contents = sa.delete(task_contents).where(task_contents.c.task_id == bindparam("key"))
_delete_attempts = sa.delete(attempts).where(attempts.c.task_id == bindparam("key"))
_delete_agents = sa.delete(agents).where(agents.c.agent_id == bindparam("key"))


def encode_changes(changes: list[Change], now_ns: int) -> Written:
    """Encodes every change; each resource's bytes serve its row, its event and its answer."""
    time = encode_time(now_ns)
    records: list[Record] = []
    encoded: dict[int, bytes] = {}
    for change in changes:
        resource = change.resource
        data = resource.SerializeToString()
        encoded[resource.revision] = data
        resource_id = resource.agent_id if type(resource) is Agent else resource.task_id
        event = encode_event(change, data, time)
        records.append(Record(resource.revision, change.kind, resource_id, resource, event))
    return Written(records, encoded)


def write_batch(
    connection: Connection,
    pending: Pending,
    written: Written,
    given: list[tuple[Answer, int]],
    settings: Settings,
) -> None:
    """Writes everything a batch decided, in the caller's transaction.

    `given` holds the answers to remember, each with its time in ns.
    """
    if pending.changes:
        _write_events(connection, pending.changes, written)
        task_changes = [change for change in pending.changes if type(change.resource) is Task]
        agent_changes = [change for change in pending.changes if type(change.resource) is Agent]
        _write_tasks(connection, task_changes, pending, written, settings)
        if agent_changes:
            _write_agents(connection, agent_changes, pending, written)
    if pending.attempts:
        _write_attempts(connection, pending)
    if pending.heartbeats:
        rows = [{"key": agent_id, "seen_ns": seen} for agent_id, seen in pending.heartbeats.items()]
        connection.execute(_update_seen, rows)
    if given:
        connection.execute(
            _insert_answers,
            [
                {"request_key": answer.key, "fingerprint": answer.fingerprint, "data": answer.data, "create_ns": now}
                for answer, now in given
            ],
        )


def _write_events(connection: Connection, changes: list[Change], written: Written) -> None:
    connection.execute(
        _insert_events,
        [
            {
                "revision": record.revision,
                "kind": record.kind,
                "resource_id": record.resource_id,
                "previous_revision": change.previous_revision,
                "data": record.data,
            }
            for change, record in zip(changes, written.records, strict=True)
        ],
    )


def _write_tasks(
    connection: Connection, changes: list[Change], pending: Pending, written: Written, settings: Settings
) -> None:
    """The last form of each task. One created and changed in the same batch is inserted once."""
    created: dict[str, int] = {}
    latest: dict[str, Task] = {}
    deleted: list[Row] = []
    for change in changes:
        task = change.resource
        assert isinstance(task, Task)
        if change.created:
            created[task.task_id] = task.revision
        latest[task.task_id] = task
        if change.deleted:
            deleted.append({"key": task.task_id})
    inserts: list[Row] = []
    updates: list[Row] = []
    for task_id, task in latest.items():
        row: Row = {
            "state": task.state,
            "priority": task.priority,
            "queue_ns": timestamp_ns(task.queue_time),
            "due_ns": next_deadline_ns(task, settings) or None,
            "data": written.encoded[task.revision],
        }
        create_revision = created.get(task_id)
        if create_revision is None:
            row["key"] = task_id
            updates.append(row)
        else:
            row["create_revision"] = create_revision
            row["task_id"] = task_id
            row["agent_type"] = task.agent_type
            row["create_ns"] = timestamp_ns(task.create_time)
            inserts.append(row)
    _execute(connection, _insert_tasks, inserts)
    _execute(connection, _update_tasks, updates)
    contents = pending.contents.items()
    new = [{"task_id": task_id, "data": data} for task_id, data in contents if task_id in created]
    _execute(connection, _insert_contents, new)
    if len(new) < len(pending.contents):
        old = [{"key": task_id, "data": data} for task_id, data in contents if task_id not in created]
        _execute(connection, _update_contents, old)
    for statement in (_delete_tasks, _delete_contents, _delete_attempts):
        _execute(connection, statement, deleted)


def _write_agents(connection: Connection, changes: list[Change], pending: Pending, written: Written) -> None:
    created = {change.resource.agent_id: change for change in changes if change.created}  # type: ignore[union-attr]
    latest = {change.resource.agent_id: change for change in changes}  # type: ignore[union-attr]
    inserts: list[Row] = []
    updates: list[Row] = []
    deleted: list[Row] = []
    for agent_id, change in latest.items():
        row: Row = {"state": change.resource.state, "data": written.encoded[change.resource.revision]}
        if agent_id in created:
            row |= {"create_revision": created[agent_id].resource.revision, "agent_id": agent_id}
            row |= {"instance_key": "", "seen_ns": 0}
            inserts.append(row)
        else:
            row["key"] = agent_id
            updates.append(row)
        if change.deleted:
            deleted.append({"key": agent_id})
    _execute(connection, _insert_agents, inserts)
    _execute(connection, _update_agents, updates)
    keys = [{"key": agent_id, "instance_key": key} for agent_id, key in pending.instance_keys.items()]
    _execute(connection, _update_instance_key, keys)
    _execute(connection, _delete_agents, deleted)


def _write_attempts(connection: Connection, pending: Pending) -> None:
    inserts: list[Row] = []
    updates: list[Row] = []
    for (task_id, number), (record, poll_id) in pending.attempts.items():
        row: Row = {"state": record.state, "data": record.SerializeToString()}
        if (task_id, number) in pending.new_attempts:
            inserts.append(row | {"task_id": task_id, "attempt": number, "poll_id": poll_id})
        else:
            updates.append(row | {"key": task_id, "number": number})
    _execute(connection, _insert_attempts, inserts)
    _execute(connection, _update_attempts, updates)


def _execute(connection: Connection, statement: sa.Executable, rows: list[Row]) -> None:
    if rows:
        connection.execute(statement, rows)
