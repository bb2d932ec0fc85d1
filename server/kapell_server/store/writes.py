"""Writes one batch of the engine: rows, events and answers, each statement once for all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from kapell.v1.agent_pb2 import Agent
from kapell.v1.approval_pb2 import Approval
from kapell.v1.task_pb2 import Task
from kapell.v1.template_pb2 import Template
from kapell.v1.usage_pb2 import UsageUpdate
from sqlalchemy import bindparam
from sqlalchemy.engine import Connection

from kapell_server.domain.pending import Change, Pending, Resource
from kapell_server.domain.standing import KINDS, standing_id
from kapell_server.domain.times import timestamp_ns
from kapell_server.domain.transitions import TASK_FINAL
from kapell_server.store.approval_rows import write_approval_audit, write_approvals
from kapell_server.store.budget_rows import write_budget_rows
from kapell_server.store.bulk import Bulk
from kapell_server.store.bulk_jobs import write_bulk_jobs
from kapell_server.store.encode import encode_event, encode_time
from kapell_server.store.record import Record
from kapell_server.store.schedule_rows import write_schedule_runs, write_schedule_tasks
from kapell_server.store.schema import (
    OLDEST_REVISION,
    SHIPPED_DIGEST,
    agents,
    answers,
    attempts,
    events,
    meta,
    starts,
    task_contents,
    task_edges,
    task_edits,
    tasks,
    template_versions,
    templates,
)
from kapell_server.store.secret_rows import write_secret_values
from kapell_server.store.standing_rows import write_standing
from kapell_server.store.token_rows import write_audit, write_token_digests
from kapell_server.store.usage_rows import write_usage
from kapell_server.store.webhook_rows import write_webhook_urls

Row = tuple[Any, ...]


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


_insert_events = Bulk(sa.insert(events), "revision", "kind", "resource_id", "previous_revision", "data")
_insert_tasks = Bulk(
    sa.insert(tasks),
    *("create_revision", "task_id", "state", "agent_type", "priority", "create_ns", "queue_ns", "due_ns"),
    *(
        "template_id",
        "queue_rank",
        "fairness_key",
        "concurrency_keys",
        "parent_id",
        "root_id",
        "end_ns",
        "arrival_ns",
        "lock_count",
        "data",
    ),
)
_insert_edits = Bulk(sa.insert(task_edits), "task_id", "revision", "data")
_insert_contents = Bulk(sa.insert(task_contents), "task_id", "data")
_insert_attempts = Bulk(sa.insert(attempts), "task_id", "attempt", "state", "poll_id", "data")
_insert_agents = Bulk(
    sa.insert(agents), *("create_revision", "agent_id", "state", "instance_key", "seen_ns", "spec", "data")
)
_insert_templates = Bulk(sa.insert(templates), "create_revision", "template_id", "data")
_insert_template_versions = Bulk(sa.insert(template_versions), "template_id", "version", "data")
_insert_edges = Bulk(sa.insert(task_edges), "dependency_id", "dependant_id", "condition", "on_failure")
_delete_edges = Bulk(
    sa.delete(task_edges).where(
        task_edges.c.dependency_id == bindparam("dependency"), task_edges.c.dependant_id == bindparam("dependant")
    ),
    *("dependency", "dependant"),
)
_insert_answers = Bulk(sa.insert(answers), "request_key", "fingerprint", "data", "create_ns")

_insert_starts = Bulk(sa.insert(starts), "limit_id", "start_ns")
_delete_starts = Bulk(
    sa.delete(starts).where(starts.c.limit_id == bindparam("of_limit"), starts.c.start_ns <= bindparam("floor")),
    *("of_limit", "floor"),
)
_delete_all_starts = Bulk(sa.delete(starts).where(starts.c.limit_id == bindparam("of_limit")), "of_limit")


def _update(table: sa.Table, key: str, *names: str) -> Bulk:
    values: dict[str, Any] = {name: bindparam(name) for name in names}
    statement = sa.update(table).where(table.c[key] == bindparam("key")).values(values)
    return Bulk(statement, *names, "key")


def _delete(table: sa.Table, key: str) -> Bulk:
    return Bulk(sa.delete(table).where(table.c[key] == bindparam("key")), "key")


_update_tasks = _update(
    tasks,
    "task_id",
    *("state", "priority", "queue_ns", "queue_rank", "concurrency_keys", "due_ns", "end_ns"),
    *("arrival_ns", "lock_count", "data"),
)
_update_contents = _update(task_contents, "task_id", "data")
_update_agents = _update(agents, "agent_id", "state", "data")
_update_seen = _update(agents, "agent_id", "seen_ns")
_update_instance_key = _update(agents, "agent_id", "instance_key")
_update_attempts = Bulk(
    sa.update(attempts)
    .where(attempts.c.task_id == bindparam("key"), attempts.c.attempt == bindparam("number"))
    .values(state=bindparam("state"), data=bindparam("data")),
    *("state", "data", "key", "number"),
)
_deletes_of_task = tuple(_delete(table, "task_id") for table in (tasks, task_contents, attempts, task_edits))
_delete_agents = _delete(agents, "agent_id")
_update_templates = _update(templates, "template_id", "data")
_deletes_of_template = (_delete(templates, "template_id"), _delete(template_versions, "template_id"))


def encode_changes(changes: list[Change], now_ns: int) -> Written:
    """Encodes every change; each resource's bytes serve its row, its event and its answer."""
    time = encode_time(now_ns)
    records: list[Record] = []
    encoded: dict[int, bytes] = {}
    for change in changes:
        resource = change.resource
        data = resource.SerializeToString()
        encoded[resource.revision] = data
        event = encode_event(change, data, time)
        records.append(Record(resource.revision, change.kind, resource_id(resource), resource, event))
    return Written(records, encoded)


def resource_id(resource: Resource) -> str:
    """The id of a resource, whatever it is."""
    match resource:
        case Task():
            return resource.task_id
        case Agent():
            return resource.agent_id
        case Template():
            return resource.template_id
        case UsageUpdate():
            return resource.usage_id
        case Approval():
            return resource.approval_id
        case _:
            return standing_id(resource)


def write_batch(connection: Connection, pending: Pending, written: Written, given: list[Answer], now_ns: int) -> None:
    """Writes everything a batch decided, in the caller's transaction. `given`: answers to remember."""
    if pending.changes:
        _write_events(connection, pending.changes, written)
        task_changes = [change for change in pending.changes if type(change.resource) is Task]
        agent_changes = [change for change in pending.changes if type(change.resource) is Agent]
        _write_tasks(connection, task_changes, pending, written)
        if agent_changes:
            _write_agents(connection, agent_changes, pending, written)
        template_changes = [change for change in pending.changes if type(change.resource) is Template]
        if template_changes:
            _write_templates(connection, template_changes, pending, written)
        approval_changes = [change for change in pending.changes if type(change.resource) is Approval]
        if approval_changes:
            write_approvals(connection, approval_changes, pending, written.encoded)
        standing_changes = [change for change in pending.changes if type(change.resource) in KINDS]
        if standing_changes:
            write_standing(connection, standing_changes, written.encoded)
    if pending.usage:
        write_usage(connection, pending.usage)
    if pending.approval_audit:
        write_approval_audit(connection, pending)
    if pending.schedule_tasks:
        write_schedule_tasks(connection, pending.schedule_tasks)
    if pending.token_digests:
        write_token_digests(connection, pending.token_digests)
    if pending.audit:
        write_audit(connection, pending.audit)
    if pending.schedule_runs:
        write_schedule_runs(connection, pending.schedule_runs)
    if pending.secret_values:
        write_secret_values(connection, pending.secret_values)
    if pending.attempts:
        _write_attempts(connection, pending)
    _delete_edges.execute(connection, list(pending.dropped_edges))
    _insert_edges.execute(connection, [(*key, *edge) for key, edge in pending.new_edges.items()])
    if pending.edits:
        _write_edits(connection, pending)
    if pending.bulk:
        write_bulk_jobs(connection, pending.bulk)
    if pending.starts or pending.forgotten_starts:
        _write_starts(connection, pending)
    if pending.budget_spend or pending.reservations:
        write_budget_rows(connection, pending.budget_spend, pending.reservations)
    if pending.webhook_urls:
        write_webhook_urls(connection, pending.webhook_urls)
    if pending.shipped_digest:
        connection.execute(sa.delete(meta).where(meta.c.name == SHIPPED_DIGEST))
        connection.execute(sa.insert(meta), {"name": SHIPPED_DIGEST, "value": pending.shipped_digest})
    if pending.oldest_revision:
        connection.execute(sa.delete(meta).where(meta.c.name == OLDEST_REVISION))
        connection.execute(sa.insert(meta), {"name": OLDEST_REVISION, "value": str(pending.oldest_revision)})
    _update_instance_key.execute(connection, [(key, agent_id) for agent_id, key in pending.instance_keys.items()])
    _update_seen.execute(connection, [(seen, agent_id) for agent_id, seen in pending.heartbeats.items()])
    _insert_answers.execute(connection, [(answer.key, answer.fingerprint, answer.data, now_ns) for answer in given])


def _write_events(connection: Connection, changes: list[Change], written: Written) -> None:
    _insert_events.execute(
        connection,
        [
            (record.revision, record.kind, record.resource_id, change.previous_revision, record.data)
            for change, record in zip(changes, written.records, strict=True)
        ],
    )


def _write_tasks(connection: Connection, changes: list[Change], pending: Pending, written: Written) -> None:
    """The last form of each task. One created and changed in the same batch is inserted once.

    Deletes come first, so that a task may be made again under its id in the same batch.
    """
    created: dict[str, int] = {}
    latest: dict[str, Change] = {}
    deleted: list[Row] = []
    for change in changes:
        task_id = change.resource.task_id  # type: ignore[union-attr]
        if change.created:
            created[task_id] = change.resource.revision
        latest[task_id] = change
        if change.deleted:
            deleted.append((task_id,))
    inserts: list[Row] = []
    updates: list[Row] = []
    for task_id, change in latest.items():
        task = change.resource
        assert isinstance(task, Task)
        if change.deleted:
            continue
        data = written.encoded[task.revision]
        queue_ns = timestamp_ns(task.queue_time)
        due_ns = change.due_ns or None
        end_ns = timestamp_ns(task.end_time) if task.state in TASK_FINAL else None
        keys = " ".join(found) if (found := task.concurrency_keys) else None
        arrival_ns = (timestamp_ns(task.first_queue_time) or None) if keys else None
        locks = len(task.locks) or None
        create_revision = created.get(task_id)
        if create_revision is None:
            place = (task.state, task.priority, queue_ns, task.queue_rank, keys, due_ns, end_ns, arrival_ns, locks)
            updates.append((*place, data, task_id))
        else:
            create_ns = timestamp_ns(task.create_time)
            row = (create_revision, task_id, task.state, task.agent_type, task.priority, create_ns, queue_ns, due_ns)
            more = (task.template_id or None, task.queue_rank, task.fairness_key or None, keys)
            kin = (task.parent_task_id or None, task.root_task_id or None)
            inserts.append((*row, *more, *kin, end_ns, arrival_ns, locks, data))
    for delete in _deletes_of_task:
        delete.execute(connection, deleted)
    _insert_tasks.execute(connection, inserts)
    _update_tasks.execute(connection, updates)
    contents = [(task_id, data) for task_id, data in pending.contents.items() if not latest[task_id].deleted]
    _insert_contents.execute(connection, [(task_id, data) for task_id, data in contents if task_id in created])
    _update_contents.execute(connection, [(data, task_id) for task_id, data in contents if task_id not in created])


def _write_agents(connection: Connection, changes: list[Change], pending: Pending, written: Written) -> None:
    created: dict[str, int] = {}
    latest: dict[str, Change] = {}
    deleted: list[Row] = []
    for change in changes:
        agent = change.resource
        assert isinstance(agent, Agent)
        if change.created:
            created[agent.agent_id] = agent.revision
        latest[agent.agent_id] = change
        if change.deleted:
            deleted.append((agent.agent_id,))
    inserts: list[Row] = []
    updates: list[Row] = []
    for agent_id, change in latest.items():
        agent = change.resource
        assert isinstance(agent, Agent)
        if change.deleted:
            continue
        data = written.encoded[agent.revision]
        if agent_id in created:
            spec = pending.specs.get(agent_id, b"")
            inserts.append((created[agent_id], agent_id, agent.state, "", 0, spec, data))
        else:
            updates.append((agent.state, data, agent_id))
    _delete_agents.execute(connection, deleted)
    _insert_agents.execute(connection, inserts)
    _update_agents.execute(connection, updates)


def _write_templates(connection: Connection, changes: list[Change], pending: Pending, written: Written) -> None:
    """The last form of each template and the new versions. What was deleted goes first: its id may be used again."""
    created: dict[str, int] = {}
    latest: dict[str, Template | None] = {}
    deleted: list[Row] = []
    for change in changes:
        template = change.resource
        assert isinstance(template, Template)
        if change.created:
            created[template.template_id] = template.revision
        if change.deleted:
            deleted.append((template.template_id,))
        latest[template.template_id] = None if change.deleted else template
    inserts: list[Row] = []
    updates: list[Row] = []
    for template_id, last in latest.items():
        if last is None:
            continue
        data = written.encoded[last.revision]
        if template_id in created:
            inserts.append((created[template_id], template_id, data))
        else:
            updates.append((data, template_id))
    for delete in _deletes_of_template:
        delete.execute(connection, deleted)
    _insert_templates.execute(connection, inserts)
    _update_templates.execute(connection, updates)
    versions = pending.template_versions.items()
    rows = [(template_id, number, version.SerializeToString()) for (template_id, number), version in versions]
    _insert_template_versions.execute(connection, rows)


def _write_edits(connection: Connection, pending: Pending) -> None:
    """What content was before. A task that was deleted later in the batch is gone with its edits."""
    gone = {resource_id(change.resource): change.resource.revision for change in pending.changes if change.deleted}
    rows = [
        (task_id, revision, edit.SerializeToString())
        for (task_id, revision), edit in pending.edits.items()
        if revision > gone.get(task_id, 0)
    ]
    _insert_edits.execute(connection, rows)


def _write_starts(connection: Connection, pending: Pending) -> None:
    """New starts under a rate; each drops those that its rate looks at no more."""
    floors = {limit_id: floor for (limit_id, _), floor in pending.starts.items()}
    _delete_starts.execute(connection, list(floors.items()))
    _delete_all_starts.execute(connection, [(limit_id,) for limit_id in pending.forgotten_starts])
    _insert_starts.execute(connection, list(pending.starts))


def _write_attempts(connection: Connection, pending: Pending) -> None:
    inserts: list[Row] = []
    updates: list[Row] = []
    for (task_id, number), (record, poll_id) in pending.attempts.items():
        data = record.SerializeToString()
        if (task_id, number) in pending.new_attempts:
            inserts.append((task_id, number, record.state, poll_id, data))
        else:
            updates.append((record.state, data, task_id, number))
    _insert_attempts.execute(connection, inserts)
    _update_attempts.execute(connection, updates)
