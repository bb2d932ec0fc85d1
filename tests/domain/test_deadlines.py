"""Timeouts, back-off and waiting: what time does to a task, and when (T4)."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.task_pb2 import (
    TASK_STATE_CANCELLED,
    TASK_STATE_CANCELLING,
    TASK_STATE_FAILED,
    TASK_STATE_PENDING,
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    TASK_STATE_SUCCEEDED,
    WAIT_KIND_NOT_BEFORE,
    WAIT_KIND_RETRY_BACKOFF,
    RetryPolicy,
    TaskTimeouts,
)
from kapell.v1.worker_pb2 import HeartbeatRequest, LeaseBeat
from kapell_server.domain.tasks import retry
from kapell_server.domain.times import SECOND, duration_ns, set_duration, stamp, timestamp_ns

from tests.domain.world import START_NS, World


def within(**seconds: int) -> TaskTimeouts:
    """Timeouts by name: queue, run, total."""
    limits: dict[str, Any] = {f"{name}_timeout": Duration(seconds=value) for name, value in seconds.items()}
    return TaskTimeouts(**limits)


def at(seconds: float) -> Timestamp:
    """A time so many seconds after the start."""
    time = Timestamp()
    stamp(time, START_NS + int(seconds * SECOND))
    return time


def keep_alive(world: World, task_id: str, seconds: int) -> None:
    """Lets time pass while the agent sends its heartbeats."""
    for _ in range(seconds):
        world.advance(1)
        if task_id in world.state.leases.by_task:
            world.beat(world.task(task_id).lease.agent_id, task_id)


# -- waiting for a time --------------------------------------------------------------------------


def test_a_task_for_later_is_queued_when_its_time_has_come() -> None:
    world = World()
    task_id = world.create(not_before_time=at(60))
    task = world.task(task_id)
    assert (task.state, task.waiting_on[0].kind) == (TASK_STATE_PENDING, WAIT_KIND_NOT_BEFORE)
    assert task.waiting_on[0].until_time == task.not_before_time == at(60)
    assert not task.HasField("queue_time")

    world.advance(59.999)
    assert world.task(task_id).state == TASK_STATE_PENDING
    world.advance(0.001)

    assert world.task(task_id).state == TASK_STATE_QUEUED
    assert timestamp_ns(world.task(task_id).queue_time) >= START_NS + 60 * SECOND
    assert world.events == ["task.created", "task.queued"]


@pytest.mark.parametrize("seconds", [-60, 0])
def test_a_time_that_has_passed_is_no_reason_to_wait(seconds: int) -> None:
    world = World()

    assert world.task(world.create(not_before_time=at(seconds))).state == TASK_STATE_QUEUED


def test_a_waiting_task_is_not_given_away() -> None:
    world = World()
    agent_id = world.register()
    world.create(not_before_time=at(60))

    assert world.poll(agent_id).taken == []


# -- back-off ------------------------------------------------------------------------------------


def pauses(policy: RetryPolicy, attempts: int) -> list[float]:
    return [retry.backoff_ns(policy, used, Random(1)) / SECOND for used in range(1, attempts + 1)]


def policy(**fields: Any) -> RetryPolicy:
    """A policy with the defaults filled in."""
    return retry.with_defaults(RetryPolicy(**fields))


def test_what_was_asked_for_is_kept() -> None:
    asked = RetryPolicy(
        max_attempts=1, initial_backoff=Duration(), max_backoff=Duration(), backoff_multiplier=1, jitter=0
    )

    assert retry.with_defaults(asked) == asked


def test_a_pause_after_very_many_attempts_is_still_a_number() -> None:
    assert pauses(policy(jitter=0, backoff_multiplier=10), 100)[-1] == 300


def test_a_failed_attempt_is_tried_again_after_its_pause() -> None:
    world = World()
    task_id = world.running(retry_policy=policy(jitter=0, initial_backoff=Duration(seconds=5)))

    world.fail(task_id)

    task = world.task(task_id)
    assert (task.state, task.state_reason) == (TASK_STATE_PENDING, "it broke")
    assert (task.waiting_on[0].kind, task.waiting_on[0].until_time) == (WAIT_KIND_RETRY_BACKOFF, at(5))
    world.advance(4.9)
    assert world.task(task_id).state == TASK_STATE_PENDING
    world.advance(0.1)
    assert world.task(task_id).state == TASK_STATE_QUEUED
    assert list(world.task(task_id).waiting_on) == []


def test_a_retry_by_hand_gives_a_fresh_allowance_at_once() -> None:
    world = World()
    task_id = world.running(retry_policy=policy(max_attempts=2, initial_backoff=Duration()))
    agent_id = world.task(task_id).lease.agent_id
    world.fail(task_id)
    world.lease(agent_id)
    assert world.fail(task_id).state == TASK_STATE_FAILED

    world.retry(task_id)

    task = world.task(task_id)
    assert (task.state, task.attempts_used, task.attempt) == (TASK_STATE_QUEUED, 0, 2)
    assert not task.HasField("failure")
    assert not task.HasField("end_time")
    assert world.lease(agent_id) == task_id
    assert world.fail(task_id).state == TASK_STATE_QUEUED


# -- timeouts ------------------------------------------------------------------------------------


def test_a_task_that_no_agent_takes_in_time_fails() -> None:
    world = World()
    task_id = world.create(timeouts=within(queue=30))

    world.advance(29)
    assert world.task(task_id).state == TASK_STATE_QUEUED
    world.advance(2)

    task = world.task(task_id)
    assert (task.state, task.failure.reason, task.failure.retryable) == (TASK_STATE_FAILED, "QUEUE_TIMEOUT", False)
    assert world.poll(world.register()).taken == []


def test_the_queue_timeout_counts_from_becoming_runnable() -> None:
    world = World()
    task_id = world.create(timeouts=within(queue=30), not_before_time=at(100))

    world.advance(100)
    world.advance(29)

    assert world.task(task_id).state == TASK_STATE_QUEUED


def test_an_attempt_that_takes_too_long_is_stopped_and_tried_again() -> None:
    world = World()
    task_id = world.running(timeouts=within(run=20), retry_policy=policy(max_attempts=2, jitter=0))
    agent_id = world.task(task_id).lease.agent_id

    keep_alive(world, task_id, 21)

    task = world.task(task_id)
    assert (task.state, task.failure.reason) == (TASK_STATE_CANCELLING, "RUN_TIMEOUT")
    assert world.beat(agent_id, task_id).leases[0].directive == 2, "CANCEL"
    assert world.fail(task_id, reason="SIGNAL").state == TASK_STATE_PENDING
    assert world.task(task_id).failure.reason == world.attempt(task_id).failure.reason == "RUN_TIMEOUT"


def test_the_last_attempt_that_takes_too_long_fails_the_task() -> None:
    world = World()
    task_id = world.running(timeouts=within(run=20), retry_policy=policy(max_attempts=1))

    keep_alive(world, task_id, 21)
    world.fail(task_id)

    assert (world.task(task_id).state, world.task(task_id).failure.reason) == (TASK_STATE_FAILED, "RUN_TIMEOUT")


def test_a_result_that_comes_after_the_timeout_counts() -> None:
    world = World()
    task_id = world.running(timeouts=within(run=20))
    keep_alive(world, task_id, 21)

    assert world.complete(task_id, "just in time").state == TASK_STATE_SUCCEEDED


def test_a_cancel_while_a_timeout_stops_the_attempt_ends_it_for_good() -> None:
    world = World()
    task_id = world.running(timeouts=within(run=20))
    keep_alive(world, task_id, 21)

    world.cancel(task_id)

    assert not world.task(task_id).HasField("failure")
    assert world.fail(task_id).state == TASK_STATE_CANCELLED


@pytest.mark.parametrize("state", ["PENDING", "QUEUED"])
def test_a_waiting_task_that_is_not_done_in_time_fails(state: str) -> None:
    world = World()
    times: dict[str, Any] = {"not_before_time": at(500)} if state == "PENDING" else {}
    task_id = world.create(timeouts=within(total=60), **times)

    world.advance(61)

    assert (world.task(task_id).state, world.task(task_id).failure.reason) == (TASK_STATE_FAILED, "TOTAL_TIMEOUT")
    assert list(world.task(task_id).waiting_on) == []


def test_a_running_task_that_is_not_done_in_time_is_stopped_and_not_tried_again() -> None:
    world = World()
    task_id = world.running(timeouts=within(total=30), retry_policy=policy(max_attempts=100))

    keep_alive(world, task_id, 31)
    assert world.task(task_id).state == TASK_STATE_CANCELLING
    world.fail(task_id)

    assert (world.task(task_id).state, world.task(task_id).failure.reason) == (TASK_STATE_FAILED, "TOTAL_TIMEOUT")


def test_the_total_timeout_counts_over_attempts_and_pauses() -> None:
    world = World()
    slow = policy(jitter=0, initial_backoff=Duration(seconds=40))
    task_id = world.running(timeouts=within(total=60), retry_policy=slow)
    keep_alive(world, task_id, 30)
    world.fail(task_id)

    world.advance(31)

    assert (world.task(task_id).state, world.task(task_id).failure.reason) == (TASK_STATE_FAILED, "TOTAL_TIMEOUT")


def test_a_retry_by_hand_begins_the_total_timeout_anew() -> None:
    world = World()
    task_id = world.create(timeouts=within(total=60))
    world.advance(61)
    world.retry(task_id)

    world.advance(59)
    assert world.task(task_id).state == TASK_STATE_QUEUED
    world.advance(2)

    assert world.task(task_id).state == TASK_STATE_FAILED


def test_no_timeout_means_no_deadline() -> None:
    world = World()
    task_id = world.create()

    world.advance(30 * 86_400)

    assert world.task(task_id).state == TASK_STATE_QUEUED
    assert world.state.next_due_ns() == 0


# -- cancelling ----------------------------------------------------------------------------------


def test_an_agent_that_does_not_let_go_loses_the_task_after_the_grace() -> None:
    world = World()
    task_id = world.running()
    world.cancel(task_id)

    keep_alive(world, task_id, 89)
    assert world.task(task_id).state == TASK_STATE_CANCELLING
    keep_alive(world, task_id, 2)

    assert world.task(task_id).state == TASK_STATE_CANCELLED
    agent_id = world.attempt(task_id).agent_id
    answer = world.do(HeartbeatRequest(agent_id=agent_id, leases=[LeaseBeat(lease_token=world.token(task_id))]))
    assert answer.leases[0].directive == 3, "LOST"


def test_an_agent_that_does_not_stop_after_a_timeout_loses_the_attempt_after_the_grace() -> None:
    world = World(cancel_grace=20)
    task_id = world.running(timeouts=within(run=5), retry_policy=policy(max_attempts=2))

    keep_alive(world, task_id, 30)

    assert world.task(task_id).state == TASK_STATE_QUEUED
    assert world.task(task_id).failure.reason == "RUN_TIMEOUT"


def test_a_silent_agent_of_a_cancelled_task_is_not_waited_for() -> None:
    world = World()
    task_id = world.running()
    world.cancel(task_id)

    world.advance(10)

    assert world.task(task_id).state == TASK_STATE_CANCELLED


def test_cancelling_twice_keeps_the_first_reason() -> None:
    world = World()
    task_id = world.create()
    world.cancel(task_id, "first")

    world.cancel(task_id, "second")

    assert world.task(task_id).state_reason == "first"


# -- arithmetic ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ns", [0, 1, 999_999_999, SECOND, 1_800_000_000_123_456_789])
def test_times_survive_the_message(ns: int) -> None:
    time, length = Timestamp(), Duration()

    stamp(time, ns)
    set_duration(length, ns)

    assert (timestamp_ns(time), duration_ns(length)) == (ns, ns)


def test_unset_times_are_zero() -> None:
    assert (timestamp_ns(Timestamp()), duration_ns(Duration())) == (0, 0)


def test_a_leased_task_that_runs_is_left_alone() -> None:
    world = World()
    task_id = world.running()

    keep_alive(world, task_id, 100)

    assert world.task(task_id).state == TASK_STATE_RUNNING
