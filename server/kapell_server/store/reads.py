"""All reads of clients and watchers. They go past the engine and never wait for the writer."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

import sqlalchemy as sa
from kapell.v1.agent_pb2 import Agent, AgentSpec, ListAgentsRequest, ListAgentsResponse
from kapell.v1.alert_pb2 import Alert
from kapell.v1.approval_pb2 import Approval, ApprovalRule
from kapell.v1.budget_pb2 import Budget
from kapell.v1.common_pb2 import LIST_ORDER_OLDEST_FIRST
from kapell.v1.event_pb2 import Event, GetLogInfoResponse, ListEventsRequest
from kapell.v1.lock_pb2 import Lock, LockSession, LockTicket
from kapell.v1.price_pb2 import Price
from kapell.v1.queue_pb2 import ConcurrencyLimit, Queue
from kapell.v1.schedule_pb2 import Schedule
from kapell.v1.secret_pb2 import Secret
from kapell.v1.task_pb2 import (
    CountTasksRequest,
    CountTasksResponse,
    ListTaskAttemptsResponse,
    ListTaskEditsRequest,
    ListTaskEditsResponse,
    ListTasksRequest,
    Task,
    TaskAttempt,
    TaskFilter,
    TaskStateCount,
)
from kapell.v1.template_pb2 import Template
from kapell.v1.token_pb2 import Token
from kapell.v1.usage_pb2 import UsageUpdate
from kapell.v1.watch_pb2 import EVENT_KIND_SNAPSHOT
from kapell.v1.webhook_pb2 import Webhook
from sqlalchemy.engine import Connection

from kapell_server.domain.not_found import agent_not_found, task_not_found
from kapell_server.domain.pending import Resource
from kapell_server.domain.standing import KINDS
from kapell_server.domain.tasks.bulk_job import Selection
from kapell_server.domain.tasks.retention import compacted
from kapell_server.domain.times import stamp
from kapell_server.store import queries
from kapell_server.store.approval_reads import ApprovalReads
from kapell_server.store.cache import TaskCache
from kapell_server.store.database import Database
from kapell_server.store.family_reads import FamilyReads
from kapell_server.store.listing import Rows
from kapell_server.store.loads import head
from kapell_server.store.pages import ANSWER_BYTES, Page
from kapell_server.store.record import Record
from kapell_server.store.retention import oldest_revision
from kapell_server.store.schedule_reads import ScheduleReads
from kapell_server.store.schema import (
    agents,
    approvals,
    attempts,
    events,
    locks,
    standing,
    task_contents,
    tasks,
    templates,
)
from kapell_server.store.standing_reads import StandingReads
from kapell_server.store.task_selection import select_tasks
from kapell_server.store.template_reads import TemplateReads
from kapell_server.store.token_reads import TokenReads
from kapell_server.store.usage_reads import UsageReads
from kapell_server.store.usage_tables import usage_totals
from kapell_server.store.writes import resource_id
from kapell_server.wire import field, int_field

_MAX_ATTEMPTS = 1000

ResourceKind = Literal[
    "task",
    "agent",
    "template",
    "queue",
    "limit",
    "schedule",
    "price",
    "usage",
    "budget",
    "alert",
    "webhook",
    "approval",
    "approval_rule",
    "lock",
    "ticket",
    "session",
    "secret",
    "token",
]

_task_with_content = (
    sa.select(tasks.c.data, task_contents.c.data)
    .join(task_contents, task_contents.c.task_id == tasks.c.task_id, isouter=True)
    .where(tasks.c.task_id == sa.bindparam("task_id"))
)
_task_row = sa.select(tasks.c.data).where(tasks.c.task_id == sa.bindparam("task_id"))
_agent_row = sa.select(agents.c.data, agents.c.seen_ns).where(agents.c.agent_id == sa.bindparam("agent_id"))


class Reads:
    """Answers from committed state. `head` and `oldest` tell the bounds of the log that watchers know."""

    def __init__(
        self,
        database: Database,
        cache: TaskCache,
        *,
        log_id: str,
        head: Callable[[], int],
        oldest: Callable[[], int],
        has_usage: Callable[[], bool] = lambda: False,
    ) -> None:
        self._database = database
        self._cache = cache
        self._log_id = log_id
        self._head = head
        self._oldest = oldest
        self.templates = TemplateReads(database)
        self.families = FamilyReads(database)
        self.standing = StandingReads(database)
        self.schedules = ScheduleReads(database)
        self.usage = UsageReads(database, has_usage)
        self.approvals = ApprovalReads(database)
        self.tokens = TokenReads(database)

    # -- tasks -------------------------------------------------------------------------------

    async def get_task(self, task_id: str) -> bytes:
        """The encoded task with prompt, input, result and what it has used. Raises TASK_NOT_FOUND."""
        [totals] = await self.usage.of_tasks([task_id])
        cached = self._cache.get(task_id)
        if cached is not None:
            return cached + totals
        row = await self._database.read(
            lambda connection: connection.execute(_task_with_content, {"task_id": task_id}).first()
        )
        if row is None:
            raise task_not_found(task_id)
        return bytes(row[0]) + bytes(row[1] or b"") + totals

    async def task(self, task_id: str) -> Task:
        """The task without its content. Raises TASK_NOT_FOUND."""
        data = await self._database.read(lambda connection: connection.scalar(_task_row, {"task_id": task_id}))
        if data is None:
            raise task_not_found(task_id)
        return Task.FromString(data)

    async def list_tasks(self, request: ListTasksRequest) -> bytes:
        """An encoded ListTasksResponse. Raises PAGE_TOKEN_INVALID."""
        page = Page(size=request.page_size, token=request.page_token, order=request.order, bound_to=request.filter)
        revision, rows = await self._read(lambda connection: queries.list_tasks(connection, request.filter, page))
        if self.usage.exists():
            totals = await self.usage.of_tasks([Task.FromString(data).task_id for data in rows.data])
            rows = Rows([data + more for data, more in zip(rows.data, totals, strict=True)], rows.next_cursor)
        return _encoded(page, revision, rows)

    async def _read(self, query: Callable[[Connection], Rows]) -> tuple[int, Rows]:
        return await self._database.read(lambda connection: (head(connection), query(connection)))

    async def _page(self, page: Page, query: Callable[[Connection], Rows]) -> bytes:
        return _encoded(page, *await self._read(query))

    async def select_tasks(self, wanted: TaskFilter, limit: int) -> Selection:
        """The tasks that match, the oldest first, with the ids of `limit` of them at most."""
        return await select_tasks(self._database, wanted, limit)

    async def list_edits(self, request: ListTaskEditsRequest) -> ListTaskEditsResponse:
        """A page of what the content was before its edits. Raises TASK_NOT_FOUND, PAGE_TOKEN_INVALID."""
        bound_to = ListTaskEditsRequest(task_id=request.task_id)
        page = Page(size=request.page_size, token=request.page_token, order=LIST_ORDER_OLDEST_FIRST, bound_to=bound_to)
        return await self._database.read(lambda connection: queries.list_edits(connection, request.task_id, page))

    async def count_tasks(self, request: CountTasksRequest) -> CountTasksResponse:
        """How many matching tasks are in each state."""

        def work(connection: Connection) -> tuple[int, list[tuple[int, int]]]:
            return head(connection), queries.count_tasks(connection, request.filter)

        revision, counts = await self._database.read(work)
        return CountTasksResponse(
            counts=[TaskStateCount(state=state, count=count) for state, count in counts],  # type: ignore[arg-type]
            revision=revision,
        )

    async def list_attempts(self, task_id: str) -> ListTaskAttemptsResponse:
        """The attempts of a task, the first one first; the newest if they are many. Raises TASK_NOT_FOUND."""
        newest = (
            sa.select(attempts.c.data)
            .where(attempts.c.task_id == task_id)
            .order_by(attempts.c.attempt.desc())
            .limit(_MAX_ATTEMPTS)
        )

        def work(connection: Connection) -> ListTaskAttemptsResponse:
            if connection.scalar(_task_row, {"task_id": task_id}) is None:
                raise task_not_found(task_id)
            found: list[TaskAttempt] = []
            size = 0
            with connection.scalars(newest.execution_options(yield_per=8)) as rows:
                for data in rows:
                    size += len(data)
                    if found and size > ANSWER_BYTES:
                        break
                    found.append(TaskAttempt.FromString(data))
            return ListTaskAttemptsResponse(attempts=reversed(found), revision=head(connection))

        return await self._database.read(work)

    # -- agents ------------------------------------------------------------------------------

    async def get_agent(self, agent_id: str) -> Agent:
        """The agent, with the time it was last heard of. Raises AGENT_NOT_FOUND."""
        row = await self._database.read(
            lambda connection: connection.execute(_agent_row, {"agent_id": agent_id}).first()
        )
        if row is None:
            raise agent_not_found(agent_id)
        agent = Agent.FromString(row[0])
        if row[1]:
            stamp(agent.last_heartbeat_time, row[1])
        await self.usage.fill_agents([agent])
        return agent

    async def agent_spec(self, agent_id: str) -> AgentSpec:
        """What the agent is made of, secrets included: for the spawner alone. Raises AGENT_NOT_FOUND."""
        statement = sa.select(agents.c.spec).where(agents.c.agent_id == agent_id)
        data = await self._database.read(lambda connection: connection.scalar(statement))
        if data is None:
            raise agent_not_found(agent_id)
        return AgentSpec.FromString(data)

    async def list_agents(self, request: ListAgentsRequest) -> ListAgentsResponse:
        """A page of agents, each with the time it was last heard of. Raises PAGE_TOKEN_INVALID."""
        page = Page(size=request.page_size, token=request.page_token, order=request.order, bound_to=request.filter)
        encoded = await self._page(page, lambda connection: queries.list_agents(connection, request.filter, page))
        response = ListAgentsResponse.FromString(encoded)
        ids = [agent.agent_id for agent in response.agents]
        seen = await self._database.read(
            lambda connection: connection.execute(
                sa.select(agents.c.agent_id, agents.c.seen_ns).where(agents.c.agent_id.in_(ids))
            ).all()
        )
        seen_ns = {agent_id: ns for agent_id, ns in seen if ns}
        for agent in response.agents:
            if agent.agent_id in seen_ns:
                stamp(agent.last_heartbeat_time, seen_ns[agent.agent_id])
        await self.usage.fill_agents(response.agents)
        return response

    # -- events ------------------------------------------------------------------------------

    async def list_events(self, request: ListEventsRequest) -> bytes:
        """An encoded ListEventsResponse. Raises PAGE_TOKEN_INVALID, REVISION_COMPACTED."""
        page = Page(size=request.page_size, token=request.page_token, order=request.order, bound_to=request.filter)

        def work(connection: Connection) -> Rows:
            oldest = oldest_revision(connection)
            if page.oldest_first and page.cursor is not None and page.cursor < oldest:
                raise compacted(page.cursor, oldest=oldest, current=head(connection), log_id=self._log_id)
            return queries.list_events(connection, request.filter, page, oldest)

        return await self._page(page, work)

    async def events_after(self, revision: int, limit: int) -> list[Record]:
        """Up to `limit` records beyond `revision`, in order."""
        statement = (
            sa.select(events.c.revision, events.c.kind, events.c.resource_id, events.c.data)
            .where(events.c.revision > revision)
            .order_by(events.c.revision)
            .limit(limit)
        )
        rows = await self._database.read(lambda connection: connection.execute(statement).all())
        return [_record(*row) for row in rows]

    async def snapshot(
        self,
        kind: ResourceKind,
        after: int,
        until_revision: int,
        limit: int,
        ids: Collection[str] = (),
    ) -> tuple[list[Record], int | None]:
        """SNAPSHOT records of what has not changed since `until_revision`, in order of creation.

        Where `ids` are given, of these only.

        `after` is the cursor of the page before, 0 at first. The second value is the next cursor,
        None when there is no more.
        """
        table = _TABLES[kind][0]
        standing_kind = KINDS.get(_TABLES[kind][1])
        statement = (
            sa.select(table.c.create_revision, table.c.data)
            .where(table.c.create_revision > after, table.c.create_revision <= until_revision)
            .order_by(table.c.create_revision)
            .limit(limit)
        )
        if standing_kind is not None:
            statement = statement.where(table.c.kind == standing_kind.number)
        if ids:
            statement = statement.where(table.c["resource_id" if standing_kind is not None else f"{kind}_id"].in_(ids))
        rows = await self._database.read(lambda connection: connection.execute(statement).all())
        records = [_snapshot_record(kind, bytes(data)) for _, data in rows]
        cursor = rows[-1][0] if len(rows) == limit else None
        return [record for record in records if record.revision <= until_revision], cursor

    async def log_info(self) -> GetLogInfoResponse:
        """Which log this is, and what it holds."""
        return GetLogInfoResponse(log_id=self._log_id, revision=self._head(), oldest_revision=self._oldest())


def _encoded(page: Page, revision: int, rows: Rows) -> bytes:
    """A list response: resources in field 1, next_page_token in 2, revision in 3."""
    parts = [field(1, data) for data in rows.data]
    if rows.next_cursor is not None:
        parts.append(field(2, page.token(rows.next_cursor).encode()))
    parts.append(int_field(3, revision))
    return b"".join(parts)


def _record(revision: int, kind: int, resource_id: str, data: bytes) -> Record:
    return Record(revision, kind, resource_id, queries.resource_of(Event.FromString(data)), bytes(data))


_TABLES: dict[ResourceKind, tuple[sa.Table, type[Resource]]] = {
    "task": (tasks, Task),
    "agent": (agents, Agent),
    "template": (templates, Template),
    "queue": (standing, Queue),
    "limit": (standing, ConcurrencyLimit),
    "schedule": (standing, Schedule),
    "budget": (standing, Budget),
    "alert": (standing, Alert),
    "webhook": (standing, Webhook),
    "price": (standing, Price),
    "usage": (usage_totals, UsageUpdate),
    "approval": (approvals, Approval),
    "approval_rule": (standing, ApprovalRule),
    "lock": (locks, Lock),
    "ticket": (locks, LockTicket),
    "session": (locks, LockSession),
    "secret": (standing, Secret),
    "token": (standing, Token),
}


def _snapshot_record(kind: ResourceKind, data: bytes) -> Record:
    resource: Resource = _TABLES[kind][1].FromString(data)
    number = Event.DESCRIPTOR.fields_by_name[kind].number
    event = Event(revision=resource.revision, kind=EVENT_KIND_SNAPSHOT)
    encoded = event.SerializeToString() + field(number, data)
    return Record(resource.revision, EVENT_KIND_SNAPSHOT, resource_id(resource), resource, encoded)
