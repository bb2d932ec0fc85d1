"""The classes of liveness: each is shown by its own time, has its own action, and ends when the agent goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.agent_pb2 import (
    AGENT_ACTIVITY_FINISHED_NOT_REPORTED,
    AGENT_ACTIVITY_IDLE,
    AGENT_ACTIVITY_NOT_POLLING,
    AGENT_ACTIVITY_RATE_LIMITED,
    AGENT_ACTIVITY_SILENT,
    AGENT_ACTIVITY_STALLED,
    AGENT_ACTIVITY_WAITING_FOR_APPROVAL,
    AGENT_ACTIVITY_WAITING_FOR_LOCK,
    AGENT_ACTIVITY_WORKING,
    DrainAgentRequest,
)
from kapell.v1.task_pb2 import (
    ATTEMPT_STATE_FAILED,
    ATTEMPT_STATE_LOST,
    ATTEMPT_WAIT_KIND_APPROVAL,
    ATTEMPT_WAIT_KIND_LOCK,
    ATTEMPT_WAIT_KIND_PROVIDER,
    TASK_STATE_CANCELLING,
    TASK_STATE_FAILED,
    TASK_STATE_PENDING,
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    TASK_STATE_SUCCEEDED,
    AttemptWait,
    AttemptWaitKind,
    TaskProgress,
    TaskTimeouts,
)
from kapell.v1.worker_pb2 import LEASE_DIRECTIVE_CANCEL, HeartbeatRequest, ReportProgressRequest
from kapell_server.domain.times import SECOND, stamp

from tests.domain.world import World

STALL = TaskTimeouts(stall_timeout=Duration(seconds=30))


def beat(world: World, agent_id: str, *task_ids: str, **says: Any) -> Any:
    """A heartbeat that says the same of each of these attempts."""
    request = HeartbeatRequest(agent_id=agent_id)
    for task_id in task_ids:
        request.leases.add(lease_token=world.token(task_id), **says)
    return world.do(request)


def live(world: World, agent_id: str, *task_ids: str, seconds: int, **says: Any) -> None:
    """Lets time pass while the agent sends heartbeats."""
    for _ in range(seconds // 3):
        world.advance(3)
        beat(world, agent_id, *task_ids, **says)


def progress(world: World, task_id: str, fraction: float) -> None:
    request = ReportProgressRequest(lease_token=world.token(task_id), progress=TaskProgress(fraction=fraction))
    world.do(request)


def holder(world: World, task_id: str) -> str:
    return world.state.leases.by_task[task_id].agent_id


def wait(kind: AttemptWaitKind.ValueType, detail: str = "") -> AttemptWait:
    return AttemptWait(kind=kind, detail=detail, until_time=Timestamp(seconds=7))


# -- stalled -------------------------------------------------------------------------------------


def test_an_agent_whose_attempts_have_no_news_is_shown_as_stalled_until_there_are_some() -> None:
    world = World()
    task_id = world.running()
    agent_id = holder(world, task_id)

    live(world, agent_id, task_id, seconds=597)
    assert world.agent(agent_id).activity == AGENT_ACTIVITY_WORKING
    live(world, agent_id, task_id, seconds=9)
    assert world.agent(agent_id).activity == AGENT_ACTIVITY_STALLED
    assert world.task(task_id).state == TASK_STATE_RUNNING, "shown only"
    progress(world, task_id, 0.5)

    assert world.agent(agent_id).activity == AGENT_ACTIVITY_WORKING


def test_new_progress_is_news_and_the_same_again_is_not() -> None:
    world = World()
    task_id = world.running(timeouts=STALL)
    agent_id = holder(world, task_id)

    for fraction in (0.1, 0.2, 0.3):
        live(world, agent_id, task_id, seconds=27)
        progress(world, task_id, fraction)
    for _ in range(10):
        live(world, agent_id, task_id, seconds=3, progress=TaskProgress(fraction=0.3))

    assert world.task(task_id).state == TASK_STATE_CANCELLING


def test_an_attempt_without_news_is_stopped_after_its_stall_timeout_and_failed() -> None:
    world = World()
    task_id = world.running(timeouts=STALL)
    agent_id = holder(world, task_id)

    live(world, agent_id, task_id, seconds=27)
    assert world.task(task_id).state == TASK_STATE_RUNNING
    live(world, agent_id, task_id, seconds=3)
    assert world.task(task_id).state == TASK_STATE_CANCELLING
    told = beat(world, agent_id, task_id)
    world.fail(task_id, reason="STOPPED")

    assert told.leases[0].directive == LEASE_DIRECTIVE_CANCEL
    assert world.task(task_id).state == TASK_STATE_PENDING
    record = world.attempt(task_id)
    assert (record.state, record.failure.reason) == (ATTEMPT_STATE_FAILED, "STALLED")


def test_a_short_stall_timeout_is_met_even_before_the_first_renewal() -> None:
    world = World()
    task_id = world.running(timeouts=TaskTimeouts(stall_timeout=Duration(seconds=2)))

    world.advance(2)

    assert world.task(task_id).state == TASK_STATE_CANCELLING


def test_a_result_that_comes_although_it_was_stalled_counts() -> None:
    world = World()
    task_id = world.running(timeouts=STALL)
    live(world, holder(world, task_id), task_id, seconds=30)

    world.complete(task_id, "at last")

    assert world.task(task_id).state == TASK_STATE_SUCCEEDED


# -- waiting -------------------------------------------------------------------------------------

WAITS = {
    "approval": (ATTEMPT_WAIT_KIND_APPROVAL, AGENT_ACTIVITY_WAITING_FOR_APPROVAL),
    "lock": (ATTEMPT_WAIT_KIND_LOCK, AGENT_ACTIVITY_WAITING_FOR_LOCK),
    "provider": (ATTEMPT_WAIT_KIND_PROVIDER, AGENT_ACTIVITY_RATE_LIMITED),
}


@pytest.mark.parametrize("kind", WAITS)
def test_what_an_attempt_waits_for_is_shown_of_task_and_agent_for_as_long_as_it_lasts(kind: str) -> None:
    world = World()
    task_id = world.running()
    agent_id = holder(world, task_id)
    what, shown = WAITS[kind]
    before = len(world.events)

    for _ in range(3):
        beat(world, agent_id, task_id, waiting=wait(what, "merge it?"))

    assert world.task(task_id).waiting == wait(what, "merge it?")
    assert world.agent(agent_id).activity == shown
    assert world.events[before:] == ["task.progress", "agent.status"], "the same again is no event"
    beat(world, agent_id, task_id)
    assert not world.task(task_id).HasField("waiting")
    assert world.agent(agent_id).activity == AGENT_ACTIVITY_WORKING


def test_waiting_does_not_count_as_stalled() -> None:
    world = World()
    task_id = world.running(timeouts=STALL)
    agent_id = holder(world, task_id)

    live(world, agent_id, task_id, seconds=900, waiting=wait(ATTEMPT_WAIT_KIND_APPROVAL))
    live(world, agent_id, task_id, seconds=27)
    assert world.task(task_id).state == TASK_STATE_RUNNING
    live(world, agent_id, task_id, seconds=6)

    assert world.task(task_id).state == TASK_STATE_CANCELLING


def test_an_agent_that_works_on_another_task_is_working() -> None:
    world = World()
    agent_id = world.register(slots=2)
    tasks = [world.create(), world.create()]
    world.poll(agent_id, max_tasks=2)
    beat(world, agent_id, *tasks)

    beat(world, agent_id, tasks[0], waiting=wait(ATTEMPT_WAIT_KIND_LOCK))
    assert world.agent(agent_id).activity == AGENT_ACTIVITY_WORKING
    beat(world, agent_id, tasks[1], waiting=wait(ATTEMPT_WAIT_KIND_APPROVAL))

    assert world.agent(agent_id).activity == AGENT_ACTIVITY_WAITING_FOR_APPROVAL


def test_the_wait_ends_with_the_attempt() -> None:
    world = World()
    task_id = world.running()
    beat(world, holder(world, task_id), task_id, waiting=wait(ATTEMPT_WAIT_KIND_LOCK))

    world.release(task_id)

    assert world.task(task_id).state == TASK_STATE_QUEUED
    assert not world.task(task_id).HasField("waiting")


# -- not polling ---------------------------------------------------------------------------------


def test_an_agent_that_lives_but_asks_for_nothing_is_shown_until_it_does() -> None:
    world = World()
    agent_id = world.register()

    live(world, agent_id, seconds=117)
    assert world.agent(agent_id).activity == AGENT_ACTIVITY_IDLE
    live(world, agent_id, seconds=9)
    assert world.agent(agent_id).activity == AGENT_ACTIVITY_NOT_POLLING
    before = len(world.events)
    live(world, agent_id, seconds=300)
    assert world.events[before:] == []
    world.poll(agent_id)
    assert world.agent(agent_id).activity == AGENT_ACTIVITY_IDLE
    live(world, agent_id, seconds=600)

    assert world.agent(agent_id).activity == AGENT_ACTIVITY_IDLE, "its poll lies here"


def busy(world: World) -> str:
    """An agent whose one slot is taken."""
    task_id = world.running()
    return holder(world, task_id)


def draining(world: World) -> str:
    agent_id = world.register()
    world.do(DrainAgentRequest(agent_id=agent_id))
    return agent_id


@pytest.mark.parametrize("make", [busy, draining])
def test_an_agent_that_need_not_ask_is_not_shown_so(make: Callable[[World], str]) -> None:
    world = World()
    agent_id = make(world)

    live(world, agent_id, *world.state.leases.by_agent.get(agent_id, {}), seconds=300)

    assert world.agent(agent_id).activity in (AGENT_ACTIVITY_WORKING, AGENT_ACTIVITY_IDLE)


# -- finished, not reported ----------------------------------------------------------------------


def test_an_attempt_whose_program_ended_without_an_outcome_is_lost_after_a_minute() -> None:
    world = World()
    task_id = world.running()
    agent_id = holder(world, task_id)

    beat(world, agent_id, task_id, program_ended=True)
    assert world.agent(agent_id).activity == AGENT_ACTIVITY_FINISHED_NOT_REPORTED
    live(world, agent_id, task_id, seconds=57, program_ended=True)
    assert world.task(task_id).state == TASK_STATE_RUNNING
    world.advance(3)

    record = world.attempt(task_id)
    assert (record.state, record.failure.reason) == (ATTEMPT_STATE_LOST, "NOT_REPORTED")
    assert world.task(task_id).state == TASK_STATE_QUEUED
    assert world.agent(agent_id).activity == AGENT_ACTIVITY_IDLE


def test_an_outcome_within_the_minute_counts() -> None:
    world = World()
    task_id = world.running()
    agent_id = holder(world, task_id)
    beat(world, agent_id, task_id, program_ended=True)
    live(world, agent_id, task_id, seconds=57, program_ended=True)

    world.complete(task_id, "done")
    world.advance(10)

    assert world.task(task_id).state == TASK_STATE_SUCCEEDED


# -- silent --------------------------------------------------------------------------------------


def test_an_agent_stays_silent_when_its_leases_change() -> None:
    world = World()
    agent_id = world.register(slots=2)
    tasks = [world.create(), world.create()]
    world.poll(agent_id, max_tasks=2)
    beat(world, agent_id, *tasks)
    world.advance(8)
    assert world.agent(agent_id).activity == AGENT_ACTIVITY_SILENT

    world.complete(tasks[0])

    assert (world.agent(agent_id).slots_used, world.agent(agent_id).activity) == (1, AGENT_ACTIVITY_SILENT)
    beat(world, agent_id, tasks[1])
    assert world.agent(agent_id).activity == AGENT_ACTIVITY_WORKING


WAIT = Duration(seconds=30)


def waits(world: World, kind: AttemptWaitKind.ValueType, field: str, seconds: int = 33) -> str:
    """A task whose attempt has said for so long that it waits."""
    task_id = world.running(timeouts=TaskTimeouts(**{field: WAIT}))  # type: ignore[arg-type]
    agent_id = world.task(task_id).lease.agent_id
    live(world, agent_id, task_id, seconds=seconds, waiting=AttemptWait(kind=kind))
    return task_id


@pytest.mark.parametrize(
    ("kind", "field", "reason", "after"),
    [
        (ATTEMPT_WAIT_KIND_APPROVAL, "approval_wait_timeout", "APPROVAL_WAIT_TIMEOUT", TASK_STATE_FAILED),
        (ATTEMPT_WAIT_KIND_LOCK, "lock_wait_timeout", "LOCK_WAIT_TIMEOUT", TASK_STATE_PENDING),
        (ATTEMPT_WAIT_KIND_PROVIDER, "provider_wait_timeout", "PROVIDER_WAIT_TIMEOUT", TASK_STATE_PENDING),
    ],
)
def test_each_wait_has_its_own_timeout_and_action(
    kind: AttemptWaitKind.ValueType, field: str, reason: str, after: int
) -> None:
    world = World()

    task_id = waits(world, kind, field)
    stopping = world.task(task_id)
    world.release(task_id)

    assert (stopping.state, stopping.failure.reason) == (TASK_STATE_CANCELLING, reason)
    assert world.task(task_id).state == after
    assert world.task(task_id).attempts_used == (0 if kind == ATTEMPT_WAIT_KIND_PROVIDER else 1)


@pytest.mark.parametrize("field", ["stall_timeout", "lock_wait_timeout", "provider_wait_timeout"])
def test_a_wait_does_not_end_by_the_timeout_of_another(field: str) -> None:
    world = World()

    task_id = waits(world, ATTEMPT_WAIT_KIND_APPROVAL, field, seconds=90)

    assert world.task(task_id).state == TASK_STATE_RUNNING


def test_a_wait_that_begins_anew_has_its_whole_time() -> None:
    world = World()
    task_id = waits(world, ATTEMPT_WAIT_KIND_LOCK, "lock_wait_timeout", seconds=27)
    agent_id = world.task(task_id).lease.agent_id
    live(world, agent_id, task_id, seconds=3)
    live(world, agent_id, task_id, seconds=27, waiting=AttemptWait(kind=ATTEMPT_WAIT_KIND_LOCK))

    assert world.task(task_id).state == TASK_STATE_RUNNING


def test_a_task_comes_back_when_its_provider_is_expected_to() -> None:
    world = World()
    task_id = world.running(timeouts=TaskTimeouts(provider_wait_timeout=WAIT))
    agent_id = world.task(task_id).lease.agent_id
    later = Timestamp()
    stamp(later, world.now_ns + 600 * SECOND)
    live(world, agent_id, task_id, seconds=33, waiting=AttemptWait(kind=ATTEMPT_WAIT_KIND_PROVIDER, until_time=later))

    world.fail(task_id)

    [wait] = world.task(task_id).waiting_on
    assert wait.until_time == later
    assert not world.task(task_id).HasField("waiting")
