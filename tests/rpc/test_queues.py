"""QueueService and ExplainTask on a real server: limits in pages with their counts, events, reasons as they change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from kapell.v1 import event_pb2, queue_pb2, queue_pb2_grpc, task_pb2, watch_pb2, worker_pb2
from kapell.v1.event_pb2 import Event
from kapell.v1.queue_pb2 import QUEUE_STATE_DRAINING, QUEUE_STATE_OPEN, QUEUE_STATE_PAUSED
from kapell.v1.task_pb2 import (
    WAIT_KIND_AGENTS_BUSY,
    WAIT_KIND_CONCURRENCY_LIMIT,
    WAIT_KIND_NO_AGENT,
    WAIT_KIND_QUEUE_PAUSED,
)
from kapell_server.testing import serve

from tests.rpc.conftest import failure
from tests.rpc.rpc_queues import change, new_limit
from tests.rpc.services import Services, create, register

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def queues(channel: grpc.aio.Channel) -> Any:
    return queue_pb2_grpc.QueueServiceStub(channel)


async def explain(owner: Services, task: task_pb2.Task) -> task_pb2.ExplainTaskResponse:
    answer: task_pb2.ExplainTaskResponse = await owner(
        owner.tasks.ExplainTask, task_pb2.ExplainTaskRequest(task_id=task.task_id)
    )
    return answer


def kinds(answer: task_pb2.ExplainTaskResponse) -> set[int]:
    return {blocker.kind for blocker in answer.blockers}


async def limits(owner: Services, queues: Any, size: int = 0) -> AsyncIterator[queue_pb2.ConcurrencyLimit]:
    token = ""
    while True:
        request = queue_pb2.ListConcurrencyLimitsRequest(page_size=size, page_token=token)
        page = await owner(queues.ListConcurrencyLimits, request)
        for limit in page.limits:
            yield limit
        token = page.next_page_token
        if not token:
            return


async def test_limits_come_newest_first_in_pages_without_gap_or_repeat(owner: Services, queues: Any) -> None:
    keys = [f"key:{number}" for number in range(120)]
    for key in keys:
        await owner(queues.SetConcurrencyLimit, new_limit(key))
    await owner(queues.SetConcurrencyLimit, new_limit("key:7"))
    await owner(queues.DeleteConcurrencyLimit, queue_pb2.DeleteConcurrencyLimitRequest(key="key:8"))
    await owner(queues.PauseQueue, queue_pb2.PauseQueueRequest(agent_type="test"))

    found = [limit.key async for limit in limits(owner, queues, 50)]

    assert found == [key for key in reversed(keys) if key != "key:8"]


async def test_a_list_of_limits_counts_what_runs_and_what_waits(
    owner: Services, channel: grpc.aio.Channel, queues: Any
) -> None:
    await owner(queues.SetConcurrencyLimit, new_limit("repo:web"))
    await owner(queues.SetConcurrencyLimit, new_limit("repo:unused"))
    worker = await register(owner, channel)
    for _ in range(5):
        await create(owner, concurrency_keys=["repo:web"])
    first, second = await worker.lease(), await worker.lease()

    full = {limit.key: (limit.running, limit.queued) async for limit in limits(owner, queues)}
    await worker.complete(first)
    freed = {limit.key: (limit.running, limit.queued) async for limit in limits(owner, queues)}

    assert full == {"repo:web": (2, 3), "repo:unused": (0, 0)}
    assert freed["repo:web"] == (1, 3)
    await worker.complete(second)


async def test_a_list_of_limits_refuses_a_token_that_is_none(owner: Services, queues: Any) -> None:
    bad = await failure(
        owner(queues.ListConcurrencyLimits, queue_pb2.ListConcurrencyLimitsRequest(page_token="not-a-token"))
    )

    assert (bad.code, bad.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")


async def test_limits_and_queues_survive_the_server(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, grpc.aio.insecure_channel(server.address) as channel:
        owner, queues = Services(channel, server.admin_token), queue_pb2_grpc.QueueServiceStub(channel)
        await owner(queues.SetConcurrencyLimit, new_limit("repo:web"))
        await owner(queues.UpdateQueue, change("test"))
        await owner(queues.DrainQueue, queue_pb2.DrainQueueRequest(agent_type="test", reason="replaced"))

    async with serve(tmp_path) as server, grpc.aio.insecure_channel(server.address) as channel:
        owner, queues = Services(channel, server.admin_token), queue_pb2_grpc.QueueServiceStub(channel)
        listed = [(limit.key, limit.max_running) async for limit in limits(owner, queues)]
        stats = await owner(queues.GetQueueStats, queue_pb2.GetQueueStatsRequest(agent_types=["test"]))
        refused = await failure(create(owner))

    queue = stats.queues[0].queue
    assert listed == [("repo:web", 2)]
    assert (queue.state, queue.max_running, queue.start_rate.count) == (QUEUE_STATE_DRAINING, 4, 10)
    assert (refused.code, refused.info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "QUEUE_DRAINING")
    assert dict(refused.info.metadata)["agent_type"] == "test"
    assert "replaced" in refused.text


async def test_stats_count_what_waits_runs_and_is_free(owner: Services, channel: grpc.aio.Channel, queues: Any) -> None:
    worker = await register(owner, channel, slots=4)
    for _ in range(3):
        await create(owner, concurrency_keys=["repo:web"])
    await create(owner, agent_type="other")
    await worker.lease()
    poll = worker_pb2.LeaseTasksRequest(agent_id=worker.agent_id, poll_id="second", wait=Duration())
    assert not (await worker.call(owner.workers.LeaseTasks, poll)).offers

    answer = await owner(queues.GetQueueStats, queue_pb2.GetQueueStatsRequest())

    found = {entry.queue.agent_type: entry for entry in answer.queues}
    [every] = (await owner(queues.GetQueueStats, queue_pb2.GetQueueStatsRequest(agent_types=["*"]))).queues
    test, other = found["test"], found["other"]
    assert (test.depth, test.blocked, test.running, test.agents, test.free_slots) == (2, 2, 1, 1, 3)
    assert (other.depth, other.blocked, other.running, other.agents, other.free_slots) == (1, 0, 0, 0, 0)
    assert (every.depth, every.blocked, every.running, every.agents, every.free_slots) == (3, 2, 1, 1, 3)
    assert test.queue.state == QUEUE_STATE_OPEN
    assert test.HasField("oldest_age")
    assert test.add_rate > test.dispatch_rate > 0


async def test_the_reasons_of_a_waiting_task_change_with_the_world(
    owner: Services, channel: grpc.aio.Channel, queues: Any
) -> None:
    task = await create(owner, concurrency_keys=["repo:web"])

    alone = await explain(owner, task)
    await owner(queues.PauseQueue, queue_pb2.PauseQueueRequest(reason="all hands on deck"))
    paused = await explain(owner, task)
    await owner(queues.ResumeQueue, queue_pb2.ResumeQueueRequest())
    worker = await register(owner, channel, slots=1)
    holder = await create(owner, concurrency_keys=["repo:web"], priority=900)
    offer = await worker.lease()
    held = await explain(owner, task)
    holding = await explain(owner, holder)
    await worker.complete(offer)

    assert kinds(alone) == {WAIT_KIND_NO_AGENT}
    assert kinds(paused) >= {WAIT_KIND_NO_AGENT, WAIT_KIND_QUEUE_PAUSED}
    assert any("all hands on deck" in blocker.message for blocker in paused.blockers)
    assert kinds(held) == {WAIT_KIND_CONCURRENCY_LIMIT, WAIT_KIND_AGENTS_BUSY}
    assert any(holder.task_id in blocker.blocked_by for blocker in held.blockers)
    assert (list(holding.blockers), holding.position) == ([], 0)
    for answer in (alone, paused, held, holding):
        assert answer.summary.endswith(".")
        assert not answer.task.prompt


async def _next_events(stream: Any, count: int) -> list[Event]:
    found: list[Event] = []
    while len(found) < count:
        found += (await stream.read()).events
    return found


async def test_a_watch_has_queues_and_limits_in_its_snapshot_and_then_their_changes(
    owner: Services, queues: Any
) -> None:
    await owner(queues.PauseQueue, queue_pb2.PauseQueueRequest(agent_type="early"))
    await owner(queues.SetConcurrencyLimit, new_limit("repo:early"))
    options = watch_pb2.WatchOptions(send_initial_state=True)
    stream = owner(owner.events.Watch, event_pb2.WatchRequest(options=options))
    snapshot: list[Event] = []
    while True:
        message = await stream.read()
        snapshot += message.events
        if message.bookmark.snapshot_complete:
            break

    await owner(queues.ResumeQueue, queue_pb2.ResumeQueueRequest(agent_type="early"))
    await owner(queues.SetConcurrencyLimit, new_limit("repo:late"))
    await owner(queues.DeleteConcurrencyLimit, queue_pb2.DeleteConcurrencyLimitRequest(key="repo:early"))
    events = await _next_events(stream, 3)
    stream.cancel()

    standing = [event for event in snapshot if event.HasField("queue") or event.HasField("limit")]
    assert [event.kind for event in standing] == [watch_pb2.EVENT_KIND_SNAPSHOT] * 2
    assert {event.queue.agent_type for event in standing} == {"", "early"}
    assert {event.limit.key for event in standing} == {"", "repo:early"}
    assert [event.kind for event in events] == [
        watch_pb2.EVENT_KIND_QUEUE_UPDATED,
        watch_pb2.EVENT_KIND_LIMIT_UPDATED,
        watch_pb2.EVENT_KIND_LIMIT_DELETED,
    ]
    assert events[0].queue.state == QUEUE_STATE_OPEN
    assert "state" in events[0].changed_fields
    assert (events[1].limit.max_running, events[2].limit.key) == (2, "repo:early")
    assert [event.actor.id for event in events] == ["admin"] * 3


async def test_events_of_queues_are_listed_by_kind_and_not_by_task_or_label(owner: Services, queues: Any) -> None:
    await owner(queues.PauseQueue, queue_pb2.PauseQueueRequest(agent_type="test", reason="moving"))
    await owner(queues.SetConcurrencyLimit, new_limit("repo:web"))

    async def listed(**wanted: Any) -> list[Event]:
        request = event_pb2.ListEventsRequest(filter=event_pb2.EventFilter(**wanted))
        return list((await owner(owner.events.ListEvents, request)).events)

    by_kind = await listed(kinds=[watch_pb2.EVENT_KIND_QUEUE_UPDATED, watch_pb2.EVENT_KIND_LIMIT_UPDATED])

    assert [(event.queue.agent_type, event.limit.key) for event in by_kind] == [("", "repo:web"), ("test", "")]
    assert (by_kind[1].queue.state, by_kind[1].queue.state_reason) == (QUEUE_STATE_PAUSED, "moving")
    assert await listed(task_ids=["task_x"]) == []
    assert await listed(labels={"a": "b"}) == []


async def test_what_changes_nothing_is_no_event(owner: Services, queues: Any) -> None:
    first = await owner(queues.PauseQueue, queue_pb2.PauseQueueRequest(agent_type="test", reason="moving"))
    again = await owner(queues.PauseQueue, queue_pb2.PauseQueueRequest(agent_type="test", reason="moving"))

    assert again.queue == first.queue


async def test_limits_may_be_listed_while_they_change(owner: Services, queues: Any) -> None:
    async def churn(number: int) -> None:
        key = f"key:{number}"
        await owner(queues.SetConcurrencyLimit, new_limit(key))
        await owner(queues.DeleteConcurrencyLimit, queue_pb2.DeleteConcurrencyLimitRequest(key=key))

    async def look() -> None:
        assert {limit.key async for limit in limits(owner, queues, 5)} >= {"key:stays"}

    await owner(queues.SetConcurrencyLimit, new_limit("key:stays"))
    await asyncio.gather(*(churn(number) for number in range(30)), *(look() for _ in range(10)))
