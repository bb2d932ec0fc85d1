"""The lists: which index serves which filter, and what is looked for in windows (see `listing`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from kapell.v1.agent_pb2 import Agent, AgentFilter
from kapell.v1.approval_pb2 import Approval
from kapell.v1.event_pb2 import Event, EventFilter
from kapell.v1.schedule_pb2 import Schedule
from kapell.v1.task_pb2 import ListTaskEditsResponse, Task, TaskEdit, TaskFilter
from kapell.v1.template_pb2 import Template
from kapell.v1.watch_pb2 import EventKind
from sqlalchemy.engine import Connection

from kapell_server.domain.not_found import task_not_found
from kapell_server.domain.pending import Resource
from kapell_server.domain.standing import KINDS
from kapell_server.domain.tasks.task_filter import has_labels, task_test
from kapell_server.domain.times import timestamp_ns
from kapell_server.store.listing import Conditions, Listing, Rows, page_of
from kapell_server.store.pages import ANSWER_BYTES, Page
from kapell_server.store.schema import agents, approvals, events, standing, task_edits, tasks, templates

_CHAIN_STEPS = 2_000
"""Events of one resource that one page may look at."""


def list_tasks(connection: Connection, wanted: TaskFilter, page: Page) -> Rows:
    """Encoded tasks, without content."""
    parts, rest = _task_parts(wanted)
    listing = Listing(
        key=tasks.c.create_revision,
        data=tasks.c.data,
        parts=parts,
        rest=rest,
        matches=_in_bytes(wanted),
    )
    return page_of(connection, listing, page)


def _task_parts(wanted: TaskFilter) -> tuple[Sequence[Conditions], Conditions]:
    """What of a filter an index serves, one part a value, and the rest of what SQL can say."""
    if wanted.task_ids:
        return (task_conditions(wanted),), ()
    rest = TaskFilter()
    rest.CopyFrom(wanted)
    for name, column in _INDEXED:
        values: Any = getattr(wanted, name)
        if values:
            rest.ClearField(name)
            alternatives = [values] if isinstance(values, str) else sorted(set(values))
            return [(column == value,) for value in alternatives], task_conditions(rest)
    return ((),), task_conditions(rest)


_INDEXED: tuple[tuple[Any, sa.Column[Any]], ...] = (
    ("parent_task_id", tasks.c.parent_id),
    ("root_task_id", tasks.c.root_id),
    ("template_ids", tasks.c.template_id),
    ("states", tasks.c.state),
)
"""Fields of a TaskFilter with an index of their own, the most selective first."""


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
            if len(response.edits) == page.size or (response.edits and size > ANSWER_BYTES):
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
    ids = [agents.c.agent_id.in_(wanted.agent_ids)] if wanted.agent_ids else []
    states = [[agents.c.state == value, *ids] for value in sorted(set(wanted.states))]

    def matches(data: bytes) -> bool:
        agent = Agent.FromString(data)
        serves = not wanted.agent_types or any(kind in wanted.agent_types for kind in agent.agent_types)
        return serves and has_labels(agent.labels, wanted.labels)

    filtered = bool(wanted.agent_types or wanted.labels)
    listing = Listing(
        key=agents.c.create_revision,
        data=agents.c.data,
        parts=states or [ids],
        matches=matches if filtered else None,
    )
    return page_of(connection, listing, page)


_KINDS_OF = {
    noun: frozenset(
        number
        for name, number in EventKind.items()
        if name.startswith(f"EVENT_KIND_{noun.upper()}_") and not name.startswith("EVENT_KIND_APPROVAL_RULE_")
    )
    for noun in ("task", "agent", "template", "schedule", "approval")
}
"""The events of the resources that a filter names."""


def list_events(connection: Connection, wanted: EventFilter, page: Page, oldest: int) -> Rows:
    """Encoded events after the revision `oldest`. The history of one resource is walked back along its own chain."""
    named = {noun: ids for noun in _KINDS_OF if (ids := getattr(wanted, f"{noun}_ids"))}
    if len(named) > 1:
        return Rows([], None)  # no event is of a task and of an agent
    noun = next(iter(named), "")
    ids = named.get(noun, ())
    kinds = frozenset(wanted.kinds)
    if noun:  # Another resource may have the same id.
        kinds = kinds & _KINDS_OF[noun] if kinds else _KINDS_OF[noun]
        if not kinds:
            return Rows([], None)
    if len(ids) == 1 and not page.oldest_first:
        revision = _next_of_chain(connection, ids[0], page.cursor)
        if revision is not None:
            return _history(connection, revision, wanted.labels, kinds, page, oldest)
    rest: list[sa.ColumnElement[bool]] = []
    if ids:
        rest.append(events.c.resource_id.in_(ids))
    if kinds:
        rest.append(events.c.kind.in_(sorted(kinds)))
    listing = Listing(
        key=events.c.revision,
        data=events.c.data,
        parts=([events.c.revision > oldest],),
        rest=rest,
        matches=_event_labels(wanted.labels),
        gapless=True,
    )
    return page_of(connection, listing, page)


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
        case "budget":
            return event.budget
        case "alert":
            return event.alert
        case "webhook":
            return event.webhook
        case "usage":
            return event.usage
        case "price":
            return event.price
        case "approval":
            return event.approval
        case "approval_rule":
            return event.approval_rule
        case "lock":
            return event.lock
        case "ticket":
            return event.ticket
        case "session":
            return event.session
        case "secret":
            return event.secret
        case "token":
            return event.token
        case _:
            return event.task


def _next_of_chain(connection: Connection, resource_id: str, cursor: int | None) -> int | None:
    """Where the history of one resource goes on; None where the log has to be searched for it.

    That is so for a resource that was deleted, and for the pages that a search has begun.
    """
    if cursor is None:
        return _newest_revision(connection, resource_id)
    at = connection.execute(_event_by_revision, {"revision": cursor}).first()
    return at.previous_revision if at is not None and at.resource_id == resource_id else None


def _history(
    connection: Connection, revision: int, labels: Mapping[str, str], kinds: frozenset[int], page: Page, oldest: int
) -> Rows:
    """The events of one resource from `revision` back, following previous_revision."""
    matches = _event_labels(labels)
    found: list[bytes] = []
    size = last = 0
    for _ in range(_CHAIN_STEPS):
        row = connection.execute(_event_by_revision, {"revision": revision}).first() if revision > oldest else None
        if row is None:
            return Rows(found, None)
        kept = row.kind in kinds and (matches is None or matches(row.data))
        if kept:
            size += len(row.data)
            if len(found) == page.size or (found and size > ANSWER_BYTES):
                return Rows(found, last)
            found.append(bytes(row.data))
        last = revision
        revision = row.previous_revision
    return Rows(found, last)


_LOCK_IDS = ("lock_", "ticket_", "session_")

_event_by_revision = sa.select(events.c.kind, events.c.resource_id, events.c.previous_revision, events.c.data).where(
    events.c.revision == sa.bindparam("revision")
)


def _newest_revision(connection: Connection, resource_id: str) -> int | None:
    """The revision of a resource's latest event; None where it is unknown or deleted."""
    if resource_id.startswith("agent_"):
        data = connection.scalar(sa.select(agents.c.data).where(agents.c.agent_id == resource_id))
        if data is not None:
            return Agent.FromString(data).revision
    elif resource_id.startswith("schedule_"):
        of_id = standing.c.kind == KINDS[Schedule].number, standing.c.resource_id == resource_id
        data = connection.scalar(sa.select(standing.c.data).where(*of_id))
        if data is not None:
            return Schedule.FromString(data).revision
    elif resource_id.startswith("approval_"):
        data = connection.scalar(sa.select(approvals.c.data).where(approvals.c.approval_id == resource_id))
        if data is not None:
            return Approval.FromString(data).revision
    elif resource_id.startswith(_LOCK_IDS):
        return None  # The log is searched: few are asked for, and most are gone.
    elif not resource_id.startswith("task_"):
        data = connection.scalar(sa.select(templates.c.data).where(templates.c.template_id == resource_id))
        if data is not None:
            return Template.FromString(data).revision
    else:
        data = connection.scalar(sa.select(tasks.c.data).where(tasks.c.task_id == resource_id))
        if data is not None:
            return Task.FromString(data).revision
    return None
