"""The entries of rpc_table for changes of many tasks, and for what tasks were before they were edited."""

from __future__ import annotations

from typing import Any

from kapell.v1 import task_pb2
from kapell.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_QUEUED, TaskFilter

from tests.rpc.rpc_cases import Case, Make, of_task
from tests.rpc.scene import Ask, Scene


def these(*tasks: Any) -> TaskFilter:
    """A filter that wants these tasks."""
    return TaskFilter(task_ids=[task.task_id for task in tasks])


def _too_many(request: type[Any], **fields: Any) -> dict[str, Make]:
    def make(scene: Scene) -> Ask:
        return Ask(request(filter=these(scene.queued(), scene.queued()), max_affected=1, **fields))

    return {"TOO_MANY_MATCHES": make}


def _edited(scene: Scene) -> Ask:
    task_id = scene.cancelled().task_id
    scene.ask("RetryTask", task_pb2.RetryTaskRequest(task_id=task_id, prompt="better"))
    return Ask(task_pb2.ListTaskEditsRequest(task_id=task_id))


def _page(scene: Scene) -> Ask:
    return Ask(task_pb2.ListTaskEditsRequest(task_id=scene.queued().task_id, page_token="not-a-token"))


BULK: dict[str, Case] = {
    "CancelTasks": Case(
        works=lambda scene: Ask(task_pb2.CancelTasksRequest(filter=these(scene.queued()))),
        holds=lambda answer: [item.state for item in answer.items] == [TASK_STATE_CANCELLED] and answer.affected == 1,
        refused=_too_many(task_pb2.CancelTasksRequest),
        malformed=({"all": True, "maxAffected": 10_001}, "max_affected"),
    ),
    "RetryTasks": Case(
        works=lambda scene: Ask(task_pb2.RetryTasksRequest(filter=these(scene.cancelled()))),
        holds=lambda answer: [item.state for item in answer.items] == [TASK_STATE_QUEUED] and answer.affected == 1,
        refused=_too_many(task_pb2.RetryTasksRequest),
        malformed=({"filter": {"states": [0]}}, "filter.states[0]"),
    ),
    "ReprioritizeTasks": Case(
        works=lambda scene: Ask(task_pb2.ReprioritizeTasksRequest(filter=these(scene.queued()), priority=900)),
        holds=lambda answer: answer.matched == answer.affected == len(answer.items) == 1,
        refused=_too_many(task_pb2.ReprioritizeTasksRequest, priority=1),
        malformed=({"all": True}, "priority"),
    ),
    "ListTaskEdits": Case(
        works=_edited,
        holds=lambda answer: [(edit.prompt, edit.retry) for edit in answer.edits] == [("wait", 1)],
        refused={**of_task(task_pb2.ListTaskEditsRequest), "PAGE_TOKEN_INVALID": _page},
        malformed=({"taskId": "task_1", "pageSize": 1001}, "page_size"),
    ),
}
