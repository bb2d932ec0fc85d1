"""Which tasks are new to their queue, and which only come back to it."""

from __future__ import annotations

from kapell.v1.task_pb2 import WAIT_KIND_PROVIDER_RATE_LIMIT, WAIT_KIND_RETRY_BACKOFF, Task

from kapell_server.domain.transitions import TASK_FINAL, TASK_LEASED

_BETWEEN_ATTEMPTS = frozenset({WAIT_KIND_RETRY_BACKOFF, WAIT_KIND_PROVIDER_RATE_LIMIT})
"""What a task waits for that was begun already."""


def is_new(previous: Task | None, task: Task) -> bool:
    """Whether a task that becomes QUEUED has not been tried before: its agent had it, or has parked it."""
    if previous is None:
        return task.attempts_used == 0
    if previous.state in TASK_LEASED or previous.HasField("parked"):
        return False
    if previous.state in TASK_FINAL:
        return True
    return task.attempts_used == 0 and not any(wait.kind in _BETWEEN_ATTEMPTS for wait in previous.waiting_on)
