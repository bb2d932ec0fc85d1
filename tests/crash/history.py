"""The rules of a task's life, as told by the log alone. Shares no code with the server.

`TaskHistory` takes the events of one task in order and says what is wrong with each: T1 (only
published transitions), T2 (one live lease at a time), T3 (final is final), T4 (attempts).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kapell.v1.event_pb2 import Event
from kapell.v1.task_pb2 import (
    TASK_STATE_CANCELLED,
    TASK_STATE_CANCELLING,
    TASK_STATE_FAILED,
    TASK_STATE_PENDING,
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    TASK_STATE_SUCCEEDED,
    TASK_STATE_UNSPECIFIED,
    Task,
    TaskState,
)
from kapell.v1.watch_pb2 import (
    EVENT_KIND_TASK_CANCELLED,
    EVENT_KIND_TASK_CANCELLING,
    EVENT_KIND_TASK_COMPLETED,
    EVENT_KIND_TASK_CREATED,
    EVENT_KIND_TASK_DELETED,
    EVENT_KIND_TASK_FAILED,
    EVENT_KIND_TASK_PROGRESS,
    EVENT_KIND_TASK_QUEUED,
    EVENT_KIND_TASK_REQUEUED,
    EVENT_KIND_TASK_STARTED,
    EVENT_KIND_TASK_UPDATED,
    EventKind,
)

FINAL = frozenset({TASK_STATE_SUCCEEDED, TASK_STATE_FAILED, TASK_STATE_CANCELLED})
LEASED = frozenset({TASK_STATE_RUNNING, TASK_STATE_CANCELLING})
_WAITING = frozenset({TASK_STATE_PENDING, TASK_STATE_QUEUED})
_NOTHING = frozenset({TASK_STATE_UNSPECIFIED})

# What each kind of event does: from which states, to which. None: the state stays as it is.
_MOVES: dict[int, tuple[frozenset[int], frozenset[int] | None]] = {
    EVENT_KIND_TASK_CREATED: (_NOTHING, _WAITING),
    EVENT_KIND_TASK_QUEUED: (
        frozenset({TASK_STATE_PENDING, TASK_STATE_FAILED, TASK_STATE_CANCELLED}),
        frozenset({TASK_STATE_QUEUED}),
    ),
    EVENT_KIND_TASK_STARTED: (frozenset({TASK_STATE_QUEUED}), frozenset({TASK_STATE_RUNNING})),
    EVENT_KIND_TASK_PROGRESS: (frozenset({TASK_STATE_RUNNING}), None),
    # Retried by hand, a task waits for its time.
    EVENT_KIND_TASK_REQUEUED: (LEASED | frozenset({TASK_STATE_FAILED, TASK_STATE_CANCELLED}), _WAITING),
    EVENT_KIND_TASK_UPDATED: (_WAITING | LEASED, None),
    EVENT_KIND_TASK_CANCELLING: (LEASED, frozenset({TASK_STATE_CANCELLING})),
    EVENT_KIND_TASK_COMPLETED: (LEASED, frozenset({TASK_STATE_SUCCEEDED})),
    EVENT_KIND_TASK_FAILED: (_WAITING | LEASED, frozenset({TASK_STATE_FAILED})),
    EVENT_KIND_TASK_CANCELLED: (_WAITING | LEASED, frozenset({TASK_STATE_CANCELLED})),
    EVENT_KIND_TASK_DELETED: (FINAL, None),
}


@dataclass(slots=True)
class TaskHistory:
    """One task from its creation on. `task` is its latest form, None before the first event."""

    task: Task | None = None
    completions: int = 0
    revivals: int = 0
    """How often it left a final state."""
    deleted: bool = False

    def take(self, event: Event) -> Iterator[str]:
        """Applies the next event of the task; yields what it breaks."""
        before, after = self.task, event.task
        yield from self._judge_transition(event)
        yield from self._judge_lease(event)
        if after.attempts_used > after.retry_policy.max_attempts:
            yield f"T4: {after.attempts_used} attempts of at most {after.retry_policy.max_attempts}"
        if before is not None and after.attempt < before.attempt:
            yield f"T4: attempt {after.attempt} after {before.attempt}"
        self.completions += event.kind == EVENT_KIND_TASK_COMPLETED
        if self.completions > 1:
            yield "T3: completed twice"
        self.revivals += before is not None and before.state in FINAL and after.state not in FINAL
        self.deleted = event.kind == EVENT_KIND_TASK_DELETED
        self.task = after

    def _judge_transition(self, event: Event) -> Iterator[str]:
        before = self.task.state if self.task is not None else TASK_STATE_UNSPECIFIED
        after = event.task.state
        if self.deleted:
            yield f"T3: {EventKind.Name(event.kind)} after it was deleted"
            return
        sources, targets = _MOVES[event.kind]
        if before not in sources or (after not in targets if targets is not None else after != before):
            yield f"T1: {EventKind.Name(event.kind)} led from {TaskState.Name(before)} to {TaskState.Name(after)}"
        said = event.previous_task_state or before
        if said != before or (before != after and event.previous_task_state != before):
            yield f"previous state is {TaskState.Name(before)}, the event says {TaskState.Name(said)}"

    def _judge_lease(self, event: Event) -> Iterator[str]:
        before, after = self.task, event.task
        if (after.state in LEASED) != after.HasField("lease"):
            yield f"T2: {TaskState.Name(after.state)} {'with' if after.HasField('lease') else 'without'} a lease"
        if before is None or not before.HasField("lease") or not after.HasField("lease"):
            return
        if (before.attempt, before.lease.agent_id) != (after.attempt, after.lease.agent_id):
            yield f"T2: the lease went from {before.lease.agent_id} to {after.lease.agent_id} without an end"
