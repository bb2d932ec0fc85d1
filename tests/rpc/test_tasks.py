"""TaskService on a real server."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from kapell.v1 import (
    agent_pb2,
    task_pb2,
)

from tests.rpc.conftest import failure
from tests.rpc.services import Services, create, register, wait

pytestmark = pytest.mark.timeout(60)


async def test_a_created_task_is_read_listed_counted_and_updated(owner: Services) -> None:
    task = await create(owner, task_id="task_a", prompt="do it", input={"n": 1}, labels={"a": "b"})

    read = (await owner(owner.tasks.GetTask, task_pb2.GetTaskRequest(task_id="task_a"))).task
    listed = await owner(owner.tasks.ListTasks, task_pb2.ListTasksRequest())
    counted = await owner(owner.tasks.CountTasks, task_pb2.CountTasksRequest())
    update = task_pb2.UpdateTaskRequest(
        task={"task_id": "task_a", "priority": 900}, update_mask={"paths": ["priority"]}, etag=task.etag
    )
    updated = (await owner(owner.tasks.UpdateTask, update)).task

    assert (read.prompt, dict(read.input)) == ("do it", {"n": 1.0})
    assert [(t.task_id, t.prompt) for t in listed.tasks] == [("task_a", "")]
    assert listed.revision >= task.revision
    assert [(c.state, c.count) for c in counted.counts] == [(task_pb2.TASK_STATE_QUEUED, 1)]
    assert (updated.priority, updated.state) == (900, task_pb2.TASK_STATE_QUEUED)
    stale = await failure(owner(owner.tasks.UpdateTask, update))
    assert (stale.code, stale.info.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")


async def test_a_batch_is_created_whole_and_its_request_id_gives_the_same_answer(owner: Services) -> None:
    request = task_pb2.BatchCreateTasksRequest(
        tasks=[{"agent_type": "test"}, {"agent_type": "test"}], request_id="once"
    )
    first = await owner(owner.tasks.BatchCreateTasks, request)
    again = await owner(owner.tasks.BatchCreateTasks, request)

    assert [t.task_id for t in again.tasks] == [t.task_id for t in first.tasks]
    assert (first.replayed, again.replayed) == (False, True)
    request.tasks[0].prompt = "other"
    reused = await failure(owner(owner.tasks.BatchCreateTasks, request))
    assert (reused.code, reused.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")


async def test_unknown_ids_are_not_found_with_the_resource_named(owner: Services) -> None:
    missing = {"task_id": "task_none"}
    for method, request in [
        (owner.tasks.GetTask, task_pb2.GetTaskRequest(**missing)),
        (owner.tasks.WaitTask, task_pb2.WaitTaskRequest(**missing)),
        (owner.tasks.CancelTask, task_pb2.CancelTaskRequest(**missing)),
        (owner.tasks.ListTaskAttempts, task_pb2.ListTaskAttemptsRequest(**missing)),
    ]:
        failed = await failure(owner(method, request))
        assert (failed.code, failed.info.reason) == (grpc.StatusCode.NOT_FOUND, "TASK_NOT_FOUND")
        assert "ResourceInfo" in failed.details
    failed = await failure(owner(owner.agents.GetAgent, agent_pb2.GetAgentRequest(agent_id="agent_none")))
    assert (failed.code, failed.info.reason) == (grpc.StatusCode.NOT_FOUND, "AGENT_NOT_FOUND")


async def test_cancel_retry_and_delete_walk_the_states(owner: Services) -> None:
    await create(owner, task_id="task_a")

    cancelled = await owner(owner.tasks.CancelTask, task_pb2.CancelTaskRequest(task_id="task_a"))
    retried = await owner(owner.tasks.RetryTask, task_pb2.RetryTaskRequest(task_id="task_a"))
    conflict = await failure(owner(owner.tasks.RetryTask, task_pb2.RetryTaskRequest(task_id="task_a")))
    first = await owner(owner.tasks.DeleteTask, task_pb2.DeleteTaskRequest(task_id="task_a"))
    second = await owner(owner.tasks.DeleteTask, task_pb2.DeleteTaskRequest(task_id="task_a"))

    assert cancelled.task.state == task_pb2.TASK_STATE_CANCELLED
    assert retried.task.state == task_pb2.TASK_STATE_QUEUED
    assert (conflict.code, conflict.info.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "TASK_STATE_CONFLICT",
    )
    assert (first.deleted, second.deleted) == (False, True)


async def test_waiting_ends_when_the_task_does_and_not_before(owner: Services, channel: grpc.aio.Channel) -> None:
    worker = await register(owner, channel)
    await create(owner, task_id="task_a", prompt="do it")
    waiting = asyncio.ensure_future(wait(owner, "task_a", 30))
    offer = await worker.lease()
    assert offer.task.prompt == "do it"

    await worker.complete(offer)

    ended = await waiting
    assert (ended.state, ended.result.string_value) == (task_pb2.TASK_STATE_SUCCEEDED, "ok")
    assert ended.prompt == "do it"


async def test_a_wait_longer_than_its_deadline_answers_before_it(owner: Services) -> None:
    await create(owner, task_id="task_a")

    request = task_pb2.WaitTaskRequest(task_id="task_a", wait={"seconds": 60})
    answer = await owner(owner.tasks.WaitTask, request, timeout=1)

    assert answer.task.state == task_pb2.TASK_STATE_QUEUED
