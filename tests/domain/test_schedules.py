"""Schedules as rules: what clients may do to one, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.schedule_pb2 import (
    OVERLAP_POLICY_ALLOW,
    OVERLAP_POLICY_CANCEL,
    OVERLAP_POLICY_QUEUE,
    OVERLAP_POLICY_SKIP,
    SCHEDULE_OUTCOME_REFUSED,
    SCHEDULE_OUTCOME_SKIPPED,
    SCHEDULE_OUTCOME_TASK_CREATED,
    CreateScheduleRequest,
    DeleteScheduleRequest,
    PauseScheduleRequest,
    ResumeScheduleRequest,
    Schedule,
    ScheduleSpec,
    TriggerScheduleRequest,
    TriggerScheduleResponse,
    UpdateScheduleRequest,
)
from kapell.v1.task_pb2 import TASK_STATE_QUEUED, TaskSpec
from kapell.v1.template_pb2 import CreateTemplateRequest, DeleteTemplateRequest, TemplateSpec
from kapell_server.domain.times import SECOND

from tests.domain.scheduling import HOUR, MINUTE, NONE, WHOLE, counts, get, make, names, seconds, tasks
from tests.domain.world import START_NS, World


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
