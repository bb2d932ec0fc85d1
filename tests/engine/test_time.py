"""Deadlines are looked at by one timer, however many they are and however far away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.schedule_pb2 import Schedule, ScheduleSpec
from kapell.v1.task_pb2 import (
    TASK_STATE_FAILED,
    TASK_STATE_PENDING,
    TASK_STATE_QUEUED,
    CancelTaskRequest,
    CountTasksRequest,
    Task,
    TaskTimeouts,
)
from kapell_server.clock import SystemClock
from kapell_server.domain.times import SECOND, stamp

from tests.support.live_engine import LiveEngine, new_task


def after(live: LiveEngine, seconds: float) -> Timestamp:
    """A time by the engine's clock."""
    later = Timestamp()
    stamp(later, live.clock.now_ns() + int(seconds * SECOND))
    return later


async def states(live: LiveEngine) -> dict[int, int]:
    """How many tasks are in each state."""
    counted = await live.engine.reads.count_tasks(CountTasksRequest())
    return {entry.state: entry.count for entry in counted.counts}


async def test_the_engine_looks_by_itself_when_the_time_has_come(on_sqlite: LiveEngine) -> None:
    task = await on_sqlite.create("nobody", not_before_time=after(on_sqlite, 5))
    on_sqlite.clock.advance(5)

    on_sqlite.engine.wake()

    record = await on_sqlite.engine.ring.wait_resource(task.task_id, task.revision, 30)
    assert record is not None
    assert isinstance(record.resource, Task)
    assert record.resource.state == TASK_STATE_QUEUED


async def test_the_timer_of_the_machine_rings_too(tmp_path: Path) -> None:
    live = LiveEngine("", tmp_path)
    live.clock = SystemClock()  # type: ignore[assignment]
    await live.start()
    try:
        for seconds in (0.05, 0.5, 5.0):  # a machine that is busy for so long makes the task at once
            task = await live.create("nobody", not_before_time=after(live, seconds))
            if task.state == TASK_STATE_PENDING:
                break

        record = await live.engine.ring.wait_resource(task.task_id, task.revision, 30)

        assert record is not None
        assert isinstance(record.resource, Task)
        assert record.resource.state == TASK_STATE_QUEUED
        assert record.resource.queue_time.ToNanoseconds() >= task.not_before_time.ToNanoseconds()
    finally:
        await live.stop()


@pytest.fixture
async def small_steps(on_sqlite: LiveEngine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LiveEngine]:
    """An engine that keeps few deadlines in memory and looks at few at once."""
    monkeypatch.setattr("kapell_server.engine.batch._DUE_CHUNK", 4)
    monkeypatch.setattr("kapell_server.engine.batch._DUE_AT_ONCE", 3)
    yield on_sqlite


async def all_in_state(live: LiveEngine, state: int, count: int) -> None:
    """Waits until so many tasks are in the state, commit by commit."""
    seen = live.engine.revision
    while (await states(live)).get(state, 0) != count:
        assert await live.engine.ring.wait_beyond(seen, 30)
        seen = live.engine.revision


async def test_deadlines_beyond_the_horizon_are_met(small_steps: LiveEngine) -> None:
    live = small_steps
    for second in range(1, 21):
        await live.create("nobody", not_before_time=after(live, second))
    await live.restart()

    for second in range(1, 21):
        live.clock.advance(1)
        await asyncio.gather(live.pulse(), all_in_state(live, TASK_STATE_QUEUED, second))

    assert await states(live) == {TASK_STATE_QUEUED: 20}


async def test_a_deadline_that_comes_nearer_than_the_horizon_is_met(small_steps: LiveEngine) -> None:
    live = small_steps
    for second in range(100, 120):
        await live.create("nobody", not_before_time=after(live, second))
    await live.restart()
    near = await live.create("nobody", not_before_time=after(live, 5))
    far = await live.create("nobody", not_before_time=after(live, 500))

    await live.advance(5)
    assert (await live.task(near.task_id)).state == TASK_STATE_QUEUED
    live.clock.advance(500)
    await asyncio.gather(live.pulse(), all_in_state(live, TASK_STATE_QUEUED, 22))

    assert (await live.task(far.task_id)).state == TASK_STATE_QUEUED


async def test_many_deadlines_at_one_time_are_all_met(small_steps: LiveEngine) -> None:
    live = small_steps
    await live.together(*[new_task("nobody", not_before_time=after(live, 60)) for _ in range(30)])
    await live.restart()

    live.clock.advance(60)
    await asyncio.gather(live.pulse(), all_in_state(live, TASK_STATE_QUEUED, 30))

    assert await states(live) == {TASK_STATE_QUEUED: 30}


async def test_a_clock_that_jumps_back_loses_nothing(on_sqlite: LiveEngine) -> None:
    live = on_sqlite
    task = await live.create("nobody", timeouts=TaskTimeouts(queue_timeout=Duration(seconds=30)))
    pending = await live.create("nobody", not_before_time=after(live, 40))

    await live.advance(-3600)
    assert (await live.task(pending.task_id)).state == TASK_STATE_PENDING
    await live.advance(3600 + 41)

    assert (await live.task(task.task_id)).state == TASK_STATE_FAILED
    assert (await live.task(pending.task_id)).state == TASK_STATE_QUEUED


async def test_a_look_that_fails_stops_no_other(on_sqlite: LiveEngine) -> None:
    """As when a schedule's time zone is no longer on the machine."""
    broken = Schedule(schedule_id="schedule_broken", spec=ScheduleSpec(cron="* * * * *", time_zone="No/Where"))
    stamp(broken.next_run_time, on_sqlite.clock.now_ns())
    stamp(broken.create_time, on_sqlite.clock.now_ns())
    state = on_sqlite.engine._state
    state.standing.load([broken])
    state.schedule(on_sqlite.clock.now_ns() + SECOND, broken.schedule_id)
    task = await on_sqlite.create("nobody", not_before_time=after(on_sqlite, 5))

    on_sqlite.clock.advance(6)
    on_sqlite.engine.wake()

    record = await on_sqlite.engine.ring.wait_resource(task.task_id, task.revision, 30)
    assert record is not None
    assert isinstance(record.resource, Task)
    assert record.resource.state == TASK_STATE_QUEUED


async def test_what_has_ended_is_not_looked_at_any_more(on_sqlite: LiveEngine) -> None:
    patient = TaskTimeouts(total_timeout=Duration(seconds=86400))
    for _ in range(3):
        task = await on_sqlite.create("nobody", timeouts=patient)
        await on_sqlite.call(CancelTaskRequest(task_id=task.task_id))

    assert not any(subject.startswith("task_") for subject in on_sqlite.engine._state.due.at)
