"""Children of the task at hand: creating them, and waiting for their ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from kapell._worker.leases import Lease
from kapell._worker.session import CALL_TIMEOUT, Session
from kapell.errors import LeaseLost, NotFound
from kapell.messages import Seconds, duration, new_request_id, seconds
from kapell.v1.task_pb2 import GetTaskRequest, Task, TaskSpec
from kapell.v1.worker_pb2 import (
    LEASE_DIRECTIVE_CANCEL,
    CreateChildTasksRequest,
    WaitChildTasksRequest,
    WaitChildTasksResponse,
)

_LONGEST_WAIT = 30.0


async def create(session: Session, lease: Lease, tasks: Iterable[TaskSpec]) -> list[Task]:
    """Creates them; through restarts of the server, and once."""
    request = CreateChildTasksRequest(lease_token=lease.token, tasks=tasks, request_id=new_request_id())
    try:
        answer = await session.insist(session.stub.CreateChildTasks, lambda: request)
    except LeaseLost:
        lease.lose()
        raise
    return list(answer.tasks)


async def wait(session: Session, lease: Lease, timeout: Seconds | None) -> list[Task]:
    """Waits until all have ended, the task is to be cancelled, or `timeout` is over; as they are then."""
    now = asyncio.get_running_loop().time
    until = None if timeout is None else now() + seconds(timeout)
    while True:
        left = _LONGEST_WAIT if until is None else max(0.0, until - now())
        answer = await _ask(session, lease, min(left, _LONGEST_WAIT))
        lease.follow(answer.directive)
        is_over = until is not None and now() >= until
        if answer.ended or is_over or answer.directive == LEASE_DIRECTIVE_CANCEL:
            return await _completed(session, answer)


async def _completed(session: Session, answer: WaitChildTasksResponse) -> list[Task]:
    """The children, with what had no room in the answer; one that was deleted meanwhile stays as it is there."""
    left_out = set(answer.left_out_task_ids)
    return [await _whole(session, task) if task.task_id in left_out else task for task in answer.tasks]


async def _whole(session: Session, task: Task) -> Task:
    request = GetTaskRequest(task_id=task.task_id)
    try:
        whole = (await session.insist(session.tasks.GetTask, lambda: request)).task
    except NotFound:
        return task
    whole.ClearField("prompt")
    whole.ClearField("input")
    return whole


async def _ask(session: Session, lease: Lease, patience: float) -> WaitChildTasksResponse:
    request = WaitChildTasksRequest(lease_token=lease.token, wait=duration(patience))
    try:
        return await session.insist(session.stub.WaitChildTasks, lambda: request, timeout=patience + CALL_TIMEOUT)
    except LeaseLost:
        lease.lose()
        raise
