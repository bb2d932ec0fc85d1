"""What of other tasks an agent may read: those that it works on, and what these need and made."""

from __future__ import annotations

from kapell.v1.error_pb2 import ERROR_REASON_NOT_OWNER
from kapell.v1.task_pb2 import Task

from kapell_server.domain.errors import KapellError


def depends_on(held: Task, wanted_id: str) -> bool:
    """Whether a lease on `held` opens what `wanted_id` came to: the task waited for it."""
    return any(dependency.task_id == wanted_id for dependency in held.dependencies)


def not_within_reach(agent_id: str, what: str) -> KapellError:
    """An agent that has no task to do with this. What does not exist is refused alike, so that nobody can probe."""
    return KapellError(
        ERROR_REASON_NOT_OWNER,
        f"Agent {agent_id} may not read {what}: agents read the tasks they have a lease on, the descendants of"
        " these, and what their dependencies came to. Use a user's token for others.",
        metadata={"agent_id": agent_id},
    )
