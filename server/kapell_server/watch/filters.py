"""Which records a watch wants: the filter messages of the API, made ready to be asked often.

The same messages filter lists, where the store turns them into SQL; what matches here must
match there. A filter is looked at with the resource as it is after the change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from kapell.v1.agent_pb2 import Agent, AgentFilter
from kapell.v1.approval_pb2 import Approval, ApprovalFilter
from kapell.v1.event_pb2 import EventFilter
from kapell.v1.lock_pb2 import Lock, LockFilter, LockOwner, LockSession, LockTicket
from kapell.v1.schedule_pb2 import Schedule
from kapell.v1.task_pb2 import Task, TaskFilter
from kapell.v1.template_pb2 import Template
from kapell.v1.usage_pb2 import UsageUpdate, UsageUpdateFilter
from kapell.v1.watch_pb2 import EVENT_KIND_SNAPSHOT

from kapell_server.domain.approvals.inbox import approval_test
from kapell_server.domain.locks.views import filter_test
from kapell_server.domain.tasks.task_filter import task_test
from kapell_server.store.record import Record

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
Test = Callable[[Record], bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """All of `tests` must hold; none means every record.

    `kinds_of_resource` are those that can match at all, in the order a snapshot sends them.
    Filters of equal `key` match the same records, so watchers can share encoded messages.
    """

    key: bytes
    kinds_of_resource: tuple[ResourceKind, ...]
    ids: tuple[str, ...]
    """Where not empty, only resources with one of these ids can match."""
    tests: tuple[Test, ...]

    def matches(self, record: Record) -> bool:
        """Whether a watch with this filter is sent `record`."""
        return all(test(record) for test in self.tests)


def for_events(wanted: EventFilter) -> Filter:
    """Events of everything alike. SNAPSHOT records pass whatever `kinds` says."""
    tests: list[Test] = []
    kinds_of_resource: tuple[ResourceKind, ...] = get_args(ResourceKind)
    if wanted.kinds:
        kinds = frozenset({*wanted.kinds, EVENT_KIND_SNAPSHOT})
        tests.append(lambda record: record.kind in kinds)
    if wanted.task_ids:
        tests += [_is_a(Task), _is_one_of(wanted.task_ids)]
        kinds_of_resource = ("task",)
    if wanted.agent_ids:
        tests += [_is_a(Agent), _is_one_of(wanted.agent_ids)]
        kinds_of_resource = () if wanted.task_ids else ("agent",)
    if wanted.template_ids:
        tests += [_is_a(Template), _is_one_of(wanted.template_ids)]
        kinds_of_resource = () if wanted.task_ids or wanted.agent_ids else ("template",)
    if wanted.schedule_ids:
        tests += [_is_a(Schedule), _is_one_of(wanted.schedule_ids)]
        others = wanted.task_ids or wanted.agent_ids or wanted.template_ids
        kinds_of_resource = () if others else ("schedule",)
    if wanted.approval_ids:
        tests += [_is_a(Approval), _is_one_of(wanted.approval_ids)]
        others = wanted.task_ids or wanted.agent_ids or wanted.template_ids or wanted.schedule_ids
        kinds_of_resource = () if others else ("approval",)
    if wanted.labels:
        tests.append(_has_labels(wanted.labels))
        kinds_of_resource = tuple(kind for kind in kinds_of_resource if kind in ("task", "agent"))
    ids = (*wanted.task_ids, *wanted.agent_ids, *wanted.template_ids, *wanted.schedule_ids, *wanted.approval_ids)
    return Filter(key=_key(b"event", wanted), kinds_of_resource=kinds_of_resource, ids=ids, tests=tuple(tests))


def for_tasks(wanted: TaskFilter) -> Filter:
    """Tasks only."""
    test = task_test(wanted)

    def matches(record: Record) -> bool:
        return isinstance(record.resource, Task) and test(record.resource)

    ids = tuple(wanted.task_ids)
    return Filter(key=_key(b"task", wanted), kinds_of_resource=("task",), ids=ids, tests=(matches,))


def for_agents(wanted: AgentFilter) -> Filter:
    """Agents only."""
    tests: list[Test] = [_is_a(Agent)]
    if wanted.states:
        states = frozenset(wanted.states)
        tests.append(lambda record: isinstance(record.resource, Agent) and record.resource.state in states)
    if wanted.agent_ids:
        tests.append(_is_one_of(wanted.agent_ids))
    if wanted.agent_types:
        types = frozenset(wanted.agent_types)
        tests.append(
            lambda record: isinstance(record.resource, Agent) and not types.isdisjoint(record.resource.agent_types)
        )
    if wanted.labels:
        tests.append(_has_labels(wanted.labels))
    ids = tuple(wanted.agent_ids)
    return Filter(key=_key(b"agent", wanted), kinds_of_resource=("agent",), ids=ids, tests=tuple(tests))


def for_locks(wanted: LockFilter) -> Filter:
    """Locks, tickets and sessions; the filter's path is canonical."""

    def matches(record: Record) -> bool:
        match record.resource:
            case Lock() as lock:
                return filter_test(wanted, [lock.path], lock.owner)
            case LockTicket() as ticket:
                return filter_test(wanted, [item.path for item in ticket.items], ticket.owner)
            case LockSession() as session:
                owner = LockOwner(session_id=session.session_id, actor=session.actor)
                return not wanted.path and filter_test(wanted, [], owner)
        return False

    kinds: tuple[ResourceKind, ...] = ("lock", "ticket") if wanted.path else ("lock", "ticket", "session")
    return Filter(key=_key(b"lock", wanted), kinds_of_resource=kinds, ids=(), tests=(matches,))


def for_usage(wanted: UsageUpdateFilter) -> Filter:
    """Totals of usage only."""
    task_ids, agent_ids = frozenset(wanted.task_ids), frozenset(wanted.agent_ids)
    root_ids = frozenset(wanted.root_task_ids)

    def matches(record: Record) -> bool:
        update = record.resource
        if not isinstance(update, UsageUpdate):
            return False
        if task_ids and update.task_id not in task_ids:
            return False
        if root_ids and update.root_task_id not in root_ids:
            return False
        return not agent_ids or update.agent_id in agent_ids

    return Filter(key=_key(b"usage", wanted), kinds_of_resource=("usage",), ids=(), tests=(matches,))


def for_approvals(wanted: ApprovalFilter) -> Filter:
    """Approvals only."""
    test = approval_test(wanted)

    def matches(record: Record) -> bool:
        return isinstance(record.resource, Approval) and test(record.resource)

    ids = tuple(wanted.approval_ids)
    return Filter(key=_key(b"approval", wanted), kinds_of_resource=("approval",), ids=ids, tests=(matches,))


def _is_a(resource_type: type[Task] | type[Agent] | type[Template] | type[Schedule] | type[Approval]) -> Test:
    return lambda record: type(record.resource) is resource_type


def _create_ns(record: Record) -> int:
    return record.resource.create_time.ToNanoseconds() if isinstance(record.resource, Task) else 0


def _is_one_of(ids: Any) -> Test:
    wanted = frozenset(ids)
    return lambda record: record.resource_id in wanted


def _has_labels(labels: Mapping[str, str]) -> Test:
    wanted = tuple(labels.items())

    def has_labels(record: Record) -> bool:
        if not isinstance(record.resource, (Task, Agent)):
            return False
        found = record.resource.labels
        return all(name in found and found[name] == value for name, value in wanted)

    return has_labels


def _key(
    kind: bytes,
    wanted: EventFilter | TaskFilter | AgentFilter | UsageUpdateFilter | ApprovalFilter | LockFilter,
) -> bytes:
    return kind + wanted.SerializeToString(deterministic=True)
