"""Logs of attempts: appended, read from an offset, followed to the end."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from kapell.v1 import (
    task_pb2,
    worker_pb2,
)
from kapell_server.testing import TestServer

from tests.rpc.conftest import failure
from tests.rpc.services import Services, create, read_logs, register

pytestmark = pytest.mark.timeout(60)


async def test_logs_are_read_from_an_offset(owner: Services, channel: grpc.aio.Channel) -> None:
    worker = await register(owner, channel)
    await create(owner, task_id="task_a")
    assert await read_logs(owner, task_id="task_a") == [(0, 0, [])]
    offer = await worker.lease()
    assert await read_logs(owner, task_id="task_a") == [(1, 0, [])]

    answer = await worker.log(offer, 0, "one", "two")

    assert (answer.next_offset, answer.directive) == (2, worker_pb2.LEASE_DIRECTIVE_CONTINUE)
    assert (await worker.log(offer, 1, "two", "three")).next_offset == 3
    assert await read_logs(owner, task_id="task_a") == [(1, 0, ["one", "two", "three"])]
    assert await read_logs(owner, task_id="task_a", attempt=1, offset=2) == [(1, 2, ["three"])]
    gap = await failure(worker.log(offer, 9, "ten"))
    assert (gap.code, gap.info.reason, gap.info.metadata["expected"]) == (
        grpc.StatusCode.OUT_OF_RANGE,
        "LOG_OFFSET_GAP",
        "3",
    )
    assert (await failure(read_logs(owner, task_id="task_a", offset=4))).info.reason == "LOG_OFFSET_GAP"
    none = await failure(read_logs(owner, task_id="task_a", attempt=2))
    assert none.info.reason == "ATTEMPT_NOT_FOUND"


async def test_followed_logs_go_on_over_all_attempts_until_the_task_has_ended(
    owner: Services, channel: grpc.aio.Channel
) -> None:
    worker = await register(owner, channel)
    policy = {"max_attempts": 2, "initial_backoff": {"nanos": 1_000_000}}
    await create(owner, task_id="task_a", retry_policy=policy)
    following = asyncio.ensure_future(read_logs(owner, task_id="task_a", follow=True))

    first = await worker.lease()
    await worker.log(first, 0, "first try")
    failed = worker_pb2.FailTaskRequest(lease_token=first.lease_token, failure={"reason": "BROKEN"})
    await worker.call(worker.call.workers.FailTask, failed)
    second = await worker.lease()
    await worker.log(second, 0, "second try")
    await worker.complete(second)

    said = await following
    assert [(attempt, text) for attempt, _, texts in said for text in texts] == [
        (1, "first try"),
        (2, "second try"),
    ]


async def test_logs_of_one_attempt_end_with_it(owner: Services, channel: grpc.aio.Channel) -> None:
    worker = await register(owner, channel)
    await create(owner, task_id="task_a")
    first = await worker.lease()
    await worker.log(first, 0, "first try")
    following = asyncio.ensure_future(read_logs(owner, task_id="task_a", attempt=1, follow=True))

    release = worker_pb2.ReleaseTaskRequest(lease_token=first.lease_token)
    await worker.call(worker.call.workers.ReleaseTask, release)

    assert [texts for _, _, texts in await following] == [["first try"]]


async def test_deleting_a_task_deletes_its_logs(server: TestServer, owner: Services, channel: grpc.aio.Channel) -> None:
    worker = await register(owner, channel)
    await create(owner, task_id="task_a")
    offer = await worker.lease()
    await worker.log(offer, 0, "old")
    await worker.complete(offer)

    await owner(owner.tasks.DeleteTask, task_pb2.DeleteTaskRequest(task_id="task_a"))

    assert not [path for path in server.app.directory.logs.rglob("*") if path.is_file()]
