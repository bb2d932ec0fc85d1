"""Concurrency keys: how many run, who is next, and what becomes of those that shall not wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.queue_pb2 import (
    CONCURRENCY_STRATEGY_CANCEL_IN_PROGRESS,
    CONCURRENCY_STRATEGY_CANCEL_NEWEST,
    CONCURRENCY_STRATEGY_SKIP,
    ConcurrencyLimit,
    ConcurrencyStrategy,
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
from kapell_server.domain.times import SECOND, stamp

from tests.domain.test_rollback import fail_commit
from tests.domain.world import World, rate

IN_PROGRESS = CONCURRENCY_STRATEGY_CANCEL_IN_PROGRESS
NEWEST = CONCURRENCY_STRATEGY_CANCEL_NEWEST
SKIP = CONCURRENCY_STRATEGY_SKIP


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
    world.limit("k", 1, strategy=IN_PROGRESS)
    world.running(concurrency_keys=["k"])
    add(world, "taken")

    with world.refuses("ID_TAKEN"):
        world.do(BatchCreateTasksRequest(tasks=[spec("new", "k"), spec("taken", "k")]))


# -- those that shall not wait -------------------------------------------------------------------


def limited(strategy: ConcurrencyStrategy.ValueType, most: int = 1) -> tuple[World, str]:
    world = World()
    world.limit("k", most, strategy=strategy)
    return world, world.register(slots=9)


def test_the_newest_replaces_what_runs() -> None:
    world, agent_id = limited(IN_PROGRESS)
    add(world, "a", "k")
    take(world, agent_id)

    add(world, "b", "k")

    assert states(world, "a", "b") == ["CANCELLING", "QUEUED"]
    assert "task_b" in world.task("task_a").state_reason
    assert take(world, agent_id) == []
    world.complete("task_a")
    assert states(world, "a") == ["CANCELLED"]
    assert take(world, agent_id) == ["b"]


def test_the_newest_replaces_what_waits() -> None:
    world, _ = limited(IN_PROGRESS)
    for name in "abc":
        add(world, name, "k")

    assert states(world, *"abc") == ["CANCELLED", "CANCELLED", "QUEUED"]
    assert not world.task("task_a").skipped


def test_no_more_are_replaced_than_need_be_and_the_oldest_go_first() -> None:
    world, agent_id = limited(IN_PROGRESS, 2)
    for name in "ab":
        add(world, name, "k")
    assert take(world, agent_id) == ["a", "b"]

    add(world, "c", "k")

    assert states(world, *"abc") == ["CANCELLING", "RUNNING", "QUEUED"]
    assert take(world, agent_id) == []


@pytest.mark.parametrize("strategy", [NEWEST, SKIP])
def test_the_newest_one_goes(strategy: ConcurrencyStrategy.ValueType) -> None:
    world, agent_id = limited(strategy)
    add(world, "a", "k")
    add(world, "b", "k")
    take(world, agent_id)
    add(world, "c", "k")

    assert states(world, *"abc") == ["RUNNING", "CANCELLED", "CANCELLED"]
    assert [world.task(f"task_{name}").skipped for name in "abc"] == [False, *[strategy == SKIP] * 2]
    assert "task_a" in world.task("task_c").state_reason


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(("strategy", "left"), [(NEWEST, "ab"), (SKIP, "ab"), (IN_PROGRESS, "cd")])
def test_of_several_that_come_at_once_the_same_ones_are_left_as_of_several_in_turn(
    strategy: ConcurrencyStrategy.ValueType, left: str, together: bool
) -> None:
    world, _ = limited(strategy, 2)
    specs = [spec(name, "k") for name in "abcd"]

    if together:
        world.do(BatchCreateTasksRequest(tasks=specs))
    else:
        world.do(*[CreateTaskRequest(task=one) for one in specs])

    assert [name for name in "abcd" if states(world, name) == ["QUEUED"]] == list(left)


def test_one_that_is_letting_go_does_not_count() -> None:
    world, agent_id = limited(SKIP)
    add(world, "a", "k")
    take(world, agent_id)
    world.cancel("task_a")

    add(world, "b", "k")

    assert states(world, "a", "b") == ["CANCELLING", "QUEUED"]


@pytest.mark.parametrize(("strategy", "expected"), [(SKIP, "CANCELLED"), (IN_PROGRESS, "QUEUED")])
def test_a_retry_counts_as_new(strategy: ConcurrencyStrategy.ValueType, expected: str) -> None:
    world, agent_id = limited(strategy)
    add(world, "a", "k")
    world.cancel("task_a")
    add(world, "b", "k")
    take(world, agent_id)

    world.retry("task_a")

    assert states(world, "a") == [expected]
    assert states(world, "b") == ["RUNNING" if strategy == SKIP else "CANCELLING"]
    assert world.task("task_a").skipped == (strategy == SKIP)


def test_a_task_that_waits_for_its_time_counts_once_the_time_has_come() -> None:
    world, agent_id = limited(SKIP)
    later = Timestamp()
    stamp(later, world.now_ns + 3 * SECOND)
    add(world, "later", "k", not_before_time=later)
    add(world, "a", "k")
    take(world, agent_id)
    assert states(world, "later", "a") == ["PENDING", "RUNNING"]

    world.advance(4)

    assert states(world, "later", "a") == ["CANCELLED", "RUNNING"]


def test_an_attempt_after_another_is_not_new() -> None:
    world, agent_id = limited(SKIP)
    add(world, "a", "k", retry_policy=RetryPolicy(initial_backoff=seconds(2)))
    take(world, agent_id)
    world.fail("task_a")
    add(world, "b", "k")
    world.advance(3)

    assert states(world, "a", "b") == ["QUEUED", "QUEUED"]


def test_each_key_has_its_own_say() -> None:
    world = World()
    world.limit("soft", 1)
    world.limit("hard", 1, strategy=SKIP)
    world.limit("new", 1, strategy=IN_PROGRESS)
    add(world, "a", "soft", "hard")
    add(world, "b", "soft")
    add(world, "c", "new")

    add(world, "d", "soft", "hard", "new")
    add(world, "e", "soft", "new")

    assert states(world, *"abcde") == ["QUEUED", "QUEUED", "CANCELLED", "CANCELLED", "QUEUED"]


def test_what_is_the_oldest_outlives_a_new_priority_and_a_failed_batch() -> None:
    world, agent_id = limited(IN_PROGRESS, 3)
    for name in "abc":
        add(world, name, "k")
    world.do(UpdateTaskRequest(task=Task(task_id="task_a", priority=9), update_mask=FieldMask(paths=["priority"])))
    fail_commit(world, LeaseTasksRequest(agent_id=agent_id, max_tasks=9))

    add(world, "d", "k")

    assert states(world, *"abcd") == ["CANCELLED", "QUEUED", "QUEUED", "QUEUED"]


def test_a_limit_of_none_lets_nobody_wait_who_shall_not() -> None:
    world, _ = limited(NEWEST, 0)

    add(world, "a", "k")

    assert states(world, "a") == ["CANCELLED"]
    assert "limit of 0" in world.task("task_a").state_reason
