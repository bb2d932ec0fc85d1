"""Schedules on the real engine and both databases: time, failed commits, restarts, reads."""

from __future__ import annotations

from typing import Any, cast

import pytest
import sqlalchemy as sa
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from kapell.v1.common_pb2 import LIST_ORDER_OLDEST_FIRST
from kapell.v1.event_pb2 import Event, EventFilter, ListEventsRequest, ListEventsResponse
from kapell.v1.schedule_pb2 import (
    OVERLAP_POLICY_ALLOW,
    OVERLAP_POLICY_QUEUE,
    CreateScheduleRequest,
    DeleteScheduleRequest,
    ListSchedulesRequest,
    PauseScheduleRequest,
    ResumeScheduleRequest,
    Schedule,
    ScheduleFilter,
    ScheduleSpec,
    TriggerScheduleRequest,
    UpdateScheduleRequest,
)
from kapell.v1.task_pb2 import (
    TASK_STATE_QUEUED,
    TASK_STATE_SUCCEEDED,
    CancelTaskRequest,
    ListTasksRequest,
    ListTasksResponse,
    Task,
    TaskSpec,
)
from kapell.v1.watch_pb2 import EVENT_KIND_SNAPSHOT, EventKind
from kapell_server.engine.batch import StaleMemoryError
from kapell_server.store.schema import schedule_runs

from tests.support.faulty_database import Fault, FaultyDatabase, busy
from tests.support.live_engine import LiveEngine
from tests.support.turns import reached

MINUTE = Duration(seconds=60)
TASK = TaskSpec(agent_type="shell", prompt="tidy up", input={"deep": True})


def creation(schedule_id: str = "schedule_a", request_id: str = "", **spec: Any) -> CreateScheduleRequest:
    said = ScheduleSpec(**{"task": TASK, "interval": MINUTE, **spec})
    return CreateScheduleRequest(schedule_id=schedule_id, spec=said, request_id=request_id)


async def make(live: LiveEngine, schedule_id: str = "schedule_a", **spec: Any) -> Schedule:
    """A schedule, every minute unless it says otherwise."""
    made: Schedule = (await live.call(creation(schedule_id, **spec))).schedule
    return made


async def get(live: LiveEngine, schedule_id: str = "schedule_a") -> Schedule:
    return await live.engine.reads.schedules.get(schedule_id)


async def tasks(live: LiveEngine) -> list[Task]:
    """All tasks in order of creation."""
    request = ListTasksRequest(order=LIST_ORDER_OLDEST_FIRST)
    return list(ListTasksResponse.FromString(await live.engine.reads.list_tasks(request)).tasks)


def faults(live: LiveEngine) -> FaultyDatabase:
    return cast(FaultyDatabase, live.database)


async def strike(live: LiveEngine) -> None:
    """The schedule's time comes in a batch that the database does not take."""
    live.clock.advance(60)
    assert (await live.refusal(CancelTaskRequest(task_id="task_pulse"))).reason_name == "STORAGE_BUSY"


async def test_the_engine_runs_it_by_itself_when_its_time_has_come(on_sqlite: LiveEngine) -> None:
    made = await make(on_sqlite)
    on_sqlite.clock.advance(60)

    on_sqlite.engine.wake()

    record = await on_sqlite.engine.ring.wait_resource("schedule_a", made.revision, 30)
    assert record is not None
    assert cast(Schedule, record.resource).run_count == 1


async def test_a_live_run_survives_a_restart_with_all_that_is_below_it(live: LiveEngine) -> None:
    await make(live, overlap_policy=OVERLAP_POLICY_QUEUE)
    await live.advance(60)
    agent_id = await live.register("shell")
    offer = await live.offer(agent_id)
    child = await live.create("nobody", parent_task_id=offer.task.task_id)
    await live.complete(offer)
    await live.advance(60)

    await live.crash()
    await live.pulse()
    while_it_lives = (await get(live)).run_count
    await live.call(CancelTaskRequest(task_id=child.task_id))
    await live.pulse()

    assert while_it_lives == 1
    assert (await get(live)).run_count == 2
    runs = await live.database.read(lambda connection: connection.execute(sa.select(schedule_runs)).all())
    assert [(run.task_id, run.schedule_id) for run in runs] == [((await tasks(live))[-1].task_id, "schedule_a")]


async def test_task_and_schedule_change_in_one_commit(live: LiveEngine) -> None:
    await make(live)

    await live.advance(60)

    [task] = await tasks(live)
    schedule = await get(live)
    assert schedule.revision == task.revision + 1
    assert (task.schedule_id, schedule.last_task_id) == ("schedule_a", task.task_id)
    read = await live.task(task.task_id)
    assert (read.prompt, read.input["deep"]) == ("tidy up", True)
    assert await live.event_names() == ["schedule.created", "task.created", "schedule.triggered"]


@pytest.mark.parametrize("when", ["before", "uncommitted"])
async def test_a_run_whose_commit_fails_stays_due_and_is_made_once(live: LiveEngine, when: Any) -> None:
    await make(live)
    faults(live).faults.append(Fault(busy(), when))
    await strike(live)

    await live.advance(1)
    await live.advance(10)

    assert len(await tasks(live)) == 1
    assert (await get(live)).run_count == 1


async def test_a_server_that_dies_with_the_run_uncommitted_makes_it_after_its_restart(live: LiveEngine) -> None:
    await make(live)
    faults(live).faults.append(Fault(busy()))
    await strike(live)
    assert await tasks(live) == []
    assert (await get(live)).run_count == 0

    await live.crash()
    await live.pulse()

    assert [task.schedule_id for task in await tasks(live)] == ["schedule_a"]


async def test_a_run_whose_commit_was_done_but_not_seen_is_not_made_again(live: LiveEngine) -> None:
    await make(live)
    faults(live).faults.append(Fault(busy(), "committed"))
    await strike(live)
    await live.refusal(CancelTaskRequest(task_id="task_pulse"))
    await reached(lambda: bool(live.crashes))
    assert [type(crash) for crash in live.crashes] == [StaleMemoryError]
    live.crashes.clear()

    await live.restart()
    await live.pulse()

    assert len(await tasks(live)) == 1
    assert (await get(live)).run_count == 1


async def test_a_restart_keeps_the_next_run_as_it_was_drawn(live: LiveEngine) -> None:
    planned = (await make(live, interval=Duration(seconds=3600), jitter=Duration(seconds=3000))).next_run_time

    await live.crash()
    assert (await get(live)).next_run_time == planned
    live.clock.advance(planned.ToNanoseconds() / 1e9 - live.clock.now_ns() / 1e9 - 1)
    await live.pulse()
    assert await tasks(live) == []
    await live.advance(2)

    assert len(await tasks(live)) == 1


async def test_after_a_long_stop_one_run_makes_up_for_the_latest(live: LiveEngine) -> None:
    await make(live, catch_up_window=Duration(seconds=300))
    await live.stop()
    live.clock.advance(3 * 86_400 + 1)

    await live.start()
    await live.pulse()

    schedule = await get(live)
    assert len(await tasks(live)) == schedule.run_count == 1
    assert (schedule.coalesced_count, schedule.missed_count) == (4, 995)  # counting ends at 1,000
    assert schedule.next_schedule_time.seconds > live.clock.now_ns() // 10**9


async def test_a_stop_longer_than_the_window_is_missed(live: LiveEngine) -> None:
    await make(live, cron="0 3 * * *")
    await live.stop()
    live.clock.advance(10 * 86_400)

    await live.start()
    await live.pulse()

    schedule = await get(live)
    assert await tasks(live) == []
    assert (schedule.run_count, schedule.missed_count) == (0, 10)


async def test_a_clock_that_jumps_back_delays_runs_but_doubles_none(live: LiveEngine) -> None:
    await make(live, overlap_policy=OVERLAP_POLICY_ALLOW)
    await live.advance(60)

    live.clock.advance(-3600)
    for _ in range(3):
        await live.advance(20)
    assert len(await tasks(live)) == 1
    await live.advance(3600)

    assert len(await tasks(live)) == 2


async def test_a_queued_run_starts_as_soon_as_the_last_one_has_ended(live: LiveEngine) -> None:
    agent_id = await live.register()
    await make(live, overlap_policy=OVERLAP_POLICY_QUEUE)
    await live.advance(60)
    offer = await live.offer(agent_id)

    await live.call(TriggerScheduleRequest(schedule_id="schedule_a"))
    assert (await get(live)).HasField("queued_schedule_time")
    await live.complete(offer)
    await live.pulse()

    assert [task.state for task in await tasks(live)] == [TASK_STATE_SUCCEEDED, TASK_STATE_QUEUED]
    assert not (await get(live)).HasField("queued_schedule_time")


async def test_a_queued_run_starts_after_a_restart_too(live: LiveEngine) -> None:
    agent_id = await live.register()
    await make(live, overlap_policy=OVERLAP_POLICY_QUEUE)
    await live.call(TriggerScheduleRequest(schedule_id="schedule_a"))
    offer = await live.offer(agent_id)
    await live.call(TriggerScheduleRequest(schedule_id="schedule_a"))
    await live.crash()
    await live.complete(offer)

    await live.crash()
    await live.pulse()

    assert len(await tasks(live)) == 2


async def test_the_same_request_id_makes_one_schedule_and_one_run(live: LiveEngine) -> None:
    first = await live.call(creation("", request_id="r1"))
    again = await live.call(creation("", request_id="r1"))
    trigger = TriggerScheduleRequest(schedule_id=first.schedule.schedule_id, request_id="r2")
    ran, ran_again = [await live.call(trigger) for _ in range(2)]

    assert (again.schedule, again.replayed) == (first.schedule, True)
    assert (ran_again.task, ran_again.replayed) == (ran.task, True)
    assert len(await tasks(live)) == 1


async def test_update_and_delete_outlive_a_restart(live: LiveEngine) -> None:
    await make(live)
    await make(live, "schedule_b")
    change = ScheduleSpec(task=TaskSpec(agent_type="other", prompt="sweep"), cron="@hourly")
    mask = FieldMask(paths=["task", "cron"])
    await live.call(UpdateScheduleRequest(schedule_id="schedule_a", spec=change, update_mask=mask))
    await live.call(DeleteScheduleRequest(schedule_id="schedule_b"))

    await live.crash()
    await live.advance(3600)

    [task] = await tasks(live)
    assert (await live.task(task.task_id)).prompt == "sweep"
    assert (await live.refusal(DeleteScheduleRequest(schedule_id="schedule_b"))).reason_name == "SCHEDULE_NOT_FOUND"


async def test_one_deleted_and_made_again_in_one_batch_is_the_new_one(live: LiveEngine) -> None:
    await make(live)

    again = creation(task=TaskSpec(agent_type="shell", prompt="again"))
    await live.together(DeleteScheduleRequest(schedule_id="schedule_a"), again)
    await live.crash()

    assert (await get(live)).spec.task.prompt == "again"


# -- reads -----------------------------------------------------------------------------------------


async def test_get_has_all_of_the_task_and_nothing_else_has(live: LiveEngine) -> None:
    answered = await make(live)

    read = await get(live)
    [listed] = (await live.engine.reads.schedules.list(ListSchedulesRequest())).schedules

    assert read.spec.task == TASK
    assert (listed, answered.spec.task) == (answered, TaskSpec(agent_type="shell"))
    [record] = await live.log()
    assert Event.FromString(record.data).schedule == answered


async def test_lists_are_paged_and_filtered(live: LiveEngine) -> None:
    for name in "abcd":
        await make(live, f"schedule_{name}")
    await live.call(PauseScheduleRequest(schedule_id="schedule_b"))

    async def ids(**request: Any) -> list[str]:
        page = await live.engine.reads.schedules.list(ListSchedulesRequest(**request))
        rest = [] if not page.next_page_token else await ids(**{**request, "page_token": page.next_page_token})
        return [schedule.schedule_id[-1] for schedule in page.schedules] + rest

    assert await ids(page_size=3) == ["d", "c", "b", "a"]
    assert await ids(page_size=1, order=LIST_ORDER_OLDEST_FIRST) == ["a", "b", "c", "d"]
    assert await ids(filter=ScheduleFilter(paused=True)) == ["b"]
    assert await ids(filter=ScheduleFilter(paused=False, schedule_ids=["schedule_a", "schedule_b"])) == ["a"]
    assert await ids(filter=ScheduleFilter(template_ids=["greet"])) == []


async def test_its_history_is_there_after_it_is_gone(live: LiveEngine) -> None:
    await make(live)
    await make(live, "schedule_b")
    await live.call(PauseScheduleRequest(schedule_id="schedule_a"))
    await live.call(ResumeScheduleRequest(schedule_id="schedule_a"))

    async def names() -> list[str]:
        request = ListEventsRequest(filter=EventFilter(schedule_ids=["schedule_a"]))
        events = ListEventsResponse.FromString(await live.engine.reads.list_events(request)).events
        return [EventKind.Name(event.kind).removeprefix("EVENT_KIND_SCHEDULE_").lower() for event in events]

    assert await names() == ["resumed", "paused", "created"]
    await live.call(DeleteScheduleRequest(schedule_id="schedule_a"))
    assert await names() == ["deleted", "resumed", "paused", "created"]


async def test_a_snapshot_has_the_schedules(live: LiveEngine) -> None:
    await live.create()
    made = [await make(live, schedule_id) for schedule_id in ("schedule_a", "schedule_b")]

    records, _ = await live.engine.reads.snapshot("schedule", 0, live.engine.revision, 100)
    some, _ = await live.engine.reads.snapshot("schedule", 0, live.engine.revision, 100, ["schedule_b"])

    assert [Event.FromString(record.data).schedule for record in records] == made
    assert {record.kind for record in records} == {EVENT_KIND_SNAPSHOT}
    assert [record.resource_id for record in some] == ["schedule_b"]
