"""Reads of one resource and of the log: committed state, whole, and never the writer's business."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest
from google.protobuf.duration_pb2 import Duration
from kapell.v1.agent_pb2 import AgentSpec, CommandRuntime, SpawnAgentRequest
from kapell.v1.event_pb2 import Event
from kapell.v1.task_pb2 import (
    ATTEMPT_STATE_FAILED,
    ATTEMPT_STATE_RUNNING,
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    BatchCreateTasksRequest,
    CancelTaskRequest,
    DeleteTaskRequest,
    RetryPolicy,
    Task,
    TaskFailure,
    TaskSpec,
)
from kapell.v1.watch_pb2 import ACTOR_KIND_SYSTEM, ACTOR_KIND_USER, EVENT_KIND_SNAPSHOT, EVENT_KIND_TASK_STARTED
from kapell.v1.worker_pb2 import BatchCompleteTasksRequest, CompleteTaskRequest, FailTaskRequest, LeaseTasksRequest
from kapell_server.domain.errors import KapellError
from kapell_server.engine.facts import SpawnCommand
from kapell_server.store.cache import TaskCache
from kapell_server.store.reads import Reads

from tests.support.live_engine import LiveEngine, new_task, settled


def past_the_cache(live: LiveEngine) -> Reads:
    """Reads that find nothing in memory."""
    return Reads(
        live.database, TaskCache(), log_id=live.engine.log_id, head=lambda: live.engine.revision, oldest=lambda: 0
    )


async def test_a_task_is_the_same_from_memory_and_from_the_database(live: LiveEngine) -> None:
    agent_id = await live.register()
    task = await live.create(prompt="p", input={"n": 1})
    offer = await live.offer(agent_id)
    await live.complete(offer, "r")

    cached = await live.task(task.task_id)
    stored = Task.FromString(await past_the_cache(live).get_task(task.task_id))

    assert cached == stored
    assert (stored.prompt, stored.input["n"], stored.result.string_value) == ("p", 1, "r")


async def test_a_task_without_any_content_is_read(live: LiveEngine) -> None:
    task = await live.create()

    assert (await live.task(task.task_id)).prompt == ""
    assert Task.FromString(await past_the_cache(live).get_task(task.task_id)).task_id == task.task_id


async def test_a_task_may_be_read_without_its_content(live: LiveEngine) -> None:
    task = await live.create(prompt="p")

    assert await live.engine.reads.task(task.task_id) == task


async def test_what_does_not_exist_is_not_found(live: LiveEngine) -> None:
    reads = live.engine.reads
    for read in (reads.get_task, reads.task, reads.list_attempts):
        with pytest.raises(KapellError, match="was not found") as caught:
            await read("task_unknown")
        assert caught.value.reason_name == "TASK_NOT_FOUND"
    with pytest.raises(KapellError) as caught:
        await reads.get_agent("agent_unknown")
    assert caught.value.reason_name == "AGENT_NOT_FOUND"


async def test_a_deleted_task_is_not_found_with_its_attempts(live: LiveEngine) -> None:
    agent_id = await live.register()
    task = await live.create(prompt="p")
    await live.complete(await live.offer(agent_id))
    await live.call(DeleteTaskRequest(task_id=task.task_id))

    for reads in (live.engine.reads, past_the_cache(live)):
        with pytest.raises(KapellError):
            await reads.get_task(task.task_id)
        with pytest.raises(KapellError):
            await reads.list_attempts(task.task_id)


async def test_a_task_made_again_under_its_id_has_nothing_of_the_first(live: LiveEngine) -> None:
    agent_id = await live.register()
    await live.create(task_id="task_x", prompt="first")
    await live.complete(await live.offer(agent_id))

    answers = await live.together(DeleteTaskRequest(task_id="task_x"), new_task(task_id="task_x", prompt="second"))

    assert answers[0].deleted
    for reads in (live.engine.reads, past_the_cache(live)):
        task = Task.FromString(await reads.get_task("task_x"))
        assert (task.prompt, task.state, task.attempt) == ("second", TASK_STATE_QUEUED, 0)
        assert not task.HasField("result")
        assert list((await reads.list_attempts("task_x")).attempts) == []


async def test_a_task_made_deleted_and_made_again_in_one_batch_is_there(live: LiveEngine) -> None:
    answers = await live.together(
        new_task(task_id="task_x", prompt="first"),
        CancelTaskRequest(task_id="task_x"),
        DeleteTaskRequest(task_id="task_x"),
        new_task(task_id="task_x", prompt="second"),
    )

    assert not any(isinstance(answer, Exception) for answer in answers)
    assert Task.FromString(await past_the_cache(live).get_task("task_x")).prompt == "second"
    await live.crash()
    agent_id = await live.register()
    assert (await live.offer(agent_id)).task.prompt == "second"


async def test_attempts_are_listed_from_the_first(live: LiveEngine) -> None:
    agent_id = await live.register()
    task = await live.create(retry_policy=RetryPolicy(max_attempts=9, initial_backoff=Duration()))
    for _ in range(3):
        offer = await live.offer(agent_id)
        failure = TaskFailure(reason="EXIT_CODE", message=f"attempt {offer.attempt}")
        await live.call(FailTaskRequest(lease_token=offer.lease_token, failure=failure))
    await live.offer(agent_id)

    found = await live.engine.reads.list_attempts(task.task_id)

    assert [one.attempt for one in found.attempts] == [1, 2, 3, 4]
    assert [one.state for one in found.attempts] == [ATTEMPT_STATE_FAILED] * 3 + [ATTEMPT_STATE_RUNNING]
    assert [one.failure.message for one in found.attempts] == ["attempt 1", "attempt 2", "attempt 3", ""]
    assert found.revision == live.engine.revision


async def test_only_the_newest_attempts_are_listed_where_all_are_too_long(
    live: LiveEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent_id = await live.register()
    task = await live.create(retry_policy=RetryPolicy(max_attempts=9, initial_backoff=Duration()))
    for _ in range(3):
        offer = await live.offer(agent_id)
        failure = TaskFailure(reason="EXIT_CODE", message="x" * 1000)
        await live.call(FailTaskRequest(lease_token=offer.lease_token, failure=failure))

    listed = []
    for most in (1, 2600, 9000):
        monkeypatch.setattr("kapell_server.store.reads.ANSWER_BYTES", most)
        listed.append([one.attempt for one in (await live.engine.reads.list_attempts(task.task_id)).attempts])

    assert listed == [[3], [2, 3], [1, 2, 3]]


async def test_events_tell_who_did_what_when(live: LiveEngine) -> None:
    agent_id = await live.register()
    task = await live.create()
    live.clock.advance(1)
    await live.offer(agent_id)

    [created] = [record for record in await live.log() if record.revision == task.revision]
    [started] = [record for record in await live.log() if record.kind == EVENT_KIND_TASK_STARTED]

    event = Event.FromString(created.data)
    assert (event.actor.kind, event.actor.id, event.previous_task_state) == (ACTOR_KIND_USER, "admin", 0)
    assert (event.task, created.resource_id) == (task, task.task_id)
    event = Event.FromString(started.data)
    assert (event.actor.kind, event.actor.id) == (ACTOR_KIND_SYSTEM, "scheduler")
    assert (event.previous_task_state, event.task.state) == (TASK_STATE_QUEUED, TASK_STATE_RUNNING)
    assert event.event_time.ToNanoseconds() == live.clock.now_ns()
    assert list(event.changed_fields) == ["state", "attempt", "attempts_used", "lease"]


async def test_the_log_is_read_in_pages(live: LiveEngine) -> None:
    await live.together(*[new_task() for _ in range(10)])
    reads = live.engine.reads

    assert [record.revision for record in await reads.events_after(0, 4)] == [1, 2, 3, 4]
    assert [record.revision for record in await reads.events_after(4, 100)] == [5, 6, 7, 8, 9, 10]
    assert await reads.events_after(10, 100) == []
    info = await reads.log_info()
    assert (info.log_id, info.revision, info.oldest_revision) == (live.engine.log_id, 10, 0)


async def snapshot(live: LiveEngine, kind: Literal["task", "agent"], until: int, limit: int) -> list[Event]:
    """All records of a snapshot, page by page, decoded."""
    found: list[Event] = []
    cursor: int | None = 0
    while cursor is not None:
        records, cursor = await live.engine.reads.snapshot(kind, cursor, until, limit)
        assert all(record.revision <= until for record in records)
        found += [Event.FromString(record.data) for record in records]
    return found


@pytest.mark.parametrize("limit", [1, 3, 100])
async def test_a_snapshot_and_the_events_after_it_are_the_state(live: LiveEngine, limit: int) -> None:
    agent_id = await live.register()
    for number in range(6):
        await live.create(task_id=f"task_{number}")
    await live.offer(agent_id)
    until = live.engine.revision
    await live.call(CancelTaskRequest(task_id="task_3"))
    await live.together(CancelTaskRequest(task_id="task_4"), DeleteTaskRequest(task_id="task_4"))
    await live.create(task_id="task_late")

    events = await snapshot(live, "task", until, limit)
    agents = await snapshot(live, "agent", until, limit)

    assert [event.task.task_id for event in events] == ["task_0", "task_1", "task_2", "task_5"]
    assert {event.kind for event in events + agents} == {EVENT_KIND_SNAPSHOT}
    assert [event.agent.agent_id for event in agents] == [agent_id]
    assert all(event.revision == event.task.revision for event in events)
    known = {event.task.task_id: event.task for event in events}
    for record in await live.engine.reads.events_after(until, 100):
        if record.resource_id.startswith("task_"):
            known[record.resource_id] = Event.FromString(record.data).task
    del known["task_4"]
    for task_id, task in known.items():
        assert task == await live.engine.reads.task(task_id)


async def test_a_snapshot_of_some_looks_at_no_others(live: LiveEngine) -> None:
    for number in range(6):
        await live.create(task_id=f"task_{number}")
    agent_id = await live.register()
    until = live.engine.revision
    reads = live.engine.reads

    first, cursor = await reads.snapshot("task", 0, until, 2, ("task_5", "task_0", "task_3", "task_none"))
    assert [record.resource_id for record in first] == ["task_0", "task_3"]
    assert cursor is not None
    rest, cursor = await reads.snapshot("task", cursor, until, 2, ("task_5", "task_0", "task_3", "task_none"))
    assert ([record.resource_id for record in rest], cursor) == (["task_5"], None)

    agents, cursor = await reads.snapshot("agent", 0, until, 2, (agent_id,))
    assert ([record.resource_id for record in agents], cursor) == ([agent_id], None)


async def test_an_empty_snapshot_is_done_at_once(live: LiveEngine) -> None:
    assert await live.engine.reads.snapshot("task", 0, 0, 10) == ([], None)


async def test_large_batches_are_loaded_whole(live: LiveEngine) -> None:
    """More keys than one statement takes, for tasks and contents, on an engine that knows none of them."""
    agent_id = await live.register(slots=256)
    specs = [TaskSpec(agent_type="shell", prompt=str(number)) for number in range(200)]
    for _ in range(3):
        live.clock.advance(1)
        await live.call(BatchCreateTasksRequest(tasks=specs))
    await live.crash()

    polls = [LeaseTasksRequest(agent_id=agent_id, max_tasks=64, poll_id=f"p{number}") for number in range(4)]
    leased = await live.together(*polls)
    offers = [offer for answer in leased for offer in answer.offers]
    await live.crash()
    requests = [BatchCompleteTasksRequest() for _ in range(3)]
    for index, offer in enumerate(offers):
        completion = CompleteTaskRequest(lease_token=offer.lease_token)
        completion.result.string_value = offer.task.prompt
        requests[index % 3].completions.append(completion)
    outcomes = await live.together(*requests)

    assert len(offers) == 256
    assert [offer.task.prompt for offer in leased[0].offers[:4]] == ["0", "4", "8", "12"]
    assert not any(outcome.lease_lost for answer in outcomes for outcome in answer.outcomes)
    task = Task.FromString(await past_the_cache(live).get_task(offers[100].task.task_id))
    assert task.result.string_value == task.prompt


async def test_reads_do_not_wait_for_a_write(live: LiveEngine) -> None:
    task = await live.create(prompt="p")
    reads = past_the_cache(live)
    held, release = asyncio.Event(), asyncio.Event()
    if live.database.kind == "sqlite":
        pytest.skip("SQLite's writes run on the loop and cannot be held there; WAL lets readers pass the commit")

    def hold(connection: object) -> None:
        from sqlalchemy.util import await_only

        connection.exec_driver_sql("UPDATE tasks SET priority = 1")  # type: ignore[attr-defined]
        held.set()
        await_only(release.wait())

    write = await settled(live.database.write(hold))
    await held.wait()
    found = Task.FromString(await reads.get_task(task.task_id))
    release.set()
    await write

    assert found.prompt == "p"


async def test_the_environment_of_a_spec_is_for_the_spawner_alone(live: LiveEngine) -> None:
    spec = AgentSpec(agent_types=["shell"], command=CommandRuntime(argv=["sh"], env={"API_KEY": "a secret"}))
    await live.call(SpawnCommand(SpawnAgentRequest(agent_id="agent_a", spec=spec), "", spec))

    await live.crash()

    assert await live.engine.reads.agent_spec("agent_a") == spec
    assert (await live.agent("agent_a")).spec.command.env["API_KEY"] == "[hidden]"
    assert not any(b"a secret" in record.data for record in await live.log())
    with pytest.raises(KapellError) as caught:
        await live.engine.reads.agent_spec("agent_unknown")
    assert caught.value.reason_name == "AGENT_NOT_FOUND"
