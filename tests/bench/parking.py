"""A flood under one concurrency key: what it costs all others. The rules alone, in this process."""

from __future__ import annotations

import time
from collections.abc import Sequence

from kapell.v1.task_pb2 import CreateTaskRequest, ExplainTaskRequest, TaskSpec

from tests.bench.load import median
from tests.bench.result import Row
from tests.bench.suite import Setting, benchmark
from tests.domain.world import World

FLOOD = 100_000
ROUNDS = 300
OTHERS = {
    "of another type": TaskSpec(agent_type="other"),
    "of its type": TaskSpec(agent_type="shell"),
    "of a free key": TaskSpec(agent_type="shell", concurrency_keys=["free"]),
}


@benchmark("parking")
async def parking(setting: Setting) -> Sequence[Row]:
    """Create, lease and complete of a task beside a flood that is parked, against the same without."""
    calm, flooded = World(), World()
    agents = {id(world): world.register("shell", "other", slots=2) for world in (calm, flooded)}
    flooded.create(concurrency_keys=["k"])
    flooded.lease(agents[id(flooded)])
    flood = [CreateTaskRequest(task=TaskSpec(agent_type="shell", concurrency_keys=["k"]))] * 1000
    for _ in range(FLOOD // len(flood)):
        flooded.now_ns += 1000
        flooded.do(*flood)
    rows = []
    for name, spec in OTHERS.items():
        figures, floors = [], []
        for _ in range(setting.repetitions):
            floors.append(_cycle(calm, agents[id(calm)], spec))
            figures.append(_cycle(flooded, agents[id(flooded)], spec))
        row = Row(name=f"lifecycle {name}, {FLOOD:,} parked", unit="µs", figures=figures, floors=floors, goal=1.2)
        rows.append(row)
    return [*rows, *_looks(flooded)]


def _cycle(world: World, agent_id: str, spec: TaskSpec) -> float:
    """Median microseconds of create, lease and complete, each a batch of its own."""
    taken = []
    for _ in range(ROUNDS):
        world.now_ns += 1000
        begin = time.perf_counter()
        world.do(CreateTaskRequest(task=spec))
        world.complete(world.lease(agent_id))
        taken.append((time.perf_counter() - begin) * 1e6)
    return median(taken)


def _looks(flooded: World) -> list[Row]:
    """What looks at all tasks: how long it holds the writer up."""
    last = next(reversed(flooded.rows.tasks))
    explaining = [_seconds(flooded, ExplainTaskRequest(task_id=last)) * 1e3 for _ in range(5)]
    idle = World()
    agent_id = idle.register(slots=9)
    flood = [CreateTaskRequest(task=TaskSpec(agent_type="shell", concurrency_keys=["k"]))] * 1000
    for _ in range(FLOOD // len(flood)):
        idle.now_ns += 1000
        idle.do(*flood)
    begin = time.perf_counter()
    idle.poll(agent_id, max_tasks=2)
    parked = (time.perf_counter() - begin) * 1e3
    return [
        _as_it_is(f"explain one of {FLOOD:,} parked", explaining),
        _as_it_is(f"first lease of {FLOOD:,} under one key, which parks the rest", [parked]),
    ]


def _as_it_is(name: str, milliseconds: list[float]) -> Row:
    return Row(name=name, unit="ms", figures=milliseconds, compared=milliseconds, compared_unit="ms")


def _seconds(world: World, request: ExplainTaskRequest) -> float:
    begin = time.perf_counter()
    world.do(request)
    return time.perf_counter() - begin
