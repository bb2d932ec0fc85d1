"""What time does to a task: it wakes, is over its timeouts, or is taken away from a silent agent.

Called by the writer when a look was asked for; each look asks for the next one.
"""

from __future__ import annotations

from kapell.v1.task_pb2 import (
    TASK_STATE_CANCELLING,
    TASK_STATE_PENDING,
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    Task,
    TaskFailure,
)
from kapell.v1.watch_pb2 import EVENT_KIND_TASK_CANCELLING

from kapell_server.domain.copied import copied
from kapell_server.domain.state import State
from kapell_server.domain.tasks import deadlines
from kapell_server.domain.times import stamp
from kapell_server.domain.transitions import TASK_FINAL, TASK_LEASED
from kapell_server.domain.workers import attempt, liveness
from kapell_server.domain.workers.leases import Lease

_TIMEOUTS = frozenset({"RUN_TIMEOUT", "TOTAL_TIMEOUT", "STALLED", *(wait.reason for wait in liveness.WAITS.values())})


def look_at_task(state: State, task_id: str) -> None:
    """Does what the time asks for: wakes, times out, or takes away from a silent agent."""
    task = state.find_task(task_id)
    if task is None:
        return
    now = state.now_ns
    lease = state.leases.by_task.get(task_id)
    if lease is not None and lease.expire_ns <= now:
        _expire(state, lease, task)
        return
    if lease is not None and 0 < liveness.report_deadline_ns(lease, state.settings) <= now:
        within = f"{state.settings.report_within:g} s"
        message = f"its program ended, but agent {lease.agent_id} did not say how within {within}"
        attempt.end_failed(state, lease, task, TaskFailure(reason="NOT_REPORTED", message=message), lost=True)
        return
    stalled = liveness.stall_deadline_ns(lease, task) if lease is not None else 0
    waited = liveness.wait_deadline_ns(lease, task) if lease is not None else 0
    total = deadlines.total_deadline_ns(task)
    due = deadlines.state_deadline_ns(task, state.settings)
    if task.state not in TASK_FINAL and task.state != TASK_STATE_CANCELLING and 0 < total <= now:
        _time_out(state, task, lease, "TOTAL_TIMEOUT", attempt.TOTAL_IS_OVER, final=True)
    elif 0 < due <= now:
        _state_is_over(state, task, lease)
    elif 0 < stalled <= now and task.state == TASK_STATE_RUNNING:
        _time_out(state, task, lease, "STALLED", "the attempt had no news for its stall timeout", final=False)
    elif lease is not None and 0 < waited <= now and task.state == TASK_STATE_RUNNING:
        wait = liveness.WAITS[lease.waiting]
        _time_out(state, task, lease, wait.reason, wait.message, final=wait.final)
    else:
        state.schedule(deadlines.next_deadline_ns(task, state.settings), task_id)
    if lease is not None and state.leases.by_task.get(task_id) is lease:
        deadlines_ns = (lease.expire_ns, stalled, waited, liveness.report_deadline_ns(lease, state.settings))
        state.schedule(min(deadline for deadline in deadlines_ns if deadline > now), task_id)


def _state_is_over(state: State, task: Task, lease: Lease | None) -> None:
    if task.state == TASK_STATE_PENDING:
        attempt.wake(state, task)
    elif task.state == TASK_STATE_QUEUED:
        _time_out(state, task, None, "QUEUE_TIMEOUT", "no agent took it within its queue timeout", final=True)
    elif task.state == TASK_STATE_RUNNING:
        _time_out(state, task, lease, "RUN_TIMEOUT", "the attempt took longer than its run timeout", final=False)
    elif task.state == TASK_STATE_CANCELLING:
        assert lease is not None, "a cancelling task is leased"
        failure = TaskFailure(reason="AGENT_LOST", message="the agent did not let go of the cancelled task")
        attempt.end_failed(state, lease, task, failure, lost=True)


def _time_out(state: State, current: Task, lease: Lease | None, reason: str, message: str, *, final: bool) -> None:
    """Fails a waiting task; tells the agent of a running one to stop, and fails it when it has."""
    assert lease is None or reason in _TIMEOUTS
    failure = TaskFailure(reason=reason, message=message, retryable=not final)
    if lease is None:
        attempt.fail_waiting(state, current, failure)
        return
    task = copied(current)
    task.failure.CopyFrom(failure)
    task.state_reason = message
    stamp(task.state_time, state.tick_ns())
    task.state = TASK_STATE_CANCELLING
    state.put_task(task, EVENT_KIND_TASK_CANCELLING, ("state", "failure"))


def _expire(state: State, lease: Lease, task: Task) -> None:
    """The lease ran out: an offer that never arrived costs nothing, silence costs an attempt."""
    assert task.state in TASK_LEASED, "a lease belongs to a running task"
    if not lease.confirmed:
        attempt.end_unconfirmed(state, lease, task)
        return
    failure = TaskFailure(
        reason="LEASE_EXPIRED",
        message=f"agent {lease.agent_id} was not heard of for {state.settings.lease_duration:g} s",
    )
    attempt.end_failed(state, lease, task, failure, lost=True)
