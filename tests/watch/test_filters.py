"""Filters: each field alone, all fields together, and what a snapshot asks for."""

from __future__ import annotations

from typing import get_args

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.agent_pb2 import AGENT_STATE_ACTIVE, AGENT_STATE_LOST, Agent, AgentFilter
from kapell.v1.event_pb2 import EventFilter
from kapell.v1.lock_pb2 import Lock, LockFilter, LockItem, LockOwner, LockSession, LockTicket
from kapell.v1.task_pb2 import TASK_STATE_QUEUED, TASK_STATE_RUNNING, Task, TaskFailure, TaskFilter
from kapell.v1.template_pb2 import Template
from kapell.v1.watch_pb2 import (
    EVENT_KIND_AGENT_STATUS,
    EVENT_KIND_LOCK_GRANTED,
    EVENT_KIND_SNAPSHOT,
    EVENT_KIND_TASK_COMPLETED,
    EVENT_KIND_TASK_CREATED,
    EVENT_KIND_TEMPLATE_CREATED,
    Actor,
    EventKind,
)
from kapell_server.store.record import Record
from kapell_server.watch.filters import ResourceKind, for_agents, for_events, for_locks, for_tasks

EVERYTHING = get_args(ResourceKind)
TASK = Task(
    task_id="task_a",
    state=TASK_STATE_QUEUED,
    agent_type="shell",
    template_id="review",
    parent_task_id="task_p",
    root_task_id="task_r",
    labels={"team": "red", "tier": "1"},
    create_time=Timestamp(seconds=1000),
    failure=TaskFailure(reason="EXIT_CODE"),
)
AGENT = Agent(
    agent_id="agent_a",
    state=AGENT_STATE_ACTIVE,
    agent_types=["shell", "build"],
    labels={"team": "red"},
)


def task_record(task: Task = TASK, kind: EventKind.ValueType = EVENT_KIND_TASK_CREATED) -> Record:
    return Record(1, kind, task.task_id, task, b"")


def agent_record(agent: Agent = AGENT, kind: EventKind.ValueType = EVENT_KIND_AGENT_STATUS) -> Record:
    return Record(1, kind, agent.agent_id, agent, b"")


@pytest.mark.parametrize(
    ("wanted", "task_matches", "agent_matches"),
    [
        (EventFilter(), True, True),
        (EventFilter(kinds=[EVENT_KIND_TASK_CREATED]), True, False),
        (EventFilter(kinds=[EVENT_KIND_TASK_COMPLETED, EVENT_KIND_AGENT_STATUS]), False, True),
        (EventFilter(task_ids=["task_a", "task_b"]), True, False),
        (EventFilter(task_ids=["task_b"]), False, False),
        (EventFilter(agent_ids=["agent_a"]), False, True),
        (EventFilter(task_ids=["task_a"], agent_ids=["agent_a"]), False, False),
        (EventFilter(labels={"team": "red"}), True, True),
        (EventFilter(labels={"team": "red", "tier": "1"}), True, False),
        (EventFilter(labels={"team": "blue"}), False, False),
        (EventFilter(labels={"absent": ""}), False, False),
        (EventFilter(kinds=[EVENT_KIND_TASK_CREATED], labels={"team": "blue"}), False, False),
    ],
)
def test_event_filter(wanted: EventFilter, task_matches: bool, agent_matches: bool) -> None:
    found = for_events(wanted)

    assert found.matches(task_record()) is task_matches
    assert found.matches(agent_record()) is agent_matches


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        (TaskFilter(), True),
        (TaskFilter(states=[TASK_STATE_QUEUED, TASK_STATE_RUNNING]), True),
        (TaskFilter(states=[TASK_STATE_RUNNING]), False),
        (TaskFilter(task_ids=["task_a"]), True),
        (TaskFilter(task_ids=["task_b"]), False),
        (TaskFilter(agent_types=["build", "shell"]), True),
        (TaskFilter(agent_types=["build"]), False),
        (TaskFilter(template_ids=["review", "fix"]), True),
        (TaskFilter(template_ids=["fix"]), False),
        (TaskFilter(parent_task_id="task_p", root_task_id="task_r"), True),
        (TaskFilter(parent_task_id="task_r"), False),
        (TaskFilter(root_task_id="task_p"), False),
        (TaskFilter(labels={"tier": "1"}), True),
        (TaskFilter(labels={"tier": "2"}), False),
        (TaskFilter(created_after_time=Timestamp(seconds=1000)), True),
        (TaskFilter(created_after_time=Timestamp(seconds=1000, nanos=1)), False),
        (TaskFilter(created_before_time=Timestamp(seconds=1000)), False),
        (TaskFilter(created_before_time=Timestamp(seconds=1000, nanos=1)), True),
        (TaskFilter(failure_reasons=["AGENT_LOST", "EXIT_CODE"]), True),
        (TaskFilter(failure_reasons=["AGENT_LOST"]), False),
        (TaskFilter(states=[TASK_STATE_QUEUED], agent_types=["build"]), False),
    ],
)
def test_task_filter(wanted: TaskFilter, matches: bool) -> None:
    found = for_tasks(wanted)

    assert found.matches(task_record()) is matches
    assert found.matches(agent_record()) is False


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        (AgentFilter(), True),
        (AgentFilter(states=[AGENT_STATE_ACTIVE]), True),
        (AgentFilter(states=[AGENT_STATE_LOST]), False),
        (AgentFilter(agent_ids=["agent_a"]), True),
        (AgentFilter(agent_ids=["agent_b"]), False),
        (AgentFilter(agent_types=["build", "test"]), True),
        (AgentFilter(agent_types=["test"]), False),
        (AgentFilter(labels={"team": "red"}), True),
        (AgentFilter(labels={"team": "red", "tier": "1"}), False),
    ],
)
def test_agent_filter(wanted: AgentFilter, matches: bool) -> None:
    found = for_agents(wanted)

    assert found.matches(agent_record()) is matches
    assert found.matches(task_record()) is False


def test_the_snapshot_passes_whatever_kinds_are_wanted() -> None:
    found = for_events(EventFilter(kinds=[EVENT_KIND_TASK_COMPLETED]))

    assert found.matches(task_record(kind=EVENT_KIND_SNAPSHOT))


FIRST = ("task", "agent", "template", "queue", "limit", "schedule")


@pytest.mark.parametrize(
    ("wanted", "kinds"),
    [
        (EventFilter(), EVERYTHING),
        (EventFilter(schedule_ids=["schedule_a"]), ("schedule",)),
        (EventFilter(schedule_ids=["schedule_a"], template_ids=["review"]), ()),
        (EventFilter(labels={"a": "b"}), ("task", "agent")),
        (EventFilter(task_ids=["task_a"]), ("task",)),
        (EventFilter(agent_ids=["agent_a"]), ("agent",)),
        (EventFilter(template_ids=["review"]), ("template",)),
        (EventFilter(task_ids=["task_a"], agent_ids=["agent_a"]), ()),
        (EventFilter(task_ids=["task_a"], template_ids=["review"]), ()),
    ],
)
def test_a_snapshot_reads_only_what_can_match(wanted: EventFilter, kinds: tuple[str, ...]) -> None:
    assert for_events(wanted).kinds_of_resource == kinds


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        (EventFilter(), True),
        (EventFilter(template_ids=["review"]), True),
        (EventFilter(template_ids=["fix"]), False),
        (EventFilter(task_ids=["task_a"]), False),
        (EventFilter(kinds=[EVENT_KIND_TASK_CREATED]), False),
        (EventFilter(labels={"team": "red"}), False),
    ],
)
def test_templates_are_events_that_no_watch_of_tasks_or_agents_sees(wanted: EventFilter, matches: bool) -> None:
    record = Record(9, EVENT_KIND_TEMPLATE_CREATED, "review", Template(template_id="review"), b"")

    assert for_events(wanted).matches(record) is matches
    assert not for_tasks(TaskFilter()).matches(record)
    assert not for_agents(AgentFilter()).matches(record)


def test_equal_filters_have_equal_keys_and_others_do_not() -> None:
    one = TaskFilter(labels={"a": "1", "b": "2"})
    same = TaskFilter(labels={"b": "2", "a": "1"})

    assert for_tasks(one).key == for_tasks(same).key
    assert len({for_tasks(TaskFilter()).key, for_agents(AgentFilter()).key, for_events(EventFilter()).key}) == 3


@pytest.mark.parametrize(
    ("wanted", "lock", "ticket", "session"),
    [
        (LockFilter(), True, True, True),
        (LockFilter(path="repo/src"), True, True, False),
        (LockFilter(path="repo/src/a.py"), True, False, False),
        (LockFilter(path="repo/src/a.p"), False, False, False),
        (LockFilter(path="docs"), False, True, False),
        (LockFilter(session_id="session_a"), True, False, True),
        (LockFilter(session_id="session_b"), False, False, False),
        (LockFilter(task_id="task_a"), False, True, False),
        (LockFilter(agent_id="agent_a"), False, True, True),
    ],
)
def test_lock_filter(wanted: LockFilter, lock: bool, ticket: bool, session: bool) -> None:
    owner = LockOwner(task_id="task_a", attempt=1, agent_id="agent_a")
    items = [LockItem(path="docs/x"), LockItem(path="repo/src/b.py")]
    resources = [
        Lock(lock_id="lock_a", path="repo/src/a.py", owner=LockOwner(session_id="session_a")),
        LockTicket(ticket_id="ticket_a", items=items, owner=owner),
        LockSession(session_id="session_a", actor=Actor(id="agent_a")),
    ]
    found = for_locks(wanted)

    matched = [found.matches(Record(1, EVENT_KIND_LOCK_GRANTED, "id", resource, b"")) for resource in resources]
    assert matched == [lock, ticket, session]
    assert not found.matches(task_record())
