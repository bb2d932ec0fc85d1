"""Reads for the writer: the rows a batch needs, what a start needs, and the answers given before."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa
from kapell.rules.programs import program_of
from kapell.v1.agent_pb2 import Agent, AgentSpec
from kapell.v1.approval_pb2 import Approval, ApprovalContent
from kapell.v1.dependency_pb2 import DEPENDENCY_CONDITION_STARTED
from kapell.v1.task_pb2 import (
    ATTEMPT_STATE_RUNNING,
    ATTEMPT_STATE_SUCCEEDED,
    TASK_STATE_CANCELLING,
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    TASK_STATE_SUCCEEDED,
    Task,
    TaskAttempt,
    TaskSpec,
)
from kapell.v1.template_pb2 import Template, TemplateVersion
from sqlalchemy import bindparam
from sqlalchemy.engine import Connection

from kapell_server.domain.queueing.ready import ReadyEntry
from kapell_server.domain.standing import Standing
from kapell_server.domain.tasks.edges import KEPT, Edge
from kapell_server.domain.transitions import AGENT_FINAL, TASK_FINAL, TASK_RESTING
from kapell_server.domain.usage.entry import Dims, Entry, Series, Total
from kapell_server.store import approval_rows, usage_rows
from kapell_server.store.budget_rows import BudgetRows, load_budget_rows
from kapell_server.store.bulk import Bulk, Lookup
from kapell_server.store.retention import newest_event_before, oldest_revision
from kapell_server.store.schedule_rows import load_schedule_runs, load_schedule_task
from kapell_server.store.schema import (
    agents,
    answers,
    attempts,
    events,
    meta,
    starts,
    task_contents,
    task_edges,
    tasks,
    template_versions,
    templates,
)
from kapell_server.store.secret_rows import load_secret_values
from kapell_server.store.standing_rows import load_standing

_tasks_by_id = Lookup(sa.select(tasks.c.data), tasks.c.task_id)
_contents_by_id = Lookup(sa.select(task_contents.c.task_id, task_contents.c.data), task_contents.c.task_id)
_agents_by_id = Lookup(sa.select(agents.c.data), agents.c.agent_id)
_answers_by_key = Lookup(sa.select(answers.c.request_key, answers.c.fingerprint, answers.c.data), answers.c.request_key)
_templates_by_id = Lookup(sa.select(templates.c.data), templates.c.template_id)
_template_version = sa.select(template_versions.c.data).where(
    template_versions.c.template_id == bindparam("template_id"), template_versions.c.version == bindparam("version")
)
_families = Lookup(
    sa.select(tasks.c.create_revision, tasks.c.root_id, tasks.c.task_id, tasks.c.parent_id), tasks.c.root_id
)
_live_tasks_of = (
    sa.select(sa.func.count())
    .select_from(tasks)
    .where(tasks.c.template_id == bindparam("template_id"), tasks.c.state.not_in(TASK_FINAL))
)
_attempt = sa.select(attempts.c.data).where(
    attempts.c.task_id == bindparam("task_id"), attempts.c.attempt == bindparam("attempt")
)
_LOOKED_AT = 10_000
"""So many of the newest tasks of a template are looked through for those that succeeded."""
_newest_of = (
    sa.select(tasks.c.task_id, tasks.c.state, tasks.c.create_revision)
    .where(tasks.c.template_id == bindparam("template_id"))
    .order_by(tasks.c.create_revision.desc())
    .limit(_LOOKED_AT)
    .subquery()
)
_succeeded_of = (
    sa.select(attempts.c.data)
    .join(_newest_of, _newest_of.c.task_id == attempts.c.task_id)
    .where(_newest_of.c.state == TASK_STATE_SUCCEEDED, attempts.c.state == ATTEMPT_STATE_SUCCEEDED)
    .order_by(_newest_of.c.create_revision.desc())
    .limit(bindparam("most"))
)
_live_member = (
    sa.select(tasks.c.task_id).where(tasks.c.root_id == bindparam("root_id"), tasks.c.state.not_in(TASK_FINAL)).limit(1)
)
_changed_after = sa.select(events.c.resource_id).where(events.c.revision > bindparam("revision")).distinct()


class RowLoader:
    """The engine's eyes during one batch: loads rows over the batch's own connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def load_tasks(self, task_ids: Collection[str]) -> list[Task]:
        """The tasks that exist, in no order."""
        return [Task.FromString(data) for (data,) in _tasks_by_id.rows(self._connection, task_ids)]

    def load_contents(self, task_ids: Collection[str]) -> dict[str, bytes]:
        """The encoded contents of the tasks that have one."""
        return {task_id: bytes(data) for task_id, data in _contents_by_id.rows(self._connection, task_ids)}

    def load_agent(self, agent_id: str) -> Agent | None:
        """The agent, or None."""
        for (data,) in _agents_by_id.rows(self._connection, (agent_id,)):
            return Agent.FromString(data)
        return None

    def load_template(self, template_id: str) -> Template | None:
        """The template without its prompt, or None."""
        for (data,) in _templates_by_id.rows(self._connection, (template_id,)):
            return Template.FromString(data)
        return None

    def load_template_version(self, template_id: str, version: int) -> TemplateVersion | None:
        """One version whole, or None."""
        data = self._connection.scalar(_template_version, {"template_id": template_id, "version": version})
        return None if data is None else TemplateVersion.FromString(data)

    def count_live_tasks_of(self, template_id: str) -> int:
        """How many tasks of the template have not ended."""
        return self._connection.scalar(_live_tasks_of, {"template_id": template_id}) or 0

    def load_families(self, root_ids: Collection[str]) -> list[tuple[str, str, str]]:
        """(root, task, parent) of all below these roots, the eldest first."""
        rows = sorted(tuple(row) for row in _families.rows(self._connection, root_ids))
        return [(root_id, task_id, parent_id) for _, root_id, task_id, parent_id in rows]

    def load_attempt(self, task_id: str, attempt: int) -> TaskAttempt | None:
        """The attempt, or None."""
        data = self._connection.scalar(_attempt, {"task_id": task_id, "attempt": attempt})
        return None if data is None else TaskAttempt.FromString(data)

    def load_succeeded(self, template_id: str, most: int) -> list[TaskAttempt]:
        """The attempts that succeeded of the newest tasks of a template, the newest first."""
        found = self._connection.scalars(_succeeded_of, {"template_id": template_id, "most": most})
        return [TaskAttempt.FromString(data) for data in found]

    def load_changed_tasks(self, after_revision: int) -> list[str]:
        """The tasks that committed events beyond a revision are about."""
        rows = self._connection.scalars(_changed_after, {"revision": after_revision})
        return [resource_id for resource_id in rows if resource_id.startswith("task_")]

    def load_schedule_task(self, schedule_id: str) -> TaskSpec | None:
        """The whole task of a schedule, or None."""
        return load_schedule_task(self._connection, schedule_id)

    def has_live_member(self, root_id: str) -> bool:
        """Whether a task below the root has not ended."""
        return self._connection.scalar(_live_member, {"root_id": root_id}) is not None

    def load_usage_versions(self, record_ids: Collection[str]) -> list[Entry]:
        """All versions of these records of usage, the first ones first."""
        return usage_rows.load_versions(self._connection, record_ids)

    def load_usage_series(self, names: Collection[str]) -> dict[str, Series]:
        """The running totals of those of these series that exist."""
        return usage_rows.load_series(self._connection, names)

    def load_usage_key(self, dims: Dims) -> int | None:
        """The line of the sums of usage for these values, or None."""
        return usage_rows.load_key(self._connection, dims)

    def load_usage_totals(self, usage_ids: Collection[str]) -> dict[str, Total]:
        """The totals of those tasks and agents that have used anything."""
        return usage_rows.load_totals(self._connection, usage_ids)

    def load_approval(self, approval_id: str) -> Approval | None:
        """The approval, without what it shows."""
        return approval_rows.load_approval(self._connection, approval_id)

    def load_named_approval(self, task_id: str, request_key: str) -> Approval | None:
        """The latest approval that was asked for under this name within a task."""
        return approval_rows.load_named_approval(self._connection, task_id, request_key)

    def load_approval_content(self, approval_id: str) -> ApprovalContent:
        """What an approval shows."""
        return approval_rows.load_approval_content(self._connection, approval_id)

    def newest_event_before(self, time_ns: int) -> int:
        """The revision of the newest event from before the time; 0 where there is none."""
        return newest_event_before(self._connection, time_ns)

    def load_answers(self, keys: Collection[str]) -> dict[str, tuple[bytes, bytes]]:
        """Fingerprint and answer of the keys that were answered before."""
        rows = _answers_by_key.rows(self._connection, keys)
        return {key: (bytes(fingerprint), bytes(data)) for key, fingerprint, data in rows}


@dataclass(slots=True)
class Resumption:
    """What the engine holds in memory, as the database has it."""

    log_id: str
    revision: int
    oldest_revision: int
    agents: list[tuple[Agent, str]]
    """Agents that have not ended, each with its instance key."""
    attempts: list[tuple[TaskAttempt, str]]
    """Running attempts, each with the poll_id that got it."""
    standing: list[Standing]
    """Queues, limits and whatever else stays."""
    approvals: list[Approval]
    """Approvals that wait."""
    queued: list[tuple[ReadyEntry, str]]
    """Places in the queues, each with its fairness key."""
    leased: list[tuple[str, str, int, tuple[str, ...]]]
    """Tasks that agents have: id, agent type, time they first joined their queue, concurrency keys."""
    resting: list[tuple[str, int, tuple[str, ...]]]
    """Tasks under keys that wait for their next attempt: id, time they first joined, concurrency keys."""
    starts: list[tuple[str, int]]
    """When tasks under a start rate began: limit id and time, in order of time."""
    budgets: BudgetRows
    """What was spent of budgets, and what callers have reserved."""
    secret_values: dict[str, bytes]
    """Values of secrets by name, sealed."""
    agent_secrets: dict[str, dict[str, str]]
    """What agents that have not ended are given besides the secrets of their tasks."""
    schedule_runs: list[tuple[str, str, int]]
    """Runs of schedules that live: schedule, first task, and how many tasks of the run have not ended."""
    edges: list[tuple[str, str, Edge]]
    """Open dependencies and kept results: (dependency, dependant, edge)."""
    stirred: list[str]
    """Tasks whose edges a batch may have left for the next one."""


def load_resumption(connection: Connection) -> Resumption:
    """Reads what a start needs: no more than what lives."""
    log_id = connection.scalar(sa.select(meta.c.value).where(meta.c.name == "log_id"))
    assert log_id is not None, "a prepared database has a log_id"
    edges, stirred = _load_edges(connection)
    return Resumption(
        log_id=log_id,
        revision=head(connection),
        oldest_revision=oldest_revision(connection),
        agents=_load_live_agents(connection),
        attempts=_load_running(connection),
        standing=load_standing(connection),
        approvals=approval_rows.load_pending_approvals(connection),
        queued=_load_queued(connection),
        leased=_load_leased(connection),
        resting=_load_resting(connection),
        starts=[(limit_id, ns) for limit_id, ns in connection.execute(_starts_in_order)],
        budgets=load_budget_rows(connection),
        secret_values=load_secret_values(connection),
        agent_secrets=_load_agent_secrets(connection),
        schedule_runs=load_schedule_runs(connection),
        edges=edges,
        stirred=stirred,
    )


def head(connection: Connection) -> int:
    """The newest revision; 0 for an empty log."""
    return connection.scalar(sa.select(sa.func.max(events.c.revision))) or 0


def _load_live_agents(connection: Connection) -> list[tuple[Agent, str]]:
    rows = connection.execute(
        sa.select(agents.c.data, agents.c.instance_key)
        .where(agents.c.state.not_in(AGENT_FINAL))
        .order_by(agents.c.create_revision)
    )
    return [(Agent.FromString(data), key) for data, key in rows]


def _load_agent_secrets(connection: Connection) -> dict[str, dict[str, str]]:
    rows = connection.execute(sa.select(agents.c.agent_id, agents.c.spec).where(agents.c.state.not_in(AGENT_FINAL)))
    programs = {agent_id: program_of(AgentSpec.FromString(spec)) for agent_id, spec in rows if spec}
    return {
        agent_id: dict(program.env_from_secret)
        for agent_id, program in programs.items()
        if program is not None and program.env_from_secret
    }


def _load_running(connection: Connection) -> list[tuple[TaskAttempt, str]]:
    rows = connection.execute(
        sa.select(attempts.c.data, attempts.c.poll_id)
        .join(tasks, tasks.c.task_id == attempts.c.task_id)
        .where(
            tasks.c.state.in_((TASK_STATE_RUNNING, TASK_STATE_CANCELLING)),
            attempts.c.state == ATTEMPT_STATE_RUNNING,
        )
    )
    return [(TaskAttempt.FromString(data), poll_id) for data, poll_id in rows]


_starts_in_order = sa.select(starts.c.limit_id, starts.c.start_ns).order_by(starts.c.start_ns)


def _load_queued(connection: Connection) -> list[tuple[ReadyEntry, str]]:
    columns = (tasks.c.priority, tasks.c.queue_rank, tasks.c.queue_ns, tasks.c.task_id, tasks.c.agent_type)
    more = (tasks.c.concurrency_keys, tasks.c.arrival_ns, tasks.c.lock_count, tasks.c.fairness_key)
    rows = connection.execute(sa.select(*columns, *more).where(tasks.c.state == TASK_STATE_QUEUED))
    return [
        (
            ReadyEntry(-priority, rank, queue_ns, task_id, agent_type, _split(keys), arrival_ns or 0, bool(locks)),
            fairness_key or "",
        )
        for priority, rank, queue_ns, task_id, agent_type, keys, arrival_ns, locks, fairness_key in rows
    ]


_arrival = sa.func.coalesce(tasks.c.arrival_ns, tasks.c.queue_ns)


def _load_leased(connection: Connection) -> list[tuple[str, str, int, tuple[str, ...]]]:
    rows = connection.execute(
        sa.select(tasks.c.task_id, tasks.c.agent_type, _arrival, tasks.c.concurrency_keys).where(
            tasks.c.state.in_((TASK_STATE_RUNNING, TASK_STATE_CANCELLING))
        )
    )
    return [(task_id, agent_type, arrival_ns, _split(keys)) for task_id, agent_type, arrival_ns, keys in rows]


def _load_resting(connection: Connection) -> list[tuple[str, int, tuple[str, ...]]]:
    rows = connection.execute(
        sa.select(tasks.c.task_id, tasks.c.arrival_ns, tasks.c.concurrency_keys).where(
            tasks.c.state.in_(TASK_RESTING), tasks.c.arrival_ns.is_not(None)
        )
    )
    return [(task_id, arrival_ns, _split(keys)) for task_id, arrival_ns, keys in rows]


def _split(keys: str | None) -> tuple[str, ...]:
    return tuple(keys.split(" ")) if keys else ()


def _load_edges(connection: Connection) -> tuple[list[tuple[str, str, Edge]], list[str]]:
    statement = sa.select(task_edges, tasks.c.state).join(tasks, tasks.c.task_id == task_edges.c.dependency_id)
    edges: list[tuple[str, str, Edge]] = []
    stirred: dict[str, None] = {}
    for dependency_id, dependant_id, condition, on_failure, state in connection.execute(statement):
        edge = Edge(condition, on_failure)
        edges.append((dependency_id, dependant_id, edge))
        if edge == KEPT:
            continue
        if state in TASK_FINAL or condition == DEPENDENCY_CONDITION_STARTED:
            stirred[dependency_id] = None
    return edges, list(stirred)


def load_due(connection: Connection, after_ns: int, limit: int) -> list[tuple[int, str]]:
    """The earliest deadlines of tasks beyond `after_ns`, in order: (time, task id)."""
    rows = connection.execute(
        sa.select(tasks.c.due_ns, tasks.c.task_id)
        .where(tasks.c.due_ns.is_not(None), tasks.c.due_ns >= after_ns)
        .order_by(tasks.c.due_ns)
        .limit(limit)
    )
    return [(due_ns, task_id) for due_ns, task_id in rows]


def forget_answers(connection: Connection, before_ns: int, limit: int) -> int:
    """Drops up to `limit` answers given before `before_ns`. Returns how many."""
    old = sa.select(answers.c.request_key).where(answers.c.create_ns < before_ns).limit(limit)
    keys = list(connection.scalars(old))
    _delete_answers.execute(connection, [(key,) for key in keys])
    return len(keys)


_delete_answers = Bulk(sa.delete(answers).where(answers.c.request_key == sa.bindparam("key")), "key")
