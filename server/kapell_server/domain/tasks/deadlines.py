"""When a task or an agent needs a look without anybody asking. The nearest time is a column of its row."""

from __future__ import annotations

from kapell.v1.agent_pb2 import AGENT_STATE_STARTING, Agent
from kapell.v1.task_pb2 import (
    TASK_STATE_AWAITING_APPROVAL,
    TASK_STATE_CANCELLING,
    TASK_STATE_PENDING,
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    WAIT_KIND_DEPENDENCY,
    Task,
)

from kapell_server.domain.settings import Settings
from kapell_server.domain.times import SECOND, duration_ns, timestamp_ns

_ONLY_TIMEOUTS = frozenset({TASK_STATE_AWAITING_APPROVAL, TASK_STATE_QUEUED, TASK_STATE_RUNNING})
"""States that no time but a timeout ends."""


def total_deadline_ns(task: Task) -> int:
    """When the total timeout strikes; 0 for never. A retry by hand begins the time anew."""
    total = duration_ns(task.timeouts.total_timeout)
    if not total:
        return 0
    start = timestamp_ns(task.retry_time) or timestamp_ns(task.create_time)
    return start + total


def state_deadline_ns(task: Task, settings: Settings) -> int:
    """When the task's state is over by itself; 0 for never."""
    if task.state == TASK_STATE_PENDING:
        if any(wait.kind == WAIT_KIND_DEPENDENCY for wait in task.waiting_on):
            return 0  # However late it is: only the last of its dependencies wakes it.
        return max((timestamp_ns(wait.until_time) for wait in task.waiting_on), default=0)
    if task.state == TASK_STATE_CANCELLING:
        return timestamp_ns(task.state_time) + int(settings.cancel_grace * SECOND)
    if task.state == TASK_STATE_QUEUED:
        timeout = duration_ns(task.timeouts.queue_timeout)
        return timestamp_ns(task.queue_time) + timeout if timeout else 0
    if task.state == TASK_STATE_RUNNING:
        timeout = duration_ns(task.timeouts.run_timeout)
        return timestamp_ns(task.lease.start_time) + timeout if timeout else 0
    return 0


def next_deadline_ns(task: Task, settings: Settings) -> int:
    """The nearest time at which the task needs a look; 0 for never."""
    if task.state in _ONLY_TIMEOUTS and not task.HasField("timeouts"):
        return 0
    by_state = state_deadline_ns(task, settings)
    if task.state != TASK_STATE_PENDING and task.state not in _ONLY_TIMEOUTS:
        return by_state
    total = total_deadline_ns(task)
    return min(by_state, total) if by_state and total else by_state or total


def agent_start_deadline_ns(agent: Agent, settings: Settings, seen_ns: int) -> int:
    """When a STARTING agent, last looked after at `seen_ns`, must have registered; 0 in any other state.

    A PENDING one waits for the spawner, which may have many to start, and says itself if it cannot.
    """
    if agent.state != AGENT_STATE_STARTING:
        return 0
    return seen_ns + int(settings.start_timeout * SECOND)
