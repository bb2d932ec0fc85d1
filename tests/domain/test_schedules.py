"""Schedules as rules: what clients may do to one, and what becomes of each of its times."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from kapell.v1.schedule_pb2 import (
    OVERLAP_POLICY_ALLOW,
    OVERLAP_POLICY_CANCEL,
    OVERLAP_POLICY_QUEUE,
    OVERLAP_POLICY_SKIP,
    SCHEDULE_OUTCOME_MISSED,
    SCHEDULE_OUTCOME_QUEUED,
    SCHEDULE_OUTCOME_REFUSED,
    SCHEDULE_OUTCOME_SKIPPED,
    SCHEDULE_OUTCOME_TASK_CREATED,
    CreateScheduleRequest,
    DeleteScheduleRequest,
    OverlapPolicy,
    PauseScheduleRequest,
    ResumeScheduleRequest,
    Schedule,
    ScheduleSpec,
    TriggerScheduleRequest,
    TriggerScheduleResponse,
    UpdateScheduleRequest,
)
from kapell.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_QUEUED, Task, TaskSpec
from kapell.v1.template_pb2 import CreateTemplateRequest, DeleteTemplateRequest, TemplateSpec
from kapell_server.domain.times import SECOND, timestamp_ns

from tests.domain.world import START_NS, World

MINUTE = Duration(seconds=60)
NONE = Duration()
HOUR = Duration(seconds=3600)
WHOLE = TaskSpec(agent_type="shell", prompt="tidy up", labels={"a": "b"})


def make(
    world: World, schedule_id: str = "schedule_a", task: TaskSpec = WHOLE, paused: bool = False, **spec: Any
) -> str:
    """A new schedule, every minute unless it says otherwise."""
    if "cron" not in spec:
        spec.setdefault("interval", MINUTE)
    request = CreateScheduleRequest(
        schedule_id=schedule_id, spec=ScheduleSpec(task=task, **spec), paused=paused, pause_reason="not yet"
    )
    made: Schedule = world.do(request)
    return made.schedule_id


def get(world: World, schedule_id: str = "schedule_a") -> Schedule:
    """The schedule as committed."""
    found = world.rows.standing[Schedule, schedule_id]
    assert isinstance(found, Schedule)
    return found


def tasks(world: World) -> list[Task]:
    """Its tasks in order of creation."""
    return sorted(world.rows.tasks.values(), key=lambda task: task.task_id)


def counts(world: World) -> dict[str, int]:
    """The counters that are not zero."""
    fields = get(world).ListFields()
    return {field.name.removesuffix("_count"): value for field, value in fields if field.name.endswith("_count")}


def seconds(stamped: Timestamp) -> float:
    """Since the world began."""
    return (timestamp_ns(stamped) - START_NS) / SECOND


def names(world: World) -> list[str]:
    return [name for name in world.events if name.startswith("schedule.")]


@pytest.fixture
def world() -> World:
    return World()


def test_a_schedule_is_made_with_its_defaults_filled_in(world: World) -> None:
    make(world, "")

    [schedule] = world.rows.standing.values()
    assert isinstance(schedule, Schedule)
    assert schedule.schedule_id.startswith("schedule_0")
    spec = schedule.spec
    assert (spec.time_zone, spec.overlap_policy, spec.catch_up_window) == ("UTC", OVERLAP_POLICY_SKIP, HOUR)
    assert spec.display_name == schedule.schedule_id.removeprefix("schedule_")
    assert seconds(schedule.next_run_time) == seconds(schedule.next_schedule_time) == 60
    assert schedule.creator.id == "admin"
    assert names(world) == ["schedule.created"]


def test_what_may_be_large_stands_beside_the_record(world: World) -> None:
    make(world)

    kept = get(world).spec.task
    assert (kept.agent_type, kept.labels["a"], kept.prompt) == ("shell", "b", "")
    assert world.rows.schedule_tasks["schedule_a"] == WHOLE


def test_its_time_makes_a_task_that_says_what_made_it(world: World) -> None:
    make(world)

    world.advance(61)

    [task] = tasks(world)
    assert (task.schedule_id, seconds(task.schedule_time), task.state) == ("schedule_a", 60, TASK_STATE_QUEUED)
    assert task.creator.id == "timer"
    assert world.content(task.task_id).prompt == "tidy up"
    schedule = get(world)
    assert (schedule.last_task_id, counts(world)) == (task.task_id, {"run": 1})
    assert schedule.last_run.outcome == SCHEDULE_OUTCOME_TASK_CREATED
    assert (seconds(schedule.last_run.schedule_time), seconds(schedule.last_run.run_time)) == (60, 61)
    assert seconds(schedule.next_run_time) == 120
    assert names(world) == ["schedule.created", "schedule.triggered"]


def test_nothing_happens_before_its_time(world: World) -> None:
    make(world)

    world.advance(59.999)

    assert tasks(world) == []


def test_cron_runs_by_the_clock_of_its_zone(world: World) -> None:
    make(world, cron="0 3 * * *", time_zone="Europe/Berlin")  # The world begins on 2027-01-15 at 9:00 in Berlin.

    assert seconds(get(world).next_run_time) == 18 * 3600


def test_a_start_aligns_an_interval_and_an_end_ends_it(world: World) -> None:
    start = Timestamp(seconds=START_NS // SECOND + 5)
    end = Timestamp(seconds=START_NS // SECOND + 65)
    make(world, interval=Duration(seconds=30), start_time=start, end_time=end, overlap_policy=OVERLAP_POLICY_ALLOW)

    for _ in range(100):
        world.advance(1)

    assert [seconds(task.schedule_time) for task in tasks(world)] == [5, 35]
    assert not get(world).HasField("next_run_time")
    assert not get(world).HasField("next_schedule_time")


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"cron": "0 3 * *"}, "spec.cron"),
        ({"cron": "@daily", "time_zone": "Mars/Base"}, "spec.time_zone"),
        ({"cron": "0 0 * * *", "end_time": Timestamp(seconds=START_NS // SECOND + 60)}, "spec.cron"),
        ({"interval": HOUR, "end_time": Timestamp(seconds=5)}, "spec.end_time"),
        ({"task": TaskSpec(prompt="for nobody")}, "spec.task.agent_type"),
        ({"task": TaskSpec(agent_type="shell", parameters={"a": 1})}, "spec.task.parameters"),
    ],
)
def test_what_could_never_run_is_refused(world: World, spec: dict[str, Any], field: str) -> None:
    with world.refuses("REQUEST_INVALID") as caught:
        make(world, **spec)

    assert [path for path, _ in caught[0].violations] == [field]


def test_a_schedule_needs_calendar_and_task(world: World) -> None:
    with world.refuses("REQUEST_INVALID") as caught:
        world.do(CreateScheduleRequest(spec=ScheduleSpec(task=WHOLE)))
    assert caught[0].violations[0][0] == "spec.cron"
    with world.refuses("REQUEST_INVALID") as caught:
        world.do(CreateScheduleRequest(spec=ScheduleSpec(interval=MINUTE)))
    assert caught[0].violations[0][0] == "spec.task"


def test_the_task_is_checked_as_one_that_is_created_now(world: World) -> None:
    with world.refuses("TEMPLATE_NOT_FOUND"):
        make(world, task=TaskSpec(template="greet", parameters={"name": "Ada"}))


def test_an_id_is_used_once_at_a_time(world: World) -> None:
    make(world)

    with world.refuses("ID_TAKEN"):
        make(world)
    world.do(DeleteScheduleRequest(schedule_id="schedule_a"))
    make(world)

    assert names(world) == ["schedule.created", "schedule.deleted", "schedule.created"]


def test_there_are_only_so_many_schedules() -> None:
    world = World(max_schedules=1)
    make(world)

    with world.refuses("SCHEDULE_LIMIT"):
        make(world, "schedule_b")


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


# -- by hand ---------------------------------------------------------------------------------------


def test_a_trigger_runs_now_beside_the_calendar_even_while_paused(world: World) -> None:
    make(world, paused=True)
    world.now_ns += 7 * SECOND

    answer: TriggerScheduleResponse = world.do(TriggerScheduleRequest(schedule_id="schedule_a"))

    [task] = tasks(world)
    assert (answer.task, answer.revision) == (task, get(world).revision)
    assert (task.creator.id, seconds(task.schedule_time)) == ("admin", 7)
    assert seconds(get(world).next_schedule_time) == 60
    assert (get(world).pause_reason, get(world).HasField("next_run_time")) == ("not yet", False)


def test_a_trigger_keeps_to_the_overlap_policy_unless_told_otherwise(world: World) -> None:
    make(world)
    world.do(TriggerScheduleRequest(schedule_id="schedule_a"))

    skipped = world.do(TriggerScheduleRequest(schedule_id="schedule_a"))
    allowed = world.do(TriggerScheduleRequest(schedule_id="schedule_a", overlap_policy=OVERLAP_POLICY_ALLOW))

    assert (skipped.HasField("task"), skipped.schedule.last_run.outcome) == (False, SCHEDULE_OUTCOME_SKIPPED)
    assert allowed.HasField("task")
    assert counts(world) == {"run": 2, "skipped": 1}


# -- refused ---------------------------------------------------------------------------------------


def of_template(world: World, **spec: Any) -> None:
    """A schedule whose template is deleted again."""
    template = TemplateSpec(agent_type="shell", prompt="Hello")
    world.do(CreateTemplateRequest(template_id="greet", spec=template))
    make(world, task=TaskSpec(template="greet"), **spec)
    world.do(DeleteTemplateRequest(template_id="greet", force=True))


def test_a_task_that_cannot_be_made_is_recorded_and_the_schedule_goes_on(world: World) -> None:
    of_template(world)

    world.advance(60)
    world.do(CreateTemplateRequest(template_id="greet", spec=TemplateSpec(agent_type="shell", prompt="Hello again")))
    refused = get(world).last_run
    world.advance(60)

    assert (refused.outcome, refused.reason) == (SCHEDULE_OUTCOME_REFUSED, "TEMPLATE_NOT_FOUND")
    assert "greet" in refused.message
    assert counts(world) == {"run": 1, "refused": 1}
    assert "schedule.refused" in world.events


def test_what_cannot_be_made_cancels_nothing(world: World) -> None:
    make(world, overlap_policy=OVERLAP_POLICY_CANCEL)
    world.advance(60)
    bad = ScheduleSpec(task=TaskSpec(template="greet"))
    world.do(CreateTemplateRequest(template_id="greet", spec=TemplateSpec(agent_type="shell", prompt="Hello")))
    world.do(UpdateScheduleRequest(schedule_id="schedule_a", spec=bad, update_mask=FieldMask(paths=["task"])))
    world.do(DeleteTemplateRequest(template_id="greet", force=True))

    world.advance(60)

    assert [task.state for task in tasks(world)] == [TASK_STATE_QUEUED]
    assert counts(world) == {"run": 1, "refused": 1}


def test_a_trigger_that_cannot_make_its_task_is_refused(world: World) -> None:
    of_template(world)

    with world.refuses("TEMPLATE_NOT_FOUND"):
        world.do(TriggerScheduleRequest(schedule_id="schedule_a"))


# -- change ----------------------------------------------------------------------------------------


def update(world: World, *paths: str, etag: str = "", **spec: Any) -> Schedule:
    request = UpdateScheduleRequest(
        schedule_id="schedule_a", spec=ScheduleSpec(**spec), update_mask=FieldMask(paths=paths), etag=etag
    )
    updated: Schedule = world.do(request)
    return updated


def test_another_calendar_begins_now_and_makes_up_for_nothing(world: World) -> None:
    make(world, paused=True)
    world.advance(1800)

    changed = update(world, "cron", "time_zone", cron="@hourly", time_zone="Asia/Kathmandu")
    world.do(ResumeScheduleRequest(schedule_id="schedule_a"))

    assert (changed.spec.cron, changed.spec.HasField("interval")) == ("@hourly", False)
    # It is 14:15 there.
    assert seconds(get(world).next_run_time) == 1800 + 45 * 60
    assert counts(world) == {}


def test_a_field_of_the_mask_that_is_unset_goes_back_to_its_default(world: World) -> None:
    make(world, display_name="Nightly", jitter=HOUR, overlap_policy=OVERLAP_POLICY_ALLOW, catch_up_window=NONE)

    changed = update(world, "display_name", "jitter", "overlap_policy", "catch_up_window").spec

    assert (changed.display_name, changed.HasField("jitter")) == ("a", False)
    assert (changed.overlap_policy, changed.catch_up_window) == (OVERLAP_POLICY_SKIP, HOUR)
    assert changed.interval == MINUTE


def test_other_fields_leave_the_plan_alone(world: World) -> None:
    make(world, jitter=Duration(seconds=30))
    before = get(world)

    after = update(world, "display_name", "overlap_policy", display_name="x", overlap_policy=OVERLAP_POLICY_QUEUE)

    assert after.next_run_time == before.next_run_time


def test_a_new_task_is_used_from_the_next_run_on(world: World) -> None:
    make(world)

    update(world, "task", task=TaskSpec(agent_type="other", prompt="sweep"))
    world.advance(60)

    [task] = tasks(world)
    assert (task.agent_type, world.content(task.task_id).prompt) == ("other", "sweep")
    assert not task.labels


def test_an_update_is_refused_where_a_create_would_be(world: World) -> None:
    make(world)

    with world.refuses("REQUEST_INVALID"):
        update(world, "interval")
    with world.refuses("REQUEST_INVALID"):
        update(world, "cron", cron="no")
    with world.refuses("REQUEST_INVALID"):
        update(world, "task")
    with world.refuses("TEMPLATE_NOT_FOUND"):
        update(world, "task", task=TaskSpec(template="greet"))
    with world.refuses("ETAG_MISMATCH"):
        update(world, "display_name", etag="0")


def test_a_deleted_schedule_runs_no_more_and_its_tasks_go_on(world: World) -> None:
    make(world)
    world.advance(60)

    world.do(DeleteScheduleRequest(schedule_id="schedule_a"))
    world.advance(600)

    assert [task.state for task in tasks(world)] == [TASK_STATE_QUEUED]
    assert world.rows.schedule_tasks == {}


@pytest.mark.parametrize(
    "request_type",
    [
        UpdateScheduleRequest,
        DeleteScheduleRequest,
        PauseScheduleRequest,
        ResumeScheduleRequest,
        TriggerScheduleRequest,
    ],
)
def test_nothing_can_be_done_to_a_schedule_that_is_not_there(world: World, request_type: Any) -> None:
    with world.refuses("SCHEDULE_NOT_FOUND"):
        world.do(request_type(schedule_id="schedule_nobody"))
