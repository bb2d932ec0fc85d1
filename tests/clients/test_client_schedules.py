"""`client.schedules`: requests as they are filled in, and the life of a schedule on the real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from kapell import Client, SyncClient, errors
from kapell.task_specs import task_spec
from kapell.v1.schedule_pb2 import OVERLAP_POLICY_QUEUE, SCHEDULE_OUTCOME_SKIPPED
from kapell_server.testing import TestServer, serve

from tests.clients.every_method import Recorder, recording


@pytest.fixture
async def recorded() -> AsyncIterator[tuple[Client, Recorder]]:
    async with recording() as (address, recorder), Client(address, token="secret-token") as client:
        yield client, recorder


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[TestServer]:
    async with serve(tmp_path) as server:
        yield server


@pytest.fixture
async def client(server: TestServer) -> AsyncIterator[Client]:
    async with Client(server.address, token=server.admin_token) as client:
        yield client


async def test_a_schedule_is_created_as_described(recorded: tuple[Client, Recorder]) -> None:
    client, recorder = recorded

    await client.schedules.create(
        task_spec("shell", "backup"),
        schedule_id="schedule_mine",
        interval=timedelta(hours=6),
        jitter=90,
        overlap_policy="queue",
        catch_up_window=0,
        end_time=datetime(2030, 1, 2, tzinfo=UTC),
        paused=True,
        pause_reason="not yet",
    )

    request = recorder.requests["CreateSchedule"]
    spec = request.spec
    assert (request.schedule_id, request.paused, request.pause_reason) == ("schedule_mine", True, "not yet")
    assert (spec.interval.seconds, spec.jitter.seconds, spec.overlap_policy) == (21600, 90, OVERLAP_POLICY_QUEUE)
    assert spec.HasField("catch_up_window")
    assert spec.end_time.ToJsonString() == "2030-01-02T00:00:00Z"
    assert (spec.HasField("start_time"), spec.task.prompt) == (False, "backup")


async def test_an_update_names_exactly_what_was_given(recorded: tuple[Client, Recorder]) -> None:
    client, recorder = recorded

    await client.schedules.update("schedule_1", cron="@daily", jitter=None, etag="e1")

    request = recorder.requests["UpdateSchedule"]
    assert sorted(request.update_mask.paths) == ["cron", "jitter"]
    assert (request.spec.cron, request.spec.HasField("jitter"), request.etag) == ("@daily", False, "e1")


async def test_what_cannot_be_sent_is_refused_with_advice(recorded: tuple[Client, Recorder]) -> None:
    client, _ = recorded

    with pytest.raises(errors.InvalidRequest, match="did you mean 'skip'"):
        await client.schedules.trigger("schedule_1", overlap_policy="skipp")
    with pytest.raises(errors.InvalidRequest, match="nothing to change"):
        await client.schedules.update("schedule_1")


async def test_a_schedule_lives_from_create_to_delete(client: Client) -> None:
    made = await client.schedules.create(
        task_spec("nobody", "backup"), cron="0 0 29 2 *", time_zone="Europe/Berlin", display_name="Backup"
    )
    schedule_id = made.schedule_id

    first = await client.schedules.trigger(schedule_id)
    second = await client.schedules.trigger(schedule_id)
    paused = await client.schedules.pause(schedule_id, reason="holidays")
    listed = [schedule.schedule_id async for schedule in client.schedules.iterate(paused=True)]
    resumed = await client.schedules.resume(schedule_id)
    updated = await client.schedules.update(schedule_id, display_name="Other", etag=resumed.etag)
    read = await client.schedules.get(schedule_id)
    await client.schedules.delete(schedule_id)

    assert first.task.schedule_id == schedule_id
    assert (second.HasField("task"), second.schedule.last_run.outcome) == (False, SCHEDULE_OUTCOME_SKIPPED)
    assert (paused.pause_reason, listed) == ("holidays", [schedule_id])
    assert resumed.next_run_time == made.next_run_time
    assert (updated.spec.display_name, read.spec.task.prompt) == ("Other", "backup")
    with pytest.raises(errors.NotFound) as caught:
        await client.schedules.get(schedule_id)
    assert caught.value.reason == "SCHEDULE_NOT_FOUND"


async def test_it_runs_by_the_clock_and_is_watched_by_name(client: Client) -> None:
    async with client.watch(kinds=["schedule.triggered"]) as events:
        await client.schedules.create(task_spec("nobody", "tick"), schedule_id="schedule_tick", interval=1)
        event = await anext(aiter(events))
    await client.schedules.delete("schedule_tick")

    task = await client.tasks.get(event.schedule.last_task_id)
    assert (task.schedule_id, task.prompt, task.schedule_time.nanos) == ("schedule_tick", "tick", 0)


async def test_a_snapshot_shows_schedules(client: Client) -> None:
    await client.schedules.create(task_spec("nobody", "x"), schedule_id="schedule_a", cron="@yearly")

    async with client.watch(schedule_ids=["schedule_a"], initial_state=True) as events:
        event = await anext(aiter(events))

    assert (event.schedule.schedule_id, event.schedule.spec.cron) == ("schedule_a", "@yearly")


async def test_a_preview_tells_times(client: Client) -> None:
    after = datetime(2026, 3, 28, 12, tzinfo=UTC)

    answer = await client.schedules.preview(cron="30 2 * * *", time_zone="Europe/Berlin", count=2, after=after)

    assert [time.ToJsonString() for time in answer.times] == ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]
    with pytest.raises(errors.InvalidRequest, match="no time zone"):
        await client.schedules.preview(cron="@daily", time_zone="Mars/Base")


async def test_the_blocking_client_has_schedules_too(server: TestServer) -> None:
    def work() -> list[str]:
        with SyncClient(server.address, token=server.admin_token) as client:
            client.schedules.create(task_spec("nobody", "x"), schedule_id="schedule_a", cron="@yearly")
            return [schedule.schedule_id for schedule in client.schedules.iterate()]

    assert await asyncio.to_thread(work) == ["schedule_a"]
