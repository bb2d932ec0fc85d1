"""Reads under full write load, and everything on a table of a million tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from kapell.v1.task_pb2 import (
    TASK_STATE_FAILED,
    CreateTaskRequest,
    CreateTaskResponse,
    GetTaskRequest,
    ListTasksRequest,
    TaskFilter,
)

from tests.bench import messages
from tests.bench.load import Call, RawClient, in_flight, same
from tests.bench.place import Target, beside, kapell
from tests.bench.result import Row
from tests.bench.suite import Setting, benchmark
from tests.bench.working import dispatch_times

PAGE = 50
FILL = 500
SMALL_TABLE = 10_000


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


@benchmark("million", long=True)
async def large_table(setting: Setting) -> Sequence[Row]:
    """The same calls with 10,000 tasks in the table and with a million."""
    small, large = {}, {}
    with kapell(setting.directory) as server:
        async with RawClient(server.address, server.token) as client:
            await fill(client, SMALL_TABLE)
            small = await _latencies(server, client, setting, "small")
            await fill(client, setting.tasks - SMALL_TABLE)
            large = await _latencies(server, client, setting, "large")
    return [
        Row(
            name=f"{name}: {setting.tasks:,} tasks against {SMALL_TABLE:,}, p50",
            unit="ms",
            figures=large[name],
            floors=small[name],
            goal=1.5,
            stretch=1.2,
        )
        for name in small
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


async def _latencies(server: Target, client: RawClient, setting: Setting, key: str) -> dict[str, list[float]]:
    calls = await _reads(client)
    rare = ListTasksRequest(filter=TaskFilter(states=[TASK_STATE_FAILED]), page_size=PAGE)
    calls["list by state"] = (client.unary(messages.TASKS + "ListTasks"), rare.SerializeToString())
    calls["create"] = (client.unary(messages.TASKS + "CreateTask"), messages.create())
    found: dict[str, list[float]] = {name: [] for name in (*calls, "create, lease, complete")}
    for number in range(setting.repetitions):
        for name, (call, request) in calls.items():
            load = await in_flight(call, same(request), width=1, seconds=setting.seconds / 2)
            found[name].append(load.percentile(50) * 1e3)
        gaps = await dispatch_times(server, client, f"{key}-{number}", count=100)
        found["create, lease, complete"].append(sorted(gaps)[len(gaps) // 2] * 1e3)
    return found
