"""Encoded requests of the usual size, made before anything is timed."""

from __future__ import annotations

from collections.abc import Iterator

from kapell.v1.task_pb2 import BatchCreateTasksRequest, CreateTaskRequest, ListTasksRequest, TaskSpec

TASKS = "/kapell.v1.TaskService/"
WORKERS = "/kapell.v1.WorkerService/"
EVENTS = "/kapell.v1.EventService/"
ECHO = "/kapell.bench.Floor/Echo"

AGENT_TYPE = "bench"
PROMPT = "Summarise what changed in the module and name the riskiest line. " * 3
LABELS = {"team": "payments", "repository": "shop"}


def spec(agent_type: str = AGENT_TYPE) -> TaskSpec:
    """A task as people make them: a prompt of some lines, two labels."""
    return TaskSpec(agent_type=agent_type, prompt=PROMPT, labels=LABELS, display_name="Summarise changes")


def create(agent_type: str = AGENT_TYPE) -> bytes:
    """One CreateTaskRequest without a request_id."""
    return CreateTaskRequest(task=spec(agent_type)).SerializeToString()


def creates_with_ids(prefix: str, agent_type: str = AGENT_TYPE) -> Iterator[bytes]:
    """CreateTaskRequests as the official clients send them: each with a request_id of its own."""
    body, number = create(agent_type), 0
    while True:
        yield body + CreateTaskRequest(request_id=f"{prefix}-{number:012d}").SerializeToString()
        number += 1


def batch(count: int, agent_type: str = AGENT_TYPE) -> bytes:
    """A BatchCreateTasksRequest of `count` tasks."""
    return BatchCreateTasksRequest(tasks=[spec(agent_type)] * count).SerializeToString()


def page(size: int) -> bytes:
    """A ListTasksRequest for the newest `size` tasks."""
    return ListTasksRequest(page_size=size).SerializeToString()
