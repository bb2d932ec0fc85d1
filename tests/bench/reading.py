"""Reads under full write load."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from kapell.v1.task_pb2 import (
    CreateTaskRequest,
    CreateTaskResponse,
    GetTaskRequest,
)

from tests.bench import messages
from tests.bench.load import Call, RawClient, in_flight, same
from tests.bench.place import beside, kapell
from tests.bench.result import Row
from tests.bench.suite import Setting, benchmark

PAGE = 50
FILL = 500


@benchmark("read")
async def reads_under_load(setting: Setting) -> Sequence[Row]:
    """Get, and list of 50, one in flight, while another process writes as fast as it can."""
    found: dict[tuple[str, bool], list[float]] = {}
    with kapell(setting.directory) as server:
        async with RawClient(server.address, server.token) as client:
            await fill(client, 5_000)
            reads = await _reads(client)
            for _ in range(setting.repetitions):
                for name, (call, request) in reads.items():
                    idle = await in_flight(call, same(request), width=1, seconds=setting.seconds / 2)
                    writer = asyncio.ensure_future(beside("writer", server, 0, setting.seconds * 2))
                    await asyncio.sleep(setting.seconds / 2)
                    busy = await in_flight(call, same(request), width=1, seconds=setting.seconds)
                    await writer
                    found.setdefault((name, False), []).append(idle.percentile(99) * 1e3)
                    found.setdefault((name, True), []).append(busy.percentile(99) * 1e3)
    return [
        Row(
            name=f"{name} p99 under full write load",
            unit="ms",
            figures=found[name, True],
            floors=found[name, False],
            goal=3.0,
            stretch=2.0,
            note="floor: the same when idle",
        )
        for name in ("get", f"list of {PAGE}")
    ]


async def fill(client: RawClient, count: int) -> None:
    """Creates `count` tasks that nobody works on."""
    request = messages.batch(FILL)
    call = client.unary(messages.TASKS + "BatchCreateTasks")
    limit = asyncio.Semaphore(4)

    async def one() -> None:
        async with limit:
            await call(request)

    async with asyncio.TaskGroup() as group:
        for _ in range(count // FILL):
            group.create_task(one())


async def _reads(client: RawClient) -> dict[str, tuple[Call, bytes]]:
    create = client.unary(messages.TASKS + "CreateTask")
    answer = await create(CreateTaskRequest(task=messages.spec()).SerializeToString())
    task_id = CreateTaskResponse.FromString(answer).task.task_id
    get = GetTaskRequest(task_id=task_id).SerializeToString()
    return {
        "get": (client.unary(messages.TASKS + "GetTask"), get),
        f"list of {PAGE}": (client.unary(messages.TASKS + "ListTasks"), messages.page(PAGE)),
    }
