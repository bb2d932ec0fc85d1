"""Tasks with locks: what a flood that waits for them costs all others, and what a lock adds to a lifecycle."""

from __future__ import annotations

import time
from collections.abc import Sequence

from kapell.v1.lock_pb2 import LOCK_MODE_SHARED, LockItem
from kapell.v1.task_pb2 import CreateTaskRequest, TaskSpec

from tests.bench import messages
from tests.bench.load import median
from tests.bench.place import kapell
from tests.bench.result import Row
from tests.bench.suite import Setting, benchmark
from tests.bench.working import lifecycles
from tests.domain.world import World

FLOOD = 10_000
ROUNDS = 200
OTHERS = {
    "of another type": TaskSpec(agent_type="other"),
    "of its type": TaskSpec(agent_type="shell"),
    "with a free lock": TaskSpec(agent_type="shell", locks=[LockItem(path="docs")]),
}


@benchmark("locks-dispatch")
async def locks_dispatch(setting: Setting) -> Sequence[Row]:
    """Create, lease and complete of a task beside a flood under one lock, against the same without; hand-overs."""
    calm = World()
    floods = {"one path": ["repo"] * FLOOD, "a path each": [f"repo/{number}" for number in range(FLOOD)]}
    rows: list[Row] = []
    agent = calm.register("shell", "other", slots=2)
    for kind, paths in floods.items():
        flooded = World()
        busy = _flood(flooded, paths)
        for name, spec in OTHERS.items():
            figures, floors = [], []
            for _ in range(setting.repetitions):
                floors.append(_cycle(calm, agent, spec))
                figures.append(_cycle(flooded, busy, spec))
            title = f"lifecycle {name}, {FLOOD:,} wait for {kind}"
            rows.append(Row(name=title, unit="µs", figures=figures, floors=floors, goal=1.2))
    return [*rows, _hand_over(setting, calm, agent)]


def _flood(world: World, paths: Sequence[str]) -> str:
    """Tasks that wait for a lock that one of them has. The agent that has it, with a slot to spare."""
    agent_id = world.register("shell", "other", slots=2)
    world.create(locks=[LockItem(path="repo")])
    world.lease(agent_id)
    commands = [CreateTaskRequest(task=TaskSpec(agent_type="shell", locks=[LockItem(path=path)])) for path in paths]
    for start in range(0, len(commands), 1000):
        world.now_ns += 1000
        world.do(*commands[start : start + 1000])
    return agent_id


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


def _hand_over(setting: Setting, calm: World, agent: str) -> Row:
    """From one of a flood under one path to the next: complete, and lease."""
    flooded = World()
    agent_id = _flood(flooded, ["repo"] * FLOOD)
    [lease] = flooded.state.leases.of_agent(agent_id)
    held = lease.task_id
    figures, floors = [], []
    for _ in range(setting.repetitions):
        taken = []
        for _ in range(ROUNDS):
            flooded.now_ns += 1000
            begin = time.perf_counter()
            flooded.complete(held)
            held = flooded.lease(agent_id)
            taken.append((time.perf_counter() - begin) * 1e6)
        figures.append(median(taken))
        floors.append(_cycle(calm, agent, OTHERS["of its type"]))
    title = f"hand-over to the next of {FLOOD:,} that wait for one path"
    return Row(name=title, unit="µs", figures=figures, floors=floors, goal=1.5, note="floor: a lifecycle without locks")


@benchmark("locks-lifecycles")
async def locks_lifecycles(setting: Setting) -> Sequence[Row]:
    """Whole lifecycles of tasks with one lock each, shared so that none waits, and of tasks without."""
    figures, floors = [], []
    with kapell(setting.directory) as server:
        for number in range(setting.repetitions):
            floors.append(await lifecycles(server, setting.seconds * 2, messages.spec(f"free-{number}")))
            spec = messages.spec(f"locked-{number}")
            spec.locks.add(path="repo/src", mode=LOCK_MODE_SHARED)
            figures.append(await lifecycles(server, setting.seconds * 2, spec))
    return [
        Row(
            name="whole lifecycles, one lock a task",
            unit="/s",
            figures=figures,
            floors=floors,
            goal=0.6,
            higher_is_better=True,
            note="floor: tasks without locks",
        )
    ]
