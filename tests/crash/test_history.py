"""Who judges the judge: histories that break a rule must be found to break it."""

from __future__ import annotations

import pytest
from kapell.v1.event_pb2 import Event
from kapell.v1.task_pb2 import (
    TASK_STATE_CANCELLED,
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    TASK_STATE_SUCCEEDED,
    Task,
    TaskLease,
    TaskState,
)
from kapell.v1.watch_pb2 import (
    EVENT_KIND_TASK_CANCELLED,
    EVENT_KIND_TASK_COMPLETED,
    EVENT_KIND_TASK_CREATED,
    EVENT_KIND_TASK_DELETED,
    EVENT_KIND_TASK_PROGRESS,
    EVENT_KIND_TASK_QUEUED,
    EVENT_KIND_TASK_REQUEUED,
    EVENT_KIND_TASK_STARTED,
    EventKind,
)

from tests.crash.history import TaskHistory


class Story:
    """Events of one task, told in order."""

    def __init__(self) -> None:
        self._history = TaskHistory()
        self._state: TaskState.ValueType | None = None
        self.faults: list[str] = []

    def then(
        self, kind: EventKind.ValueType, state: TaskState.ValueType, *, attempt: int = 0, agent: str = ""
    ) -> Story:
        """The next event leads to `state`; with `agent`, under its lease."""
        task = Task(task_id="task_1", state=state, attempt=attempt, attempts_used=attempt)
        task.retry_policy.max_attempts = 2
        if agent:
            task.lease.CopyFrom(TaskLease(agent_id=agent))
        event = Event(kind=kind, task=task)
        if self._state is not None and state != self._state:
            event.previous_task_state = self._state
        self.faults += self._history.take(event)
        self._state = state
        return self


def created() -> Story:
    return Story().then(EVENT_KIND_TASK_CREATED, TASK_STATE_QUEUED)


def started(story: Story, attempt: int = 1, agent: str = "agent_a") -> Story:
    return story.then(EVENT_KIND_TASK_STARTED, TASK_STATE_RUNNING, attempt=attempt, agent=agent)


def completed(story: Story) -> Story:
    return story.then(EVENT_KIND_TASK_COMPLETED, TASK_STATE_SUCCEEDED, attempt=1)


def test_an_ordinary_life_breaks_no_rule() -> None:
    story = started(created())
    story.then(EVENT_KIND_TASK_REQUEUED, TASK_STATE_QUEUED, attempt=1)
    started(story, attempt=2, agent="agent_b").then(EVENT_KIND_TASK_COMPLETED, TASK_STATE_SUCCEEDED, attempt=2)
    story.then(EVENT_KIND_TASK_DELETED, TASK_STATE_SUCCEEDED, attempt=2)

    assert story.faults == []


def test_a_cancelled_task_may_be_retried() -> None:
    story = created().then(EVENT_KIND_TASK_CANCELLED, TASK_STATE_CANCELLED)

    assert story.then(EVENT_KIND_TASK_QUEUED, TASK_STATE_QUEUED).faults == []


@pytest.mark.parametrize(
    ("story", "rule"),
    [
        (completed(created()), "T1"),
        (started(started(created()), attempt=2), "T1"),
        (started(created()).then(EVENT_KIND_TASK_PROGRESS, TASK_STATE_RUNNING, attempt=1, agent="agent_b"), "T2"),
        (created().then(EVENT_KIND_TASK_STARTED, TASK_STATE_RUNNING, attempt=1), "T2"),
        (completed(completed(started(created()))), "T3"),
        (started(completed(started(created()))), "T1"),
        (completed(started(created())).then(EVENT_KIND_TASK_QUEUED, TASK_STATE_QUEUED, attempt=1), "T1"),
        (started(created(), attempt=3), "T4"),
        (
            completed(started(created()))
            .then(EVENT_KIND_TASK_DELETED, TASK_STATE_SUCCEEDED, attempt=1)
            .then(EVENT_KIND_TASK_QUEUED, TASK_STATE_QUEUED),
            "T3",
        ),
    ],
    ids=[
        "completed without a start",
        "started twice",
        "the lease changes hands",
        "runs without a lease",
        "completed twice",
        "started after its end",
        "success is retried",
        "more attempts than allowed",
        "lives after its deletion",
    ],
)
def test_a_broken_rule_is_named(story: Story, rule: str) -> None:
    assert any(fault.startswith(rule) for fault in story.faults), story.faults
