"""What becomes of each time of a schedule: overlap, being late, jitter."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st
from kapell.v1.schedule_pb2 import (
    OVERLAP_POLICY_ALLOW,
    OVERLAP_POLICY_CANCEL,
    OVERLAP_POLICY_QUEUE,
    OVERLAP_POLICY_SKIP,
    SCHEDULE_OUTCOME_MISSED,
    SCHEDULE_OUTCOME_QUEUED,
    SCHEDULE_OUTCOME_SKIPPED,
    SCHEDULE_OUTCOME_TASK_CREATED,
    DeleteScheduleRequest,
    OverlapPolicy,
    PauseScheduleRequest,
    ResumeScheduleRequest,
    Schedule,
    ScheduleSpec,
    UpdateScheduleRequest,
)
from kapell.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_QUEUED
from kapell_server.domain.times import SECOND, timestamp_ns

from tests.domain.scheduling import HOUR, NONE, counts, get, make, names, seconds, tasks
from tests.domain.world import World


@pytest.fixture
def world() -> World:
    return World()


# -- overlap ---------------------------------------------------------------------------------------


def test_skip_waits_for_the_next_time_while_the_last_task_lives(world: World) -> None:
    make(world)
    world.advance(60)

    world.advance(60)
    skipped = get(world).last_run
    world.cancel(tasks(world)[0].task_id)
    world.advance(60)

    assert (skipped.outcome, skipped.task_id) == (SCHEDULE_OUTCOME_SKIPPED, tasks(world)[0].task_id)
    assert [seconds(task.schedule_time) for task in tasks(world)] == [60, 180]
    assert counts(world) == {"run": 2, "skipped": 1}


def test_a_queued_run_starts_when_the_last_one_ends_and_is_only_one(world: World) -> None:
    make(world, overlap_policy=OVERLAP_POLICY_QUEUE)
    world.advance(60)

    for _ in range(3):
        world.advance(60)
    waiting = get(world)
    world.cancel(tasks(world)[0].task_id)
    world.advance(1)

    assert (waiting.last_run.outcome, seconds(waiting.queued_schedule_time)) == (SCHEDULE_OUTCOME_QUEUED, 240)
    assert [seconds(task.schedule_time) for task in tasks(world)] == [60, 240]
    assert counts(world) == {"run": 2, "coalesced": 2}
    assert not get(world).HasField("queued_schedule_time")


def test_cancel_ends_the_last_task_and_runs(world: World) -> None:
    make(world, overlap_policy=OVERLAP_POLICY_CANCEL)
    world.advance(60)

    world.advance(60)

    first, second = tasks(world)
    assert (first.state, second.state) == (TASK_STATE_CANCELLED, TASK_STATE_QUEUED)
    assert "next run of schedule_a" in first.state_reason


def failed_with_a_child(world: World) -> tuple[str, str]:
    """The first run's task, which has failed, and its child, which waits for an agent."""
    world.advance(60)
    top = tasks(world)[0].task_id
    agent_id = world.register("shell")
    assert world.lease(agent_id) == top
    child = world.create("nobody", parent_task_id=top)
    world.fail(top, retryable=False)
    return top, child


def test_a_run_lives_as_long_as_anything_below_its_task(world: World) -> None:
    make(world, overlap_policy=OVERLAP_POLICY_QUEUE)
    top, child = failed_with_a_child(world)

    world.advance(60)
    waiting = get(world)
    world.cancel(child)
    world.advance(1)

    assert (waiting.last_run.outcome, waiting.last_run.task_id) == (SCHEDULE_OUTCOME_QUEUED, top)
    assert get(world).run_count == 2
    assert top not in world.rows.schedule_runs


def test_cancel_ends_what_lives_on_below_a_task_that_has_failed(world: World) -> None:
    make(world, overlap_policy=OVERLAP_POLICY_CANCEL)
    top, child = failed_with_a_child(world)
    world.delete(top)

    world.advance(60)

    assert world.task(child).state == TASK_STATE_CANCELLED
    assert "next run of schedule_a" in world.task(child).state_reason


def test_every_run_that_lives_is_in_the_way_of_the_next(world: World) -> None:
    make(world, overlap_policy=OVERLAP_POLICY_ALLOW)
    world.advance(60)
    world.advance(60)
    first, second = (task.task_id for task in tasks(world))
    skip = ScheduleSpec(overlap_policy=OVERLAP_POLICY_SKIP)
    world.do(UpdateScheduleRequest(schedule_id="schedule_a", spec=skip, update_mask={"paths": ["overlap_policy"]}))

    world.cancel(second)
    world.advance(60)

    assert (get(world).last_run.outcome, get(world).last_run.task_id) == (SCHEDULE_OUTCOME_SKIPPED, first)
    world.cancel(first)
    world.advance(60)
    assert get(world).run_count == 3


def test_a_run_that_is_retried_lives_again(world: World) -> None:
    make(world)
    top, child = failed_with_a_child(world)
    world.cancel(child)
    assert world.rows.schedule_runs == {}

    world.retry(child)
    world.advance(60)

    assert world.rows.schedule_runs == {top: "schedule_a"}
    assert get(world).last_run.outcome == SCHEDULE_OUTCOME_SKIPPED


def test_a_deleted_schedule_leaves_no_runs(world: World) -> None:
    make(world)
    world.advance(60)
    world.do(DeleteScheduleRequest(schedule_id="schedule_a"))
    task_id = tasks(world)[0].task_id

    world.cancel(task_id)
    world.retry(task_id)

    assert world.rows.schedule_runs == {}


def test_allow_runs_beside_the_last_one(world: World) -> None:
    make(world, overlap_policy=OVERLAP_POLICY_ALLOW)

    for _ in range(3):
        world.advance(60)

    assert [task.state for task in tasks(world)] == [TASK_STATE_QUEUED] * 3


# -- late ------------------------------------------------------------------------------------------


def test_what_was_missed_within_the_window_is_run_once(world: World) -> None:
    make(world, catch_up_window=Duration(seconds=600))

    world.advance(3600 + 30)

    assert [seconds(task.schedule_time) for task in tasks(world)] == [3600]
    # 50:30 to 1:00:00 are within it, ten times in all.
    assert counts(world) == {"run": 1, "coalesced": 9, "missed": 50}
    assert seconds(get(world).next_run_time) == 3660


def test_what_is_older_than_the_window_is_missed(world: World) -> None:
    make(world, interval=HOUR, catch_up_window=Duration(seconds=600))

    world.advance(3 * 3600 + 601)

    assert tasks(world) == []
    assert counts(world) == {"missed": 3}
    assert get(world).last_run.outcome == SCHEDULE_OUTCOME_MISSED
    assert get(world).last_run.message == "the last of 3 times had passed by 10 min"
    assert names(world)[-1] == "schedule.missed"


def test_a_busy_moment_is_no_miss_even_without_a_window(world: World) -> None:
    make(world, interval=HOUR, catch_up_window=NONE)

    world.advance(3609)
    world.advance(3600 + 2)

    assert counts(world) == {"run": 1, "missed": 1}


def test_what_passes_while_it_is_paused_is_made_up_for_when_it_is_resumed(world: World) -> None:
    make(world, interval=HOUR)
    world.do(PauseScheduleRequest(schedule_id="schedule_a", reason="holidays"))
    assert (get(world).pause_reason, get(world).HasField("next_run_time")) == ("holidays", False)

    world.advance(2 * 3600 + 60)
    assert tasks(world) == []
    answer: Schedule = world.do(ResumeScheduleRequest(schedule_id="schedule_a"))

    assert answer.last_run.outcome == SCHEDULE_OUTCOME_TASK_CREATED
    assert [seconds(task.schedule_time) for task in tasks(world)] == [7200]
    assert counts(world) == {"run": 1, "missed": 1}
    assert seconds(get(world).next_run_time) == 3 * 3600
    assert names(world)[1:] == ["schedule.paused", "schedule.resumed", "schedule.triggered"]


def test_pausing_and_resuming_twice_change_nothing(world: World) -> None:
    make(world)
    for request in (PauseScheduleRequest, ResumeScheduleRequest):
        first = world.do(request(schedule_id="schedule_a"))
        assert world.do(request(schedule_id="schedule_a")) == first


def test_a_clock_that_goes_back_runs_nothing_twice(world: World) -> None:
    make(world, overlap_policy=OVERLAP_POLICY_ALLOW)
    world.advance(90)

    world.now_ns -= 60 * SECOND
    for _ in range(5):
        world.advance(20)

    assert [seconds(task.schedule_time) for task in tasks(world)] == [60, 120]


@given(
    policy=st.sampled_from([p for p in OverlapPolicy.values() if p]),
    steps=st.lists(st.tuples(st.sampled_from(["pass", "end", "pause", "resume"]), st.integers(0, 20_000)), max_size=25),
    window=st.integers(0, 600),
    jitter=st.integers(0, 200),
)
def test_every_time_is_dealt_with_once(
    policy: OverlapPolicy.ValueType, steps: list[tuple[str, int]], window: int, jitter: int
) -> None:
    world = World()
    make(world, overlap_policy=policy, catch_up_window=Duration(seconds=window), jitter=Duration(seconds=jitter))

    for step, length in steps:
        match step:
            case "pass":
                world.advance(length / 50)
            case "end" if get(world).last_task_id and get(world).last_task_id in world.rows.tasks:
                if world.task(get(world).last_task_id).state == TASK_STATE_QUEUED:
                    world.cancel(get(world).last_task_id)
            case "pause":
                world.do(PauseScheduleRequest(schedule_id="schedule_a"))
            case "resume":
                world.do(ResumeScheduleRequest(schedule_id="schedule_a"))
    world.do(ResumeScheduleRequest(schedule_id="schedule_a"))

    schedule = get(world)
    passed = round(seconds(schedule.next_schedule_time) / 60) - 1
    assert sum(counts(world).values()) + schedule.HasField("queued_schedule_time") == passed
    times = [seconds(task.schedule_time) for task in tasks(world)]
    assert times == sorted(set(times)), "each once and in order"
    assert all(time % 60 == 0 for time in times)
    assert world.now_ns < timestamp_ns(schedule.next_run_time)
    if policy in (OVERLAP_POLICY_SKIP, OVERLAP_POLICY_QUEUE):
        assert sum(task.state == TASK_STATE_QUEUED for task in tasks(world)) <= 1


# -- jitter ----------------------------------------------------------------------------------------


def test_jitter_is_drawn_once_and_never_reaches_the_next_time(world: World) -> None:
    make(world, jitter=HOUR, overlap_policy=OVERLAP_POLICY_ALLOW)

    delays = []
    for _ in range(50):
        planned = get(world)
        delays.append(seconds(planned.next_run_time) - seconds(planned.next_schedule_time))
        world.now_ns = timestamp_ns(planned.next_run_time)
        world.do()
        assert seconds(tasks(world)[-1].schedule_time) == seconds(planned.next_schedule_time)

    assert all(0 <= delay < 60 for delay in delays)
    assert len(set(delays)) > 40
    assert counts(world) == {"run": 50}
