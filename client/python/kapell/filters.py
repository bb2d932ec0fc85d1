"""Filters as typed keyword arguments: one set a resource, shared by listing, counting and watching.

Every field that is given must match; within one field any of the values does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypedDict, Unpack

from kapell.messages import (
    Instant,
    agent_states,
    approval_kinds,
    approval_states,
    event_kind,
    risk_level,
    task_states,
    timestamp,
)
from kapell.v1.agent_pb2 import AgentFilter, AgentState
from kapell.v1.approval_pb2 import RISK_LEVEL_UNSPECIFIED, ApprovalFilter, ApprovalKind, RiskLevel
from kapell.v1.approval_policy_pb2 import ApprovalState
from kapell.v1.event_pb2 import EventFilter
from kapell.v1.lock_pb2 import LockFilter
from kapell.v1.schedule_pb2 import ScheduleFilter
from kapell.v1.task_pb2 import TaskFilter, TaskState
from kapell.v1.template_pb2 import TemplateFilter
from kapell.v1.watch_pb2 import EventKind


class TaskQuery(TypedDict, total=False):
    """Which tasks are wanted."""

    states: Iterable[TaskState.ValueType | str]
    """By value or word, as in "queued"."""
    task_ids: Iterable[str]
    agent_types: Iterable[str]
    labels: Mapping[str, str]
    """All of them, with these values."""
    created_after: Instant
    """At or after this time."""
    created_before: Instant
    template_ids: Iterable[str]
    """Made from one of these."""
    parent_task_id: str
    """Children of this task."""
    root_task_id: str
    """Everything below this task, which has no parent itself."""
    failure_reasons: Iterable[str]
    """Whose latest failure has one of these, as in "AGENT_LOST"."""


class AgentQuery(TypedDict, total=False):
    """Which agents are wanted."""

    states: Iterable[AgentState.ValueType | str]
    """By value or word, as in "active"."""
    agent_ids: Iterable[str]
    agent_types: Iterable[str]
    """Serves one of these."""
    labels: Mapping[str, str]
    """All of them, with these values."""


class EventQuery(TypedDict, total=False):
    """Which events are wanted."""

    kinds: Iterable[EventKind.ValueType | str]
    """By value or name, as in "task.completed"."""
    task_ids: Iterable[str]
    agent_ids: Iterable[str]
    template_ids: Iterable[str]
    schedule_ids: Iterable[str]
    approval_ids: Iterable[str]
    labels: Mapping[str, str]
    """Of resources that carry all of them, with these values."""


class TemplateQuery(TypedDict, total=False):
    """Which templates are wanted."""

    template_ids: Iterable[str]
    agent_types: Iterable[str]
    tags: Iterable[str]
    """All of them."""
    built_in: bool
    """Only those that came with Kapell, or only the others."""
    text: str
    """Words that must all occur in id, name or description."""


class ScheduleQuery(TypedDict, total=False):
    """Which schedules are wanted."""

    schedule_ids: Iterable[str]
    paused: bool
    """Only those that are paused, or only the others."""
    template_ids: Iterable[str]
    """Whose tasks are made from one of these."""


class ApprovalQuery(TypedDict, total=False):
    """Which approvals are wanted."""

    states: Iterable[ApprovalState.ValueType | str]
    """By value or word, as in "pending"."""
    kinds: Iterable[ApprovalKind.ValueType | str]
    """By value or word, as in "tool_permission"."""
    task_ids: Iterable[str]
    root_task_id: str
    """Of this task and all below it."""
    agent_ids: Iterable[str]
    signature: str
    min_risk: RiskLevel.ValueType | str
    """By value or word, as in "high"."""
    approval_ids: Iterable[str]


def approval_filter(**query: Unpack[ApprovalQuery]) -> ApprovalFilter:
    """The message for a query of approvals. Raises InvalidRequest for a state, kind or risk that is none."""
    return ApprovalFilter(
        states=approval_states(query.get("states", ())),
        kinds=approval_kinds(query.get("kinds", ())),
        task_ids=query.get("task_ids", ()),
        root_task_id=query.get("root_task_id", ""),
        agent_ids=query.get("agent_ids", ()),
        signature=query.get("signature", ""),
        min_risk=risk_level(query.get("min_risk", RISK_LEVEL_UNSPECIFIED)),
        approval_ids=query.get("approval_ids", ()),
    )


class LockQuery(TypedDict, total=False):
    """Which locks, tickets and sessions are wanted."""

    path: str
    """On this path, above or below it."""
    session_id: str
    task_id: str
    agent_id: str
    """Of its attempts, or asked for by it."""


def task_filter(**query: Unpack[TaskQuery]) -> TaskFilter:
    """The message for a query of tasks. Raises InvalidRequest for a state that is none."""
    return TaskFilter(
        states=task_states(query.get("states", ())),
        task_ids=query.get("task_ids", ()),
        agent_types=query.get("agent_types", ()),
        labels=query.get("labels", {}),
        created_after_time=timestamp(query.get("created_after")),
        created_before_time=timestamp(query.get("created_before")),
        template_ids=query.get("template_ids", ()),
        parent_task_id=query.get("parent_task_id", ""),
        root_task_id=query.get("root_task_id", ""),
        failure_reasons=query.get("failure_reasons", ()),
    )


def agent_filter(**query: Unpack[AgentQuery]) -> AgentFilter:
    """The message for a query of agents. Raises InvalidRequest for a state that is none."""
    return AgentFilter(
        states=agent_states(query.get("states", ())),
        agent_ids=query.get("agent_ids", ()),
        agent_types=query.get("agent_types", ()),
        labels=query.get("labels", {}),
    )


def event_filter(**query: Unpack[EventQuery]) -> EventFilter:
    """The message for a query of events. Raises InvalidRequest for a kind that is none."""
    return EventFilter(
        kinds=[event_kind(kind) for kind in query.get("kinds", ())],
        task_ids=query.get("task_ids", ()),
        agent_ids=query.get("agent_ids", ()),
        template_ids=query.get("template_ids", ()),
        schedule_ids=query.get("schedule_ids", ()),
        approval_ids=query.get("approval_ids", ()),
        labels=query.get("labels", {}),
    )


def template_filter(**query: Unpack[TemplateQuery]) -> TemplateFilter:
    """The message for a query of templates."""
    return TemplateFilter(
        template_ids=query.get("template_ids", ()),
        agent_types=query.get("agent_types", ()),
        tags=query.get("tags", ()),
        built_in=query.get("built_in"),
        text=query.get("text", ""),
    )


def schedule_filter(**query: Unpack[ScheduleQuery]) -> ScheduleFilter:
    """The message for a query of schedules."""
    return ScheduleFilter(
        schedule_ids=query.get("schedule_ids", ()),
        paused=query.get("paused"),
        template_ids=query.get("template_ids", ()),
    )


def lock_filter(**query: Unpack[LockQuery]) -> LockFilter:
    """The message for a query of locks."""
    return LockFilter(
        path=query.get("path", ""),
        session_id=query.get("session_id", ""),
        task_id=query.get("task_id", ""),
        agent_id=query.get("agent_id", ""),
    )
