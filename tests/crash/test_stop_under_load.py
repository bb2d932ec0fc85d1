"""A server that is asked to stop while hundreds of calls stand in its intake: nothing that was answered is lost."""

from __future__ import annotations

import asyncio

import grpc
from kapell.v1 import task_pb2
from kapell.v1.task_pb2 import CreateTaskRequest, ListTasksRequest, TaskSpec
from kapell.v1.task_pb2_grpc import TaskServiceStub

from tests.support.server_process import ServerProcess

IN_FLIGHT = 300


async def test_whoever_was_answered_is_kept_and_all_others_know_that_they_were_not(
    server_process: ServerProcess,
) -> None:
    metadata = (("authorization", f"Bearer {server_process.admin_token}"),)
    made: list[str] = []
    many = asyncio.Event()

    async with grpc.aio.insecure_channel(server_process.address, options=(("grpc.enable_retries", 0),)) as channel:
        create = TaskServiceStub(channel).CreateTask

        async def go_on() -> grpc.StatusCode:
            while True:
                request = CreateTaskRequest(task=TaskSpec(agent_type="nobody", prompt="wait"))
                try:
                    answer: task_pb2.CreateTaskResponse = await create(request, metadata=metadata, timeout=60)
                except grpc.aio.AioRpcError as error:
                    return error.code()
                made.append(answer.task.task_id)
                if len(made) >= 2 * IN_FLIGHT:
                    many.set()

        callers = [asyncio.create_task(go_on()) for _ in range(IN_FLIGHT)]
        await many.wait()
        code = await asyncio.to_thread(server_process.stop)
        ends = await asyncio.gather(*callers)

    assert code == 0
    assert set(ends) <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}, "these an SDK repeats"
    await asyncio.to_thread(server_process.start)
    async with grpc.aio.insecure_channel(server_process.address) as channel:
        assert set(made) <= await _tasks(channel, metadata)


async def _tasks(channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...]) -> set[str]:
    found: set[str] = set()
    request = ListTasksRequest(page_size=1000)
    while True:
        page: task_pb2.ListTasksResponse = await TaskServiceStub(channel).ListTasks(request, metadata=metadata)
        found |= {task.task_id for task in page.tasks}
        request.page_token = page.next_page_token
        if not request.page_token:
            return found
