"""What an agent may do about the children of the task it holds."""

from __future__ import annotations

from kapell.v1.task_pb2 import Task
from kapell.v1.worker_pb2 import CreateChildTasksRequest

from kapell_server.domain import attempt
from kapell_server.domain.state import State
from kapell_server.domain.task import create_related


def create_children(state: State, request: CreateChildTasksRequest) -> list[Task]:
    """Creates children of the leased task, all or none."""
    _, parent = attempt.held(state, request.lease_token)
    return create_related(state, request.tasks, "tasks[{}]", parent)
