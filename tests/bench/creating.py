"""How fast tasks are created: one after the other, many at a time, in batches."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench import messages
from tests.bench.load import RawClient, in_flight, same
from tests.bench.place import kapell
from tests.bench.result import Row
from tests.bench.suite import Setting, benchmark

WIDTH = 64
BATCH = 16
BATCHES_AT_A_TIME = 16


@benchmark("create")
async def create_rate(setting: Setting) -> Sequence[Row]:
    """Durable CreateTask, 64 in flight; bare, and with the request_id that the SDKs always send."""
    bare, with_ids, floors = [], [], []
    with kapell(setting.directory) as server:
        async with RawClient(server.address, server.token) as client:
            call = client.unary(messages.TASKS + "CreateTask")
            for number in range(setting.repetitions):
                floors.append((await setting.echo(width=WIDTH)).rate)
                load = await in_flight(call, same(messages.create()), width=WIDTH, seconds=setting.seconds)
                bare.append(load.rate)
                requests = messages.creates_with_ids(f"bench-{number}")
                load = await in_flight(call, requests, width=WIDTH, seconds=setting.seconds)
                with_ids.append(load.rate)
    return [
        Row(
            name="durable CreateTask, 64 in flight",
            unit="/s",
            figures=bare,
            floors=floors,
            goal=0.75,
            stretch=0.90,
            higher_is_better=True,
        ),
        Row(
            name="the same with a request_id each",
            unit="/s",
            figures=with_ids,
            floors=floors,
            higher_is_better=True,
            note="as the SDKs call it",
        ),
    ]


@benchmark("create-one")
async def create_latency(setting: Setting) -> Sequence[Row]:
    """CreateTask with one in flight, as echo plus so many raw commits."""
    figures, floors, commits = [], [], []
    with kapell(setting.directory) as server:
        async with RawClient(server.address, server.token) as client:
            call = client.unary(messages.TASKS + "CreateTask")
            for _ in range(setting.repetitions):
                floors.append((await setting.echo(width=1)).percentile(50))
                commits.append(setting.raw_commit())
                load = await in_flight(call, same(messages.create()), width=1, seconds=setting.seconds)
                figures.append(load.percentile(50))
    beyond = [(figure - floor) / commit for figure, floor, commit in zip(figures, floors, commits, strict=True)]
    return [
        Row(
            name="CreateTask p50, one in flight",
            unit="ms",
            figures=[figure * 1e3 for figure in figures],
            floors=[floor * 1e3 for floor in floors],
            compared=beyond,
            compared_unit="raw commits beyond echo",
            goal=2.0,
            stretch=1.5,
            note=f"raw commit {sorted(commits)[len(commits) // 2] * 1e3:.2f} ms",
        )
    ]


@benchmark("batch")
async def batch_rate(setting: Setting) -> Sequence[Row]:
    """BatchCreateTasks of 16 tasks, counted in tasks."""
    figures, floors = [], []
    request = messages.batch(BATCH)
    with kapell(setting.directory) as server:
        async with RawClient(server.address, server.token) as client:
            call = client.unary(messages.TASKS + "BatchCreateTasks")
            for _ in range(setting.repetitions):
                floors.append((await setting.echo(width=WIDTH)).rate)
                load = await in_flight(call, same(request), width=BATCHES_AT_A_TIME, seconds=setting.seconds)
                figures.append(load.rate * BATCH)
    return [
        Row(
            name="BatchCreateTasks of 16, tasks",
            unit="/s",
            figures=figures,
            floors=floors,
            goal=2.0,
            stretch=2.5,
            higher_is_better=True,
        )
    ]
