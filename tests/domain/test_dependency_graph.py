"""Graphs of tasks: which are refused and why, and that any other is worked off as a small oracle says."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kapell.v1.dependency_pb2 import TaskDependency
from kapell.v1.task_pb2 import (
    TASK_STATE_PENDING,
    BatchCreateTasksRequest,
    CreateTaskRequest,
    Task,
    TaskSpec,
    TaskState,
)
from kapell_server.domain.dependency_graph import find_cycle

from tests.domain.world import World

Edge = tuple[int, int, int]
"""What a node waits for: (node, condition, on_failure), the enums as numbers."""


def spec(key: str, *after: str, **fields: Any) -> TaskSpec:
    return TaskSpec(
        agent_type="shell", client_key=key, dependencies=[TaskDependency(client_key=name) for name in after], **fields
    )


def batch(*specs: TaskSpec) -> BatchCreateTasksRequest:
    return BatchCreateTasksRequest(tasks=specs)


# -- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("specs", "cycle"),
    [
        ([spec("a", "a")], "a → a"),
        ([spec("a", "b"), spec("b", "a")], "a → b → a"),
        ([spec("z"), spec("x", "z", "a"), spec("a", "b"), spec("b", "c"), spec("c", "a")], "a → b → c → a"),
    ],
)
def test_a_cycle_is_named(specs: list[TaskSpec], cycle: str) -> None:
    world = World()

    with world.refuses("DEPENDENCY_CYCLE") as refusals:
        world.do(batch(*specs))

    [refusal] = refusals
    assert cycle in refusal.message
    assert refusal.metadata == {"cycle": cycle}


def test_a_long_cycle_is_named_in_short() -> None:
    world = World()
    specs = [spec(f"k{index}", f"k{(index + 1) % 2000}") for index in range(2000)]

    with world.refuses("DEPENDENCY_CYCLE") as refusals:
        world.do(batch(*specs))

    assert len(refusals[0].message) < 300
    assert "k0 → k1 →" in refusals[0].message


def test_ids_of_the_clients_choice_close_cycles_too() -> None:
    world = World()
    one = TaskSpec(agent_type="shell", task_id="task_one", dependencies=[TaskDependency(task_id="task_two")])
    two = TaskSpec(agent_type="shell", task_id="task_two", dependencies=[TaskDependency(task_id="task_one")])

    with world.refuses("DEPENDENCY_CYCLE") as refusals:
        world.do(batch(one, two))

    assert "task_one → task_two → task_one" in refusals[0].message


@pytest.mark.parametrize(
    ("specs", "path"),
    [
        ([spec("a"), spec("b", "a", "x")], "tasks[1].dependencies[1].client_key"),
        ([spec("a"), spec("a")], "tasks[1].client_key"),
        ([spec("a"), spec("b", "a", "a")], "tasks[1].dependencies[1]"),
        ([spec("a"), spec("b", "a", prompt="{deps.c.result}")], "tasks[1].prompt"),
    ],
)
def test_what_cannot_be_is_named_by_its_path(specs: list[TaskSpec], path: str) -> None:
    world = World()
    # A key that is there twice is only looked at where somebody depends on something.
    specs.append(spec("last", "a"))

    with world.refuses("REQUEST_INVALID") as refusals:
        world.do(batch(*specs))

    assert [field for field, _ in refusals[0].violations] == [path]


def test_a_task_that_does_not_exist_is_named_by_its_path() -> None:
    world = World()
    wanted = TaskSpec(agent_type="shell", dependencies=[TaskDependency(task_id="task_nobody")])

    with world.refuses("TASK_NOT_FOUND") as refusals:
        world.do(CreateTaskRequest(task=wanted))

    assert refusals[0].violations == (("task.dependencies[0].task_id", "no task has this id"),)
    assert refusals[0].metadata == {"task_id": "task_nobody"}


def test_names_are_unique_within_a_task() -> None:
    world = World()
    one, two = world.create(), world.create()
    twice = [TaskDependency(task_id=one, name="same"), TaskDependency(task_id=two, name="same")]

    with world.refuses("REQUEST_INVALID") as refusals:
        world.do(CreateTaskRequest(task=TaskSpec(agent_type="shell", dependencies=twice)))

    assert refusals[0].violations[0][0] == "task.dependencies[1].name"


def test_an_id_may_not_be_there_twice_in_a_batch_with_dependencies() -> None:
    world = World()
    twice = [TaskSpec(agent_type="shell", task_id="task_same", client_key=key) for key in "ab"]

    with world.refuses("ID_TAKEN"):
        world.do(batch(*twice, spec("c", "a")))


def test_a_request_has_a_cap_on_dependencies_in_all() -> None:
    world = World()
    keys = [f"k{index}" for index in range(500)]
    specs = [spec(key) for key in keys] + [spec(f"x{index}", *keys) for index in range(41)]

    with world.refuses("REQUEST_INVALID") as refusals:
        world.do(batch(*specs))

    assert "20500 dependencies" in refusals[0].message


def test_validate_only_tells_how_it_would_stand_and_leaves_no_trace() -> None:
    world = World()
    other = world.create()
    before = world.picture()
    wanted = TaskSpec(agent_type="shell", prompt="{deps.o.result}")
    wanted.dependencies.add(task_id=other, name="o")

    task = world.do(CreateTaskRequest(task=wanted, validate_only=True))

    assert (task.state, task.prompt, task.revision) == (TASK_STATE_PENDING, "{deps.o.result}", 0)
    assert task.prompt_pending
    assert world.picture() == before


# -- what is worked off ------------------------------------------------------------------------------


def random_graph(random: Random) -> list[list[Edge]]:
    """For each node what it waits for, all of lower number."""
    return [
        [
            (other, random.choice((1, 1, 2, 3)), random.choice((1, 2, 3)))
            for other in random.sample(range(node), random.randint(0, min(node, 4)))
        ]
        for node in range(random.randint(1, 14))
    ]


class Oracle:
    """What each node is: waiting, ready, running, succeeded, failed, cancelled or skipped."""

    def __init__(self, graph: list[list[Edge]]) -> None:
        self.graph = graph
        self.states = ["waiting"] * len(graph)
        self.begun: set[int] = set()
        self.settle()

    def settle(self) -> None:
        """Nodes are in order, so that one pass over them is enough."""
        for node, edges in enumerate(self.graph):
            if self.states[node] != "waiting":
                continue
            stands = [(self.stands(other, condition), action) for other, condition, action in edges]
            losing = {action for stand, action in stands if stand == "failed" and action != 3}
            if losing:
                # Both may happen in one batch; then either will do, see `agrees`.
                self.states[node] = "failed" if losing == {1} else "skipped" if losing == {2} else "lost"
            elif all(stand != "open" for stand, _ in stands):
                self.states[node] = "ready"

    def stands(self, other: int, condition: int) -> str:
        ended = self.states[other] not in ("waiting", "ready", "running")
        met = {1: self.states[other] == "succeeded", 2: ended, 3: other in self.begun}[condition]
        return "met" if met else "failed" if ended else "open"

    def agrees(self, node: int, task: Task) -> bool:
        word = TaskState.Name(task.state).removeprefix("TASK_STATE_")
        wanted = {"waiting": "PENDING", "ready": "QUEUED", "skipped": "CANCELLED"}.get(
            self.states[node], self.states[node].upper()
        )
        if self.states[node] == "lost":
            self.states[node] = "skipped" if task.skipped else "failed"
            return word in ("FAILED", "CANCELLED")
        return word == wanted and task.skipped == (self.states[node] == "skipped")


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_any_graph_is_worked_off_as_it_should_be(seed: int) -> None:
    random = Random(seed)
    graph = random_graph(random)
    world, oracle = World(), Oracle(graph)
    nodes = create_shuffled(world, graph, random)
    ids = {node: task_id for task_id, node in nodes.items()}
    agent_id = world.register(slots=64)

    while alive := [node for node, state in enumerate(oracle.states) if state in ("waiting", "ready", "running")]:
        running = [node for node in alive if oracle.states[node] == "running"]
        still = [node for node in alive if node not in running]
        choice = random.choice(["lease", "complete", "complete", "fail", "cancel"])
        if choice == "cancel" and still:
            node = random.choice(still)
            world.cancel(ids[node])
            oracle.states[node] = "cancelled"
        elif choice in ("complete", "fail") and running:
            node = random.choice(running)
            world.complete(ids[node]) if choice == "complete" else world.fail(ids[node], retryable=False)
            oracle.states[node] = "succeeded" if choice == "complete" else "failed"
        else:
            poll = world.poll(agent_id)
            world.state.polls.remove(poll)
            for lease in poll.taken:
                oracle.states[nodes[lease.task_id]] = "running"
                oracle.begun.add(nodes[lease.task_id])
        oracle.settle()

        assert all(oracle.agrees(node, world.task(ids[node])) for node in ids), oracle.states
        assert world.rows.edges == world.edges()
        assert not world.state.edges.stirred

    assert world.edges() == {}


def create_shuffled(world: World, graph: list[list[Edge]], random: Random) -> dict[str, int]:
    """Creates the graph in one request, in any order; the node of each task."""
    places = random.sample(range(len(graph)), len(graph))
    request = BatchCreateTasksRequest()
    for node in places:
        wanted = request.tasks.add(agent_type="shell", client_key=f"n{node}")
        for other, condition, action in graph[node]:
            wanted.dependencies.add(client_key=f"n{other}", condition=condition, on_failure=action)  # type: ignore[arg-type]
    return {task.task_id: node for node, task in zip(places, world.do(request), strict=True)}


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.integers(0, 8), st.sets(st.integers(0, 8), max_size=3), max_size=9))
def test_a_cycle_is_found_exactly_where_there_is_one(raw: dict[int, set[int]]) -> None:
    graph = {str(node): [str(other) for other in sorted(others) if other in raw] for node, others in raw.items()}

    cycle = find_cycle(graph)

    left = dict(graph)
    while removable := [node for node, others in left.items() if not set(others) & left.keys()]:
        for node in removable:
            del left[node]
    assert bool(cycle) == bool(left)
    for node, following in zip(cycle, [*cycle[1:], *cycle[:1]], strict=True):
        assert following in graph[node]
