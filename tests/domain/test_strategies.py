"""Concurrency keys whose tasks shall not wait: the newest or the oldest ones go, as the limit says."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.dependency_pb2 import DEPENDENCY_CONDITION_FINISHED, TaskDependency
from kapell.v1.queue_pb2 import (
    CONCURRENCY_STRATEGY_CANCEL_IN_PROGRESS,
    CONCURRENCY_STRATEGY_CANCEL_NEWEST,
    CONCURRENCY_STRATEGY_SKIP,
    ConcurrencyLimit,
    ConcurrencyStrategy,
    SetConcurrencyLimitRequest,
)
from kapell.v1.task_pb2 import (
    TASK_STATE_AWAITING_APPROVAL,
    BatchCreateTasksRequest,
    CancelTaskRequest,
    CreateTaskRequest,
    RetryPolicy,
    RetryTaskRequest,
    Task,
    TaskFailure,
    UpdateTaskRequest,
)
from kapell.v1.worker_pb2 import CreateChildTasksRequest, FailTaskRequest, LeaseTasksRequest, ProviderRateLimit
from kapell_server.domain.queueing import concurrency
from kapell_server.domain.times import SECOND, stamp

from tests.domain.asking import ALICE, ask_whole, decide
from tests.domain.test_concurrency import add, seconds, spec, states, take
from tests.domain.test_rollback import fail_commit
from tests.domain.world import World

IN_PROGRESS = CONCURRENCY_STRATEGY_CANCEL_IN_PROGRESS
NEWEST = CONCURRENCY_STRATEGY_CANCEL_NEWEST
SKIP = CONCURRENCY_STRATEGY_SKIP


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


def test_a_limit_set_later_in_the_batch_counts() -> None:
    world = World()
    skip = SetConcurrencyLimitRequest(limit=ConcurrencyLimit(key="k", strategy=SKIP))

    world.do(CreateTaskRequest(task=spec("a", "k")), CreateTaskRequest(task=spec("b", "k")), skip)

    assert states(world, "a", "b") == ["QUEUED", "CANCELLED"]


def test_one_cancelled_and_retried_in_the_batch_is_the_newest() -> None:
    world, _ = limited(IN_PROGRESS)
    a, b = [CreateTaskRequest(task=spec(name, "k")) for name in "ab"]

    world.do(a, CancelTaskRequest(task_id="task_a"), b, RetryTaskRequest(task_id="task_a"))

    assert states(world, "a", "b") == ["QUEUED", "CANCELLED"]


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


def test_a_retry_that_waits_for_another_task_counts_as_new() -> None:
    world, agent_id = limited(SKIP)
    first = add(world, "first")
    add(world, "a", "k", dependencies=[TaskDependency(task_id=first, condition=DEPENDENCY_CONDITION_FINISHED)])
    for name in ("first", "a"):
        assert take(world, agent_id) == [name]
        world.fail(f"task_{name}", retryable=False)
    world.retry(first)
    world.retry("task_a")
    add(world, "b", "k")
    assert take(world, agent_id) == ["first", "b"]
    assert states(world, "a") == ["PENDING"]

    world.complete(first)

    assert states(world, "a", "b") == ["CANCELLED", "RUNNING"]


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


@pytest.mark.parametrize(
    ("strategy", "expected"), [(SKIP, ["QUEUED", "CANCELLED"]), (IN_PROGRESS, ["CANCELLED", "QUEUED"])]
)
def test_a_task_between_two_attempts_is_there_and_not_new(
    strategy: ConcurrencyStrategy.ValueType, expected: list[str]
) -> None:
    world, agent_id = limited(strategy)
    add(world, "a", "k", retry_policy=RetryPolicy(initial_backoff=seconds(2)))
    take(world, agent_id)
    world.fail("task_a")
    assert states(world, "a") == ["PENDING"]

    add(world, "b", "k")
    world.advance(3)

    assert states(world, "a", "b") == expected


def test_one_that_comes_back_is_as_old_as_it_first_was() -> None:
    world, agent_id = limited(IN_PROGRESS, 2)
    add(world, "a", "k", retry_policy=RetryPolicy(initial_backoff=seconds(2)))
    take(world, agent_id)
    world.fail("task_a")
    add(world, "b", "k")
    world.advance(3)
    assert sorted(take(world, agent_id)) == ["a", "b"]
    world.fail("task_a")

    add(world, "c", "k")

    assert states(world, *"abc") == ["CANCELLED", "RUNNING", "QUEUED"]


def test_one_arrival_cancels_many_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrency, "_MOST_CANCELLED", 3)
    world = World()
    names = [f"n{number}" for number in range(8)]
    for name in names:
        add(world, name, "k")
    world.limit("k", 1, strategy=IN_PROGRESS)

    add(world, "last", "k")
    first = states(world, *names)
    due = world.state.next_due_ns()
    world.do()
    add(world, "newest", "k")
    world.do()

    assert first == ["CANCELLED"] * 3 + ["QUEUED"] * 5
    assert 0 < due <= world.now_ns
    assert states(world, *names, "last", "newest") == ["CANCELLED"] * 9 + ["QUEUED"]
    assert world.state.queues.unsettled == {}


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


def test_who_waits_for_a_provider_is_older_than_what_comes_meanwhile() -> None:
    world, agent_id = limited(IN_PROGRESS)
    add(world, "old", "k")
    assert take(world, agent_id) == ["old"]
    failure = TaskFailure(reason="LIMITED", message="later")
    limit = ProviderRateLimit(provider="p", reset_after=Duration(seconds=30))
    world.do(FailTaskRequest(lease_token=world.token("task_old"), failure=failure, rate_limited=limit))

    add(world, "new", "k")

    assert states(world, "old", "new") == ["CANCELLED", "QUEUED"]


@pytest.mark.parametrize(
    ("strategy", "expected"), [(SKIP, ["QUEUED", "CANCELLED"]), (IN_PROGRESS, ["CANCELLED", "QUEUED"])]
)
def test_a_task_that_is_parked_for_an_approval_is_there_and_not_new(
    strategy: ConcurrencyStrategy.ValueType, expected: list[str]
) -> None:
    world, agent_id = limited(strategy)
    add(world, "a", "k")
    take(world, agent_id)
    approval = ask_whole(world, "task_a", park=True).approval

    add(world, "b", "k")
    if world.task("task_a").state == TASK_STATE_AWAITING_APPROVAL:
        decide(world, approval, by=ALICE)

    assert states(world, "a", "b") == expected


def test_what_is_superseded_takes_its_children_along() -> None:
    world, agent_id = limited(IN_PROGRESS)
    add(world, "old", "k")
    assert take(world, agent_id) == ["old"]
    children = CreateChildTasksRequest(lease_token=world.token("task_old"), tasks=[spec("child", agent_type="x")])
    world.do(children)

    add(world, "new", "k")

    assert states(world, "old", "child", "new") == ["CANCELLING", "CANCELLED", "QUEUED"]
