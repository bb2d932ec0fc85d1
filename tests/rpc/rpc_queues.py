"""The part of rpc_table about queues, limits, and why a task is not running."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from kapell.v1 import queue_pb2, task_pb2
from kapell.v1.queue_pb2 import QUEUE_STATE_DRAINING, QUEUE_STATE_OPEN, QUEUE_STATE_PAUSED

from tests.rpc.rpc_cases import Case, of_task
from tests.rpc.scene import Ask, Scene


def subject_of(message: Message | None) -> str:
    """The queue or limit that a message is about, as "queue/TYPE" or "limit/KEY"; empty for other messages."""
    if message is None or message.DESCRIPTOR.file.name != "kapell/v1/queue.proto":
        return ""
    named: Any = message
    for field in ("queue", "limit"):
        if field in message.DESCRIPTOR.fields_by_name and message.HasField(field):
            named = getattr(message, field)
    if hasattr(named, "agent_type"):
        return f"queue/{named.agent_type}"
    return f"limit/{named.key}" if hasattr(named, "key") else ""


def alter(request: Any) -> bool:
    """Makes another request of one about a queue or limit; False for one about something else."""
    if not subject_of(request):
        return False
    if hasattr(request, "queue"):
        request.queue.max_running += 1
    elif hasattr(request, "limit"):
        request.limit.description = "another"
    elif hasattr(request, "key"):
        request.key = "another"
    else:
        request.agent_type = "another"
    return True


def change(agent_type: str, **fields: Any) -> queue_pb2.UpdateQueueRequest:
    """Sets both limits of a queue."""
    rate = queue_pb2.StartRate(count=10, period=Duration(seconds=60))
    queue = queue_pb2.Queue(agent_type=agent_type, max_running=4, start_rate=rate)
    mask = FieldMask(paths=["max_running", "start_rate"])
    return queue_pb2.UpdateQueueRequest(queue=queue, update_mask=mask, **fields)


def new_limit(key: str, **fields: Any) -> queue_pb2.SetConcurrencyLimitRequest:
    """Lets two tasks of a key run."""
    return queue_pb2.SetConcurrencyLimitRequest(limit=queue_pb2.ConcurrencyLimit(key=key, max_running=2), **fields)


def paused(scene: Scene) -> str:
    """A type whose queue is paused."""
    agent_type = scene.name("paused-")
    scene.ask("PauseQueue", queue_pb2.PauseQueueRequest(agent_type=agent_type))
    return agent_type


def drained(scene: Scene) -> str:
    """A type whose queue takes nothing in."""
    agent_type = scene.name("drained-")
    scene.ask("DrainQueue", queue_pb2.DrainQueueRequest(agent_type=agent_type, reason="replaced"))
    return agent_type


def limited(scene: Scene) -> str:
    """A key with a limit."""
    key = scene.name("key:")
    scene.ask("SetConcurrencyLimit", new_limit(key))
    return key


def _listed(scene: Scene) -> Ask:
    limited(scene)
    return Ask(queue_pb2.ListConcurrencyLimitsRequest(page_size=1))


QUEUE_DRAINING = {
    "QUEUE_DRAINING": lambda scene: Ask(
        task_pb2.CreateTaskRequest(task=scene.spec(agent_type=drained(scene))),
    ),
}

EXPLAIN_TASK = Case(
    works=lambda scene: Ask(task_pb2.ExplainTaskRequest(task_id=scene.queued().task_id)),
    holds=lambda answer: (
        task_pb2.WAIT_KIND_NO_AGENT in [blocker.kind for blocker in answer.blockers] and bool(answer.summary)
    ),
    refused=of_task(task_pb2.ExplainTaskRequest),
    malformed=({}, "task_id"),
)

QUEUES: dict[str, Case] = {
    "GetQueueStats": Case(
        works=lambda scene: Ask(queue_pb2.GetQueueStatsRequest(agent_types=[scene.queued().agent_type])),
        holds=lambda answer: [entry.depth > 0 for entry in answer.queues] == [True],
        malformed=({"agentTypes": ["ok", "No Spaces"]}, "agent_types[1]"),
    ),
    "UpdateQueue": Case(
        works=lambda scene: Ask(change(scene.name("queue-"))),
        holds=lambda answer: (answer.queue.max_running, answer.queue.start_rate.count) == (4, 10),
        refused={"ETAG_MISMATCH": lambda scene: Ask(change(paused(scene), etag="other"))},
        malformed=({"queue": {"agentType": "ok"}, "updateMask": "state"}, "update_mask"),
    ),
    "PauseQueue": Case(
        works=lambda scene: Ask(queue_pb2.PauseQueueRequest(agent_type=scene.name("queue-"), reason="moving")),
        holds=lambda answer: (
            (answer.queue.state, answer.queue.state_reason, answer.queue.revision)
            == (QUEUE_STATE_PAUSED, "moving", answer.revision)
        ),
        malformed=({"agentType": "No Spaces"}, "agent_type"),
    ),
    "ResumeQueue": Case(
        works=lambda scene: Ask(queue_pb2.ResumeQueueRequest(agent_type=paused(scene))),
        holds=lambda answer: answer.queue.state == QUEUE_STATE_OPEN,
        malformed=({"requestId": "x" * 65}, "request_id"),
    ),
    "DrainQueue": Case(
        works=lambda scene: Ask(queue_pb2.DrainQueueRequest(agent_type=scene.name("queue-"))),
        holds=lambda answer: answer.queue.state == QUEUE_STATE_DRAINING,
        malformed=({"reason": "x" * 501}, "reason"),
    ),
    "SetConcurrencyLimit": Case(
        works=lambda scene: Ask(new_limit(scene.name("key:"))),
        holds=lambda answer: answer.limit.max_running == 2 and answer.limit.revision == answer.revision,
        refused={"ETAG_MISMATCH": lambda scene: Ask(new_limit(limited(scene), etag="other"))},
        malformed=({"limit": {"key": "a b"}}, "limit.key"),
    ),
    "ListConcurrencyLimits": Case(
        works=_listed,
        holds=lambda answer: [limit.max_running for limit in answer.limits] == [2],
        refused={
            "PAGE_TOKEN_INVALID: damaged": lambda scene: Ask(
                queue_pb2.ListConcurrencyLimitsRequest(page_token="not-a-token")
            )
        },
        malformed=({"pageSize": 1001}, "page_size"),
    ),
    "DeleteConcurrencyLimit": Case(
        works=lambda scene: Ask(queue_pb2.DeleteConcurrencyLimitRequest(key=limited(scene))),
        holds=lambda answer: answer.revision > 0,
        refused={
            "LIMIT_NOT_FOUND": lambda scene: Ask(queue_pb2.DeleteConcurrencyLimitRequest(key="nobody:set-it")),
        },
        malformed=({"key": "*"}, "key"),
    ),
}

VALID_OF_QUEUES: dict[str, dict[str, Any]] = {
    "UpdateQueue": {"queue": {"agentType": "shell"}, "updateMask": "maxRunning"},
    "SetConcurrencyLimit": {"limit": {"key": "repo:web"}},
    "DeleteConcurrencyLimit": {"key": "repo:web"},
}
"""Requests that pass validation, of the methods that require something."""
