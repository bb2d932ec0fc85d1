"""A provider's rate limit sends a task back without a loss; and what an agent's hint does to a back-off."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from kapell.v1.task_pb2 import (
    ATTEMPT_STATE_RELEASED,
    TASK_STATE_CANCELLED,
    TASK_STATE_FAILED,
    TASK_STATE_PENDING,
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    WAIT_KIND_PROVIDER_RATE_LIMIT,
    ExplainTaskRequest,
    RetryPolicy,
    TaskFailure,
    TaskTimeouts,
)
from kapell.v1.worker_pb2 import FailTaskRequest, ProviderRateLimit
from kapell_server.domain.queueing.explain import explain
from kapell_server.domain.times import SECOND, timestamp_ns

from tests.domain.world import World


def limited(world: World, task_id: str, seconds: int = 60) -> Any:
    failure = TaskFailure(reason="RATE_LIMITED", message="429", retryable=False)
    limit = ProviderRateLimit(provider="anthropic", reset_after=Duration(seconds=seconds))
    return world.do(FailTaskRequest(lease_token=world.token(task_id), failure=failure, rate_limited=limit))


def test_the_task_waits_for_the_reset_and_loses_no_attempt() -> None:
    world = World()
    task_id = world.running(retry_policy=RetryPolicy(max_attempts=1))

    answer = limited(world, task_id)

    task, record = world.task(task_id), world.attempt(task_id)
    [wait] = task.waiting_on
    assert (answer.state, task.state, task.attempts_used) == (TASK_STATE_PENDING, TASK_STATE_PENDING, 0)
    assert (wait.kind, wait.provider) == (WAIT_KIND_PROVIDER_RATE_LIMIT, "anthropic")
    assert timestamp_ns(wait.until_time) == world.now_ns + 60 * SECOND
    assert (record.state, record.failure.reason) == (ATTEMPT_STATE_RELEASED, "RATE_LIMITED")
    assert "anthropic" in task.state_reason
    [blocker] = explain(world.state, ExplainTaskRequest(task_id=task_id)).blockers
    assert (blocker.kind, list(blocker.blocked_by)) == (WAIT_KIND_PROVIDER_RATE_LIMIT, ["anthropic"])
    assert blocker.until_time == wait.until_time
    world.advance(59)
    assert world.task(task_id).state == TASK_STATE_PENDING
    world.advance(1)
    assert world.task(task_id).state == TASK_STATE_QUEUED


def test_it_is_counted_and_may_happen_any_number_of_times() -> None:
    world = World()
    task_id = world.running(retry_policy=RetryPolicy(max_attempts=1))
    agent_id = world.task(task_id).lease.agent_id
    for _ in range(5):
        limited(world, task_id, seconds=1)
        world.advance(1)
        assert world.lease(agent_id) == task_id
        world.beat(agent_id, task_id)

    world.complete(task_id)

    task = world.task(task_id)
    assert (task.rate_limited_count, task.attempt, task.attempts_used) == (5, 6, 1)
    assert not task.HasField("failure")


def test_the_total_timeout_bounds_it() -> None:
    world = World()
    task_id = world.running(timeouts=TaskTimeouts(total_timeout=Duration(seconds=30)))

    limited(world, task_id, seconds=3600)
    world.advance(30.5)

    assert (world.task(task_id).state, world.task(task_id).failure.reason) == (TASK_STATE_FAILED, "TOTAL_TIMEOUT")


def test_a_cancel_that_came_first_wins() -> None:
    world = World()
    task_id = world.running()
    world.cancel(task_id)

    limited(world, task_id)

    assert world.task(task_id).state == TASK_STATE_CANCELLED


def test_a_run_timeout_that_came_first_costs_its_attempt() -> None:
    world = World()
    timeouts = TaskTimeouts(run_timeout=Duration(seconds=5))
    task_id = world.running(timeouts=timeouts, retry_policy=RetryPolicy(max_attempts=1))
    world.advance(5.5)

    limited(world, task_id)

    assert (world.task(task_id).state, world.task(task_id).failure.reason) == (TASK_STATE_FAILED, "RUN_TIMEOUT")


def test_a_repeat_is_answered_like_the_first_time() -> None:
    world = World()
    task_id = world.running()
    first = limited(world, task_id)

    assert limited(world, task_id) == first
    assert world.task(task_id).rate_limited_count == 1


def test_others_are_not_kept_from_the_slot() -> None:
    world = World()
    task_id = world.running()
    agent_id = world.task(task_id).lease.agent_id
    agent_type = world.task(task_id).agent_type
    other = world.create(agent_type)

    limited(world, task_id)

    assert world.lease(agent_id) == other
    assert world.task(other).state == TASK_STATE_RUNNING


@pytest.mark.parametrize(("hint", "least", "most"), [(0, 50, 100), (70, 70, 100), (500, 500, 500)])
def test_the_pause_is_the_longer_of_hint_and_back_off(hint: int, least: int, most: int) -> None:
    """Neither jitter, which takes up to a half here, nor max_backoff shortens what the agent asked for."""
    world = World()
    policy = RetryPolicy(
        initial_backoff=Duration(seconds=100), max_backoff=Duration(seconds=100), jitter=0.5, max_attempts=100
    )
    task_id = world.running(retry_policy=policy)
    agent_id = world.task(task_id).lease.agent_id
    pauses = []
    for _ in range(20):
        failure = TaskFailure(reason="BUSY")
        token = world.token(task_id)
        world.do(FailTaskRequest(lease_token=token, failure=failure, retry_delay=Duration(seconds=hint)))
        pauses.append((timestamp_ns(world.task(task_id).waiting_on[0].until_time) - world.now_ns) / SECOND)
        world.advance(500)
        assert world.lease(agent_id) == task_id
        world.beat(agent_id, task_id)

    assert least <= min(pauses)
    assert max(pauses) <= most
