"""Concurrency keys: how many run, and who is next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from kapell.v1.queue_pb2 import (
    CONCURRENCY_STRATEGY_CANCEL_IN_PROGRESS,
    ConcurrencyLimit,
    DeleteConcurrencyLimitRequest,
    SetConcurrencyLimitRequest,
)
from kapell.v1.task_pb2 import (
    BatchCreateTasksRequest,
    CreateTaskRequest,
    RetryPolicy,
    Task,
    TaskSpec,
    TaskState,
    TaskTimeouts,
    UpdateTaskRequest,
)
from kapell.v1.worker_pb2 import DeregisterRequest, LeaseTasksRequest

from tests.domain.test_rollback import fail_commit
from tests.domain.world import World, rate


def spec(name: str, *keys: str, agent_type: str = "shell", **rest: Any) -> TaskSpec:
    return TaskSpec(task_id=f"task_{name}", agent_type=agent_type, concurrency_keys=keys, **rest)


def add(world: World, name: str, *keys: str, **rest: Any) -> str:
    """A task under concurrency keys."""
    world.now_ns += 1000
    world.do(CreateTaskRequest(task=spec(name, *keys, **rest)))
    return f"task_{name}"


def take(world: World, agent_id: str, most: int = 9) -> list[str]:
    """The names of the tasks that the agent is given now; it has spoken of each, and waits for no more."""
    poll = world.poll(agent_id, max_tasks=most)
    world.state.polls.remove(poll)
    names = [lease.task_id.removeprefix("task_") for lease in poll.taken]
    world.beat(agent_id, *[f"task_{name}" for name in names])
    return names


def states(world: World, *names: str) -> list[str]:
    return [TaskState.Name(world.task(f"task_{name}").state)[11:] for name in names]


# -- how many run --------------------------------------------------------------------------------


def test_a_key_without_a_limit_lets_one_run() -> None:
    world = World()
    for name in "abc":
        add(world, name, "k")

    agent_id = world.register(slots=9)

    assert take(world, agent_id) == ["a"]
    world.complete("task_a")
    assert take(world, agent_id) == ["b"]


def test_a_task_runs_when_all_its_keys_let_it() -> None:
    world = World()
    agent_id = world.register(slots=9)
    for name, keys in (("a", "x"), ("b", "y"), ("c", "xy"), ("d", "z")):
        add(world, name, *keys)

    assert take(world, agent_id) == ["a", "b", "d"]
    world.complete("task_a")
    assert take(world, agent_id) == []
    world.complete("task_b")
    assert take(world, agent_id) == ["c"]


ENDS: dict[str, Callable[[World, str], Any]] = {
    "completes": lambda world, task_id: world.complete(task_id),
    "fails": lambda world, task_id: world.fail(task_id, retryable=False),
    "fails and is tried again": lambda world, task_id: world.fail(task_id),
    "is cancelled": lambda world, task_id: (world.cancel(task_id), world.complete(task_id)),
    "is handed back": lambda world, task_id: world.release(task_id),
    "times out": lambda world, task_id: (world.advance(5), world.fail(task_id)),
    "loses its agent": lambda world, task_id: world.do(DeregisterRequest(agent_id=world.task(task_id).lease.agent_id)),
    "falls silent": lambda world, task_id: world.advance(11),
}


@pytest.mark.parametrize("how", ENDS)
def test_the_next_one_runs_when_one(how: str) -> None:
    world = World()
    patience = RetryPolicy(initial_backoff=Duration(seconds=30))
    first = world.running(concurrency_keys=["k"], retry_policy=patience, timeouts=TaskTimeouts(run_timeout=seconds(5)))
    add(world, "next", "k")
    agent_id = world.register()
    waiting = world.poll(agent_id)
    assert waiting.taken == []

    ENDS[how](world, first)

    world.beat(agent_id)
    assert [lease.task_id for lease in waiting.taken] == ["task_next"]


def seconds(count: int) -> Duration:
    return Duration(seconds=count)


def cancel_waiting(world: World) -> None:
    world.cancel("task_b")


def time_out_waiting(world: World) -> None:
    world.advance(5)


@pytest.mark.parametrize("end", [cancel_waiting, time_out_waiting])
def test_a_woken_task_that_ends_before_it_runs_lets_the_next_one_try(end: Callable[[World], None]) -> None:
    world = World()
    agent_id = world.register()
    add(world, "a", "k")
    add(world, "b", "k", timeouts=TaskTimeouts(queue_timeout=seconds(5)))
    add(world, "c", "k")
    assert take(world, agent_id) == ["a"]
    world.complete("task_a")

    end(world)

    assert take(world, agent_id) == ["c"]


def test_a_woken_task_that_its_other_key_holds_lets_the_next_one_try() -> None:
    world = World()
    agent_id = world.register(slots=9)
    for name, keys in (("a", "x"), ("y", "y"), ("both", "xy"), ("c", "x")):
        add(world, name, *keys)
    assert take(world, agent_id) == ["a", "y"]
    waiting = world.poll(agent_id, max_tasks=9)

    world.complete("task_a")

    assert [lease.task_id for lease in waiting.taken] == ["task_c"]


def test_a_task_that_moves_from_one_key_to_the_other_is_woken_by_both() -> None:
    world = World()
    agent_id = world.register(slots=9)
    for name, keys in (("x", "x"), ("y", "y"), ("both", "xy")):
        add(world, name, *keys)
    assert take(world, agent_id) == ["x", "y"]
    world.complete("task_x")
    add(world, "x2", "x")
    assert take(world, agent_id) == ["x2"]

    world.complete("task_y")
    assert take(world, agent_id) == []
    world.complete("task_x2")
    assert take(world, agent_id) == ["both"]


def test_a_key_holds_across_types_and_wakes_each() -> None:
    world = World()
    red, blue = world.register("red"), world.register("blue")
    add(world, "r", "k", agent_type="red")
    add(world, "b", "k", agent_type="blue")
    assert (take(world, red), take(world, blue)) == (["r"], [])
    waiting = world.poll(blue)

    world.complete("task_r")

    assert [lease.task_id for lease in waiting.taken] == ["task_b"]


def test_one_type_that_cannot_run_does_not_keep_another_waiting() -> None:
    world = World()
    red = world.register("red")
    add(world, "holder", "k", agent_type="red")
    add(world, "nobody", "k", agent_type="nobody-serves-this")
    add(world, "r", "k", agent_type="red")
    assert take(world, red) == ["holder"]

    world.complete("task_holder")

    assert take(world, red) == ["r"]


def test_a_parked_task_keeps_its_place_by_priority() -> None:
    world = World()
    agent_id = world.register()
    for name, priority in (("a", 500), ("low", 1), ("high", 900), ("mid", 500)):
        add(world, name, "k", priority=priority)
    add(world, "first", "k", priority=1000)

    order = []
    for _ in range(5):
        order += take(world, agent_id)
        world.complete(f"task_{order[-1]}")

    assert order == ["first", "high", "a", "mid", "low"]


def test_a_parked_task_with_a_new_priority_is_still_held_back() -> None:
    world = World()
    agent_id = world.register(slots=9)
    for name in "abc":
        add(world, name, "k")
    assert take(world, agent_id) == ["a"]

    world.do(
        UpdateTaskRequest(task=Task(task_id="task_c", priority=900), update_mask=FieldMask(paths=["priority"])),
    )

    assert take(world, agent_id) == []
    world.complete("task_a")
    assert take(world, agent_id) == ["c"]


# -- limits --------------------------------------------------------------------------------------


def test_a_limit_lets_as_many_run_as_it_says() -> None:
    world = World()
    agent_id = world.register(slots=9)
    world.limit("k", 2)
    for name in "abcd":
        add(world, name, "k")

    assert take(world, agent_id) == ["a", "b"]


def test_a_raised_limit_lets_waiting_tasks_run_at_once() -> None:
    world = World()
    agent_id = world.register(slots=9)
    for name in "abcd":
        add(world, name, "k")
    assert take(world, agent_id) == ["a"]
    waiting = world.poll(agent_id, max_tasks=9)

    world.limit("k", 3)

    assert [lease.task_id for lease in waiting.taken] == ["task_b", "task_c"]


def test_a_lowered_limit_stops_nobody_and_lets_nobody_start() -> None:
    world = World()
    agent_id = world.register(slots=9)
    world.limit("k", 3)
    for name in "abcd":
        add(world, name, "k")
    assert take(world, agent_id) == ["a", "b", "c"]

    world.limit("k", 1)

    assert states(world, *"abc") == ["RUNNING"] * 3
    for name in "ab":
        world.complete(f"task_{name}")
        assert take(world, agent_id) == []
    world.complete("task_c")
    assert take(world, agent_id) == ["d"]


def test_a_limit_of_none_stops_them_all_until_it_is_gone() -> None:
    world = World()
    agent_id = world.register(slots=9)
    world.limit("k", 0)
    for name in "ab":
        add(world, name, "k")
    assert take(world, agent_id) == []
    waiting = world.poll(agent_id, max_tasks=9)

    world.do(DeleteConcurrencyLimitRequest(key="k"))

    assert [lease.task_id for lease in waiting.taken] == ["task_a"]


def test_a_limit_that_is_not_there_cannot_be_deleted() -> None:
    world = World()
    world.limit("other", 2)

    with world.refuses("LIMIT_NOT_FOUND"):
        world.do(DeleteConcurrencyLimitRequest(key="k"))


def test_a_limit_read_before_it_changed_is_not_overwritten() -> None:
    world = World()
    old = world.limit("k", 2).etag
    world.limit("k", 3)

    for etag in (old, "made-up"):
        with world.refuses("ETAG_MISMATCH"):
            world.do(SetConcurrencyLimitRequest(limit=ConcurrencyLimit(key="k", max_running=9), etag=etag))


def test_a_failed_batch_that_starts_wakes_and_changes_limits_leaves_no_trace() -> None:
    world = World()
    agent_id = world.register(slots=9)
    world.limit("k", 2, start_rate=rate(5, 60))
    for name in "abcdef":
        add(world, name, "k", "every")
    assert take(world, agent_id) == ["a"]
    before = world.picture()

    for _ in range(2):
        fail_commit(
            world,
            SetConcurrencyLimitRequest(limit=ConcurrencyLimit(key="every", max_running=4)),
            CreateTaskRequest(task=spec("g", "k")),
            LeaseTasksRequest(agent_id=agent_id, max_tasks=9),
        )

    assert world.picture() == before


def test_a_batch_of_creations_that_is_refused_leaves_no_trace_under_its_keys() -> None:
    world = World()
    world.limit("k", 1, strategy=CONCURRENCY_STRATEGY_CANCEL_IN_PROGRESS)
    world.running(concurrency_keys=["k"])
    add(world, "taken")

    with world.refuses("ID_TAKEN"):
        world.do(BatchCreateTasksRequest(tasks=[spec("new", "k"), spec("taken", "k")]))


def test_a_flood_under_one_key_is_parked_bit_by_bit_and_then_passed_by() -> None:
    world = World()
    for first in (0, 2_250):
        world.do(BatchCreateTasksRequest(tasks=[spec(f"{first + number}", "k") for number in range(2_250)]))
    add(world, "free")
    agent_id = world.register(slots=2)

    poll = world.poll(agent_id, max_tasks=1)
    waiting = world.poll(agent_id, max_tasks=1)
    parked = [world.state.queues.ready.blocked("shell")]
    while not waiting.taken:
        world.advance(0.001)
        parked.append(world.state.queues.ready.blocked("shell"))

    assert [lease.task_id for lease in (*poll.taken, *waiting.taken)] == ["task_0", "task_free"]
    assert parked == [2_000, 4_000, 4_499]
