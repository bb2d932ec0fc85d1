"""What limits cost, and what a large table costs: lifecycles under keys, a backlog, a million tasks."""

from __future__ import annotations

import time
from collections.abc import Sequence

from kapell.v1.queue_pb2 import ConcurrencyLimit, GetQueueStatsRequest, SetConcurrencyLimitRequest
from kapell.v1.task_pb2 import TASK_STATE_FAILED, CreateTaskRequest, ListTasksRequest, TaskFilter
from kapell.v1.worker_pb2 import (
    BatchCompleteTasksRequest,
    CompleteTaskRequest,
    LeaseTasksRequest,
    LeaseTasksResponse,
)

from tests.bench import messages
from tests.bench.load import Call, RawClient, in_flight, percentile, same
from tests.bench.place import Target, kapell
from tests.bench.result import Row
from tests.bench.stock import QUEUES, Sort, stocked
from tests.bench.suite import Setting, benchmark
from tests.bench.working import dispatch_times, lifecycles, register

KEYS = ("repo:shop", "api:search", "gpu")
# High enough that no task ever waits for a key.
ROOM = 10_000
PAGE = 50
SMALL_TABLE = 10_000
ROUNDS = 200


@benchmark("keys")
async def lifecycles_under_keys(setting: Setting) -> Sequence[Row]:
    """Whole lifecycles of tasks with three concurrency keys each, and of tasks with none."""
    figures, floors = [], []
    with kapell(setting.directory) as server:
        async with RawClient(server.address, server.token) as client:
            for key in KEYS:
                limit = ConcurrencyLimit(key=key, max_running=ROOM)
                request = SetConcurrencyLimitRequest(limit=limit)
                await client.unary(QUEUES + "SetConcurrencyLimit")(request.SerializeToString())
        for number in range(setting.repetitions):
            floors.append(await lifecycles(server, setting.seconds * 2, messages.spec(f"free-{number}")))
            spec = messages.spec(f"keyed-{number}")
            spec.concurrency_keys.extend(KEYS)
            figures.append(await lifecycles(server, setting.seconds * 2, spec))
    return [
        Row(
            name=f"whole lifecycles, {len(KEYS)} concurrency keys a task",
            unit="/s",
            figures=figures,
            floors=floors,
            goal=0.9,
            higher_is_better=True,
            note="floor: tasks without keys",
        )
    ]


@benchmark("backlog")
async def dispatch_beside_a_backlog(setting: Setting) -> Sequence[Row]:
    """Dispatch where a tenth of --tasks are blocked and as many have a lower priority, and where none are there."""
    count = setting.tasks // 10
    blocked = Sort(count=count, agent_type="blocked", priority=900, key="closed")
    in_line = Sort(count=count, agent_type="line", priority=100)
    also_blocked = Sort(count=count, agent_type="line", priority=900, key="closed")
    found: dict[tuple[str, bool], list[float]] = {}
    async with (
        stocked(setting.directory / "full", blocked, in_line, also_blocked) as full,
        stocked(setting.directory / "empty") as empty,
        RawClient(full.address, full.token) as to_full,
        RawClient(empty.address, empty.token) as to_empty,
    ):
        for number in range(setting.repetitions):
            for server, client, is_full in ((empty, to_empty, False), (full, to_full, True)):
                waiting = await dispatch_times(server, client, f"waits-{number}", count=ROUNDS, agent_type="blocked")
                found.setdefault(("waiting", is_full), []).append(percentile(waiting, 50) * 1e3)
                first = await _lease_times(server, client, f"polls-{number}", "line")
                found.setdefault(("line", is_full), []).append(percentile(first, 50) * 1e3)
    names = {
        "waiting": f"dispatch to a waiting worker, {count:,} blocked of its type, p50",
        "line": f"lease of the first, {count:,} blocked and {count:,} behind it, p50",
    }
    return [
        Row(
            name=name,
            unit="ms",
            figures=found[key, True],
            floors=found[key, False],
            goal=1.15,
            note="floor: nothing else is there",
        )
        for key, name in names.items()
    ]


@benchmark("million", long=True)
async def large_table(setting: Setting) -> Sequence[Row]:
    """The same calls on a server with 10,000 tasks and on one with a million, a tenth of them QUEUED."""
    found: dict[tuple[str, bool], list[float]] = {}
    async with (
        stocked(setting.directory / "large", *_table(setting.tasks)) as large,
        stocked(setting.directory / "small", *_table(SMALL_TABLE)) as small,
        RawClient(large.address, large.token) as to_large,
        RawClient(small.address, small.token) as to_small,
    ):
        for number in range(setting.repetitions):
            for server, client, is_large in ((small, to_small, False), (large, to_large, True)):
                for name, milliseconds in (await _latencies(server, client, setting, number)).items():
                    found.setdefault((name, is_large), []).append(milliseconds)
    return [
        Row(
            name=f"{name}: {setting.tasks:,} tasks against {SMALL_TABLE:,}, p50",
            unit="ms",
            figures=figures,
            floors=found[name, False],
            goal=1.5,
            stretch=1.2,
        )
        for (name, is_large), figures in found.items()
        if is_large
    ]


def _table(count: int) -> tuple[Sort, Sort]:
    ended = Sort(count=count - count // 10, agent_type="done", has_ended=True)
    return ended, Sort(count=count // 10, agent_type=messages.AGENT_TYPE)


async def _latencies(server: Target, client: RawClient, setting: Setting, number: int) -> dict[str, float]:
    """Median milliseconds of each call."""
    rare = TaskFilter(states=[TASK_STATE_FAILED])
    of_type = TaskFilter(agent_types=[messages.AGENT_TYPE])
    lists = {
        f"list of {PAGE}": ListTasksRequest(page_size=PAGE),
        "filter by a rare state": ListTasksRequest(filter=rare, page_size=PAGE),
        "filter by type": ListTasksRequest(filter=of_type, page_size=PAGE),
    }
    create = client.unary(messages.TASKS + "CreateTask")
    calls: dict[str, tuple[Call, bytes]] = {
        "create": (create, messages.create()),
        "queue stats": (client.unary(QUEUES + "GetQueueStats"), GetQueueStatsRequest().SerializeToString()),
    }
    list_tasks = client.unary(messages.TASKS + "ListTasks")
    calls |= {name: (list_tasks, request.SerializeToString()) for name, request in lists.items()}
    found = {}
    for name, (call, request) in calls.items():
        load = await in_flight(call, same(request), width=1, seconds=setting.seconds / 2)
        found[name] = load.percentile(50) * 1e3
    waiting = await dispatch_times(server, client, f"waits-{number}", count=ROUNDS)
    found["create, lease, complete"] = percentile(waiting, 50) * 1e3
    leases = await _lease_times(server, client, f"polls-{number}", messages.AGENT_TYPE)
    found["lease"] = percentile(leases, 50) * 1e3
    return found


async def _lease_times(server: Target, client: RawClient, key: str, agent_type: str) -> list[float]:
    """Seconds from a poll to its offer, where the task to be offered has just been made and others stand behind it."""
    agent_id, token = await register(server, client, key, agent_type)
    create = client.unary(messages.TASKS + "CreateTask")
    spec = messages.spec(agent_type)
    spec.priority = 600
    request = CreateTaskRequest(task=spec).SerializeToString()
    taken = []
    async with RawClient(server.address, token) as worker:
        lease = worker.unary(messages.WORKERS + "LeaseTasks")
        complete = worker.unary(messages.WORKERS + "BatchCompleteTasks")
        for number in range(ROUNDS):
            await create(request)
            poll = LeaseTasksRequest(agent_id=agent_id, max_tasks=1, poll_id=f"poll-{number}")
            begin = time.perf_counter()
            answer = await lease(poll.SerializeToString())
            taken.append(time.perf_counter() - begin)
            [offer] = LeaseTasksResponse.FromString(answer).offers
            done = CompleteTaskRequest(lease_token=offer.lease_token)
            await complete(BatchCompleteTasksRequest(completions=[done]).SerializeToString())
    return taken
