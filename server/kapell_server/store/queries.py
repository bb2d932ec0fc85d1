"""The lists: keyset pages over creation order, with a limit on what one page may look at.

A filter that no index serves (labels, types) looks at a bounded window of rows a page; such a
page may come back short, even empty, with a token to go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from kapell.v1.agent_pb2 import Agent, AgentFilter
from kapell.v1.event_pb2 import Event, EventFilter
from kapell.v1.schedule_pb2 import Schedule
from kapell.v1.task_pb2 import ListTaskEditsResponse, Task, TaskEdit, TaskFilter
from kapell.v1.template_pb2 import Template
from sqlalchemy.engine import Connection

from kapell_server.domain.pending import Resource
from kapell_server.domain.standing import KINDS
from kapell_server.domain.state import task_not_found
from kapell_server.domain.task_filter import has_labels, task_test
from kapell_server.domain.times import timestamp_ns
from kapell_server.store.pages import Page
from kapell_server.store.schema import agents, events, standing, task_edits, tasks, templates

_SCAN_ROWS = 20_000
"""Rows one page may look at for a filter without an index."""
_FETCH = 500
_EDITS_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Rows:
    """A page: the matching rows' bytes, and the cursor to go on from (None at the end)."""

    data: list[bytes]
    next_cursor: int | None


def page_of(
    connection: Connection,
    statement: sa.Select[Any],
    key: sa.Column[Any],
    page: Page,
    matches: Callable[[bytes], bool] | None,
) -> Rows:
    """Rows of `statement` (key, data) in the page's order, those that `matches` keeps."""
    ordered = statement.order_by(key.asc() if page.oldest_first else key.desc())
    found: list[bytes] = []
    cursor = page.cursor
    looked_at = 0
    while looked_at < _SCAN_ROWS:
        limit = page.size + 1 if matches is None else _FETCH
        bounded = ordered.limit(limit)
        if cursor is not None:
            bounded = bounded.where(key > cursor if page.oldest_first else key < cursor)
        rows = connection.execute(bounded).all()
        for row_key, data in rows:
            if matches is None or matches(data):
                if len(found) == page.size:
                    return Rows(found, cursor)
                found.append(bytes(data))
            cursor = row_key
        looked_at += len(rows)
        if len(rows) < limit:
            return Rows(found, None)
    return Rows(found, cursor)


def list_tasks(connection: Connection, wanted: TaskFilter, page: Page) -> Rows:
    """Encoded tasks, without content."""
    statement = sa.select(tasks.c.create_revision, tasks.c.data).where(*task_conditions(wanted))
    return page_of(connection, statement, tasks.c.create_revision, page, _in_bytes(wanted))


def task_conditions(wanted: TaskFilter) -> list[sa.ColumnElement[bool]]:
    """What of a filter SQL can say: everything but labels and reasons of failure."""
    conditions: list[sa.ColumnElement[bool]] = []
    if wanted.states:
        conditions.append(tasks.c.state.in_(wanted.states))
    if wanted.task_ids:
        conditions.append(tasks.c.task_id.in_(wanted.task_ids))
    if wanted.agent_types:
        conditions.append(tasks.c.agent_type.in_(wanted.agent_types))
    if wanted.template_ids:
        conditions.append(tasks.c.template_id.in_(wanted.template_ids))
    if wanted.parent_task_id:
        conditions.append(tasks.c.parent_id == wanted.parent_task_id)
    if wanted.root_task_id:
        conditions.append(tasks.c.root_id == wanted.root_task_id)
    if wanted.HasField("created_after_time"):
        conditions.append(tasks.c.create_ns >= timestamp_ns(wanted.created_after_time))
    if wanted.HasField("created_before_time"):
        conditions.append(tasks.c.create_ns < timestamp_ns(wanted.created_before_time))
    return conditions


def in_bytes_only(wanted: TaskFilter) -> bool:
    """Whether the filter asks for something that no column has."""
    return bool(wanted.labels or wanted.failure_reasons)


def _in_bytes(wanted: TaskFilter) -> Callable[[bytes], bool] | None:
    if not in_bytes_only(wanted):
        return None
    test = task_test(wanted)
    return lambda data: test(Task.FromString(data))


def list_edits(connection: Connection, task_id: str, page: Page) -> ListTaskEditsResponse:
    """A page of a task's edits, which ends before its size where their texts are long."""
    if connection.scalar(sa.select(tasks.c.task_id).where(tasks.c.task_id == task_id)) is None:
        raise task_not_found(task_id)
    newest = connection.scalar(sa.select(sa.func.max(events.c.revision))) or 0
    response = ListTaskEditsResponse(revision=newest)
    statement = (
        sa.select(task_edits.c.revision, task_edits.c.data)
        .where(task_edits.c.task_id == task_id, task_edits.c.revision > (page.cursor or 0))
        .order_by(task_edits.c.revision)
        .limit(page.size + 1)
    )
    size = 0
    with connection.execute(statement.execution_options(yield_per=8)) as rows:
        for _, data in rows:
            size += len(data)
            if len(response.edits) == page.size or (response.edits and size > _EDITS_BYTES):
                response.next_page_token = page.token(response.edits[-1].revision)
                break
            response.edits.append(TaskEdit.FromString(data))
    return response


def count_tasks(connection: Connection, wanted: TaskFilter) -> list[tuple[int, int]]:
    """(state, count) of the matching tasks, by state."""
    statement = (
        sa.select(tasks.c.state, sa.func.count())
        .where(*task_conditions(wanted))
        .group_by(tasks.c.state)
        .order_by(tasks.c.state)
    )
    return [(state, count) for state, count in connection.execute(statement)]


def list_agents(connection: Connection, wanted: AgentFilter, page: Page) -> Rows:
    """Encoded agents with their time of last being seen joined on."""
    statement = sa.select(agents.c.create_revision, agents.c.data)
    if wanted.states:
        statement = statement.where(agents.c.state.in_(wanted.states))
    if wanted.agent_ids:
        statement = statement.where(agents.c.agent_id.in_(wanted.agent_ids))

    def matches(data: bytes) -> bool:
        agent = Agent.FromString(data)
        serves = not wanted.agent_types or any(kind in wanted.agent_types for kind in agent.agent_types)
        return serves and has_labels(agent.labels, wanted.labels)

    filtered = bool(wanted.agent_types or wanted.labels)
    return page_of(connection, statement, agents.c.create_revision, page, matches if filtered else None)


def list_events(connection: Connection, wanted: EventFilter, page: Page) -> Rows:
    """Encoded events. The history of one resource is walked back along its own chain."""
    if sum(map(bool, (wanted.task_ids, wanted.agent_ids, wanted.template_ids, wanted.schedule_ids))) > 1:
        return Rows([], None)  # no event is of a task and of an agent
    ids = [*wanted.task_ids, *wanted.agent_ids, *wanted.template_ids, *wanted.schedule_ids]
    if len(ids) == 1 and not page.oldest_first:
        return _history(connection, ids[0], wanted, page)
    statement = sa.select(events.c.revision, events.c.data)
    if ids:
        statement = statement.where(events.c.resource_id.in_(ids))
    if wanted.kinds:
        statement = statement.where(events.c.kind.in_(wanted.kinds))
    return page_of(connection, statement, events.c.revision, page, _event_labels(wanted.labels))


def _event_labels(labels: Mapping[str, str]) -> Callable[[bytes], bool] | None:
    if not labels:
        return None

    def matches(data: bytes) -> bool:
        resource = resource_of(Event.FromString(data))
        return isinstance(resource, (Task, Agent)) and has_labels(resource.labels, labels)

    return matches


def resource_of(event: Event) -> Resource:
    """What an event is about."""
    match event.WhichOneof("resource"):
        case "agent":
            return event.agent
        case "template":
            return event.template
        case "queue":
            return event.queue
        case "limit":
            return event.limit
        case "schedule":
            return event.schedule
        case _:
            return event.task


def _history(connection: Connection, resource_id: str, wanted: EventFilter, page: Page) -> Rows:
    """The newest events of one resource, following previous_revision."""
    revision = page.cursor
    if revision is None:
        revision = _newest_revision(connection, resource_id)
    else:
        revision = connection.scalar(sa.select(events.c.previous_revision).where(events.c.revision == revision)) or 0
    matches = _event_labels(wanted.labels)
    found: list[bytes] = []
    last = 0
    while revision:
        row = connection.execute(_event_by_revision, {"revision": revision}).one()
        kept = (not wanted.kinds or row.kind in wanted.kinds) and (matches is None or matches(row.data))
        if kept:
            if len(found) == page.size:
                return Rows(found, last)
            found.append(bytes(row.data))
        last = revision
        revision = row.previous_revision
    return Rows(found, None)


_event_by_revision = sa.select(events.c.kind, events.c.previous_revision, events.c.data).where(
    events.c.revision == sa.bindparam("revision")
)


def _newest_revision(connection: Connection, resource_id: str) -> int:
    """The revision of a resource's latest event; 0 where it is unknown. Deleted ones are searched for."""
    if resource_id.startswith("agent_"):
        data = connection.scalar(sa.select(agents.c.data).where(agents.c.agent_id == resource_id))
        if data is not None:
            return Agent.FromString(data).revision
    elif resource_id.startswith("schedule_"):
        of_id = standing.c.kind == KINDS[Schedule].number, standing.c.resource_id == resource_id
        data = connection.scalar(sa.select(standing.c.data).where(*of_id))
        if data is not None:
            return Schedule.FromString(data).revision
    elif not resource_id.startswith("task_"):
        data = connection.scalar(sa.select(templates.c.data).where(templates.c.template_id == resource_id))
        if data is not None:
            return Template.FromString(data).revision
    else:
        data = connection.scalar(sa.select(tasks.c.data).where(tasks.c.task_id == resource_id))
        if data is not None:
            return Task.FromString(data).revision
    newest = sa.select(sa.func.max(events.c.revision)).where(events.c.resource_id == resource_id)
    return connection.scalar(newest) or 0
