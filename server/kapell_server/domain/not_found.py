"""The refusals of what names a task or an agent that is not there."""

from __future__ import annotations

from kapell.v1.error_pb2 import ERROR_REASON_AGENT_NOT_FOUND, ERROR_REASON_TASK_NOT_FOUND

from kapell_server.domain.errors import KapellError


def task_not_found(task_id: str) -> KapellError:
    """No task has this id."""
    return KapellError(
        ERROR_REASON_TASK_NOT_FOUND,
        f"Task {task_id} was not found: it never existed or was deleted. List the tasks to find its id.",
        metadata={"task_id": task_id},
    )


def agent_not_found(agent_id: str) -> KapellError:
    """No agent has this id."""
    return KapellError(
        ERROR_REASON_AGENT_NOT_FOUND,
        f"Agent {agent_id} was not found: it never existed or was deleted. List the agents to find its id.",
        metadata={"agent_id": agent_id},
    )
