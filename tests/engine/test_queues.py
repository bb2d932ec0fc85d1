"""Queues, limits and ranks are the database's: a new engine goes on where the old one was, on both databases."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from kapell.v1.approval_pb2 import RequestApprovalRequest
from kapell.v1.queue_pb2 import (
    CONCURRENCY_STRATEGY_CANCEL_IN_PROGRESS,
    CONCURRENCY_STRATEGY_SKIP,
    ConcurrencyLimit,
    DeleteConcurrencyLimitRequest,
    DrainQueueRequest,
    GetQueueStatsRequest,
    PauseQueueRequest,
    Queue,
    QueueStats,
    ResumeQueueRequest,
    SetConcurrencyLimitRequest,
    StartRate,
    UpdateQueueRequest,
)
from kapell.v1.task_pb2 import (
    TASK_STATE_CANCELLED,
    TASK_STATE_CANCELLING,
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    BatchCreateTasksRequest,
    ExplainTaskRequest,
    ExplainTaskResponse,
    Task,
    TaskSpec,
    UpdateTaskRequest,
    WaitKind,
)
from kapell.v1.worker_pb2 import CompleteTaskRequest, LeaseTasksRequest

from tests.support.live_engine import LiveEngine, new_task, settled


async def add(live: LiveEngine, name: str, *keys: str, **spec: Any) -> str:
    task_id = f"task_{name}"
    live.clock.advance(1e-6)
    await live.create(task_id=task_id, concurrency_keys=keys, **spec)
    return task_id


async def take(live: LiveEngine, agent_id: str, most: int = 9) -> list[str]:
    """The names of the tasks that the agent is given now; it has spoken of each."""
    offers = await live.lease(agent_id, max_tasks=most)
    await live.beat(agent_id, *offers)
    return [offer.task.task_id.removeprefix("task_") for offer in offers]


async def finish(live: LiveEngine, name: str) -> None:
    """Completes a task whose offer is not at hand any more."""
    task = await live.task(f"task_{name}")
    start = task.lease.start_time.ToNanoseconds()
    token = live.keyring.lease_token(task.task_id, task.attempt, start)
    await live.call(CompleteTaskRequest(lease_token=token))


async def limit(live: LiveEngine, key: str, most: int | None = None, **rest: Any) -> None:
    await live.call(SetConcurrencyLimitRequest(limit=ConcurrencyLimit(key=key, max_running=most, **rest)))


async def change(live: LiveEngine, agent_type: str, **fields: Any) -> None:
    given = {name: value for name, value in fields.items() if value is not None}
    mask = FieldMask(paths=list(fields))
    await live.call(UpdateQueueRequest(queue=Queue(agent_type=agent_type, **given), update_mask=mask))


async def explain(live: LiveEngine, name: str) -> ExplainTaskResponse:
    answer: ExplainTaskResponse = await live.call(ExplainTaskRequest(task_id=f"task_{name}"))
    return answer


def kinds(answer: ExplainTaskResponse) -> list[str]:
    return [WaitKind.Name(one.kind)[10:] for one in answer.blockers]


async def stats(live: LiveEngine, agent_type: str = "shell") -> QueueStats:
    [found] = (await live.call(GetQueueStatsRequest(agent_types=[agent_type]))).queues
    assert isinstance(found, QueueStats)
    return found


def rate(count: int, seconds: int) -> StartRate:
    return StartRate(count=count, period=Duration(seconds=seconds))


async def test_turns_are_kept_over_a_restart(live: LiveEngine) -> None:
    agent_id = await live.register(slots=20)
    await live.call(
        BatchCreateTasksRequest(
            tasks=[TaskSpec(task_id=f"task_a{number}", agent_type="shell", fairness_key="a") for number in range(6)]
        )
    )
    assert await take(live, agent_id, 2) == ["a0", "a1"]
    await add(live, "b0", fairness_key="b")
    await add(live, "b1", fairness_key="b")

    await live.crash()
    await add(live, "c0", fairness_key="c")

    order = await take(live, agent_id)
    assert sorted(order[:3]) == ["a2", "b0", "c0"]
    assert sorted(order[3:5]) == ["a3", "b1"]
    assert order[5:] == ["a4", "a5"]


async def test_parked_tasks_stay_parked_and_are_woken_after_a_restart(live: LiveEngine) -> None:
    agent_id = await live.register(slots=9)
    for name in "abc":
        await add(live, name, "k", "other")
    assert await take(live, agent_id) == ["a"]
    before = await explain(live, "b")

    await live.crash()

    after = await explain(live, "b")
    assert kinds(before)[:2] == kinds(after)[:2] == ["CONCURRENCY_LIMIT"] * 2
    assert list(after.blockers[0].blocked_by) == ["task_a"]
    assert (await stats(live)).blocked == (await stats(live)).depth == 2
    assert await take(live, agent_id) == []
    await finish(live, "a")
    assert await take(live, agent_id) == ["b"]


async def test_limits_queues_and_what_runs_come_back(live: LiveEngine) -> None:
    agent_id = await live.register("shell", "red", slots=9)
    await limit(live, "k", 2, description="two of them")
    await change(live, "shell", max_running=3)
    await live.call(PauseQueueRequest(agent_type="red", reason="deploying"))
    for name, keys in (("a", "k"), ("b", "k"), ("c", "k"), ("d", ""), ("e", "")):
        await add(live, name, *keys)
    await add(live, "r", agent_type="red")
    assert await take(live, agent_id) == ["a", "b", "d"]

    await live.crash()

    assert (await stats(live)).running == 3
    assert kinds(await explain(live, "e"))[:1] == ["QUEUE_LIMIT"]
    assert kinds(await explain(live, "c"))[:2] == ["QUEUE_LIMIT", "CONCURRENCY_LIMIT"]
    assert "deploying" in (await explain(live, "r")).summary
    await finish(live, "a")
    assert await take(live, agent_id) == ["c"]
    await live.call(ResumeQueueRequest(agent_type="red"))
    assert await take(live, agent_id) == ["r"]


@pytest.mark.parametrize("kind", ["queue", "key"])
async def test_starts_are_counted_over_a_restart(live: LiveEngine, kind: str) -> None:
    agent_id = await live.register(slots=9)
    if kind == "queue":
        await change(live, "shell", start_rate=rate(2, 60))
    else:
        await limit(live, "k", 9, start_rate=rate(2, 60))
    for name in "abcd":
        await add(live, name, "k" if kind == "key" else name)
    assert await take(live, agent_id, 1) == ["a"]
    await live.advance(5)
    await live.beat(agent_id)
    assert await take(live, agent_id, 1) == ["b"]
    until = (await explain(live, "c")).blockers[0].until_time

    await live.crash()

    answer = await explain(live, "c")
    assert kinds(answer)[0] == "START_RATE"
    assert answer.blockers[0].until_time == until
    assert await take(live, agent_id) == []
    live.clock.advance((until.ToNanoseconds() - live.clock.now_ns()) / 1e9 - 0.001)
    assert await take(live, agent_id) == []
    live.clock.advance(0.001)
    assert len(await take(live, agent_id)) == 1


async def test_an_agent_that_waits_is_served_when_the_rate_allows_after_a_restart(live: LiveEngine) -> None:
    agent_id = await live.register(slots=9)
    await limit(live, "k", 9, start_rate=rate(1, 30))
    await add(live, "a", "k")
    await add(live, "b", "k")
    assert await take(live, agent_id) == ["a"]
    await live.restart()
    waiting = await settled(live.call(LeaseTasksRequest(agent_id=agent_id, max_tasks=9, wait=Duration(seconds=60))))

    for _ in range(5):
        await live.advance(6.1)
        await live.beat(agent_id)

    assert [offer.task.task_id for offer in (await waiting).offers] == ["task_b"]


async def test_a_cleared_rate_has_forgotten_its_starts_after_a_restart(live: LiveEngine) -> None:
    agent_id = await live.register(slots=9)
    await limit(live, "k", 9, start_rate=rate(1, 60))
    await add(live, "a", "k")
    assert await take(live, agent_id) == ["a"]
    await limit(live, "k", 9)
    await limit(live, "k", 9, start_rate=rate(1, 60))
    await add(live, "b", "k")
    await add(live, "c", "k")

    await live.crash()

    assert await take(live, agent_id) == ["b"]


async def test_a_longer_period_counts_the_same_starts_with_and_without_a_restart(live: LiveEngine) -> None:
    agent_id = await live.register(slots=9)
    await limit(live, "k", 9, start_rate=rate(1, 2))
    for name in "abc":
        await add(live, name, "k")
    for name in "ab":
        assert await take(live, agent_id) == [name]
        await live.advance(2.5)
        await live.beat(agent_id)
    await limit(live, "k", 9, start_rate=rate(2, 600))
    before = kinds(await explain(live, "c"))

    await live.crash()

    assert kinds(await explain(live, "c")) == before


async def test_a_deleted_limit_stays_deleted(live: LiveEngine) -> None:
    agent_id = await live.register(slots=9)
    await limit(live, "k", 0)
    await add(live, "a", "k")
    assert await take(live, agent_id) == []
    await live.call(DeleteConcurrencyLimitRequest(key="k"))
    refusal = await live.refusal(DeleteConcurrencyLimitRequest(key="k"))

    await live.crash()

    assert refusal.reason_name == "LIMIT_NOT_FOUND"
    assert await take(live, agent_id) == ["a"]


async def test_draining_outlives_a_restart(live: LiveEngine) -> None:
    await live.call(DrainQueueRequest(agent_type="*", reason="moving house"))

    await live.crash()

    refusal = await live.refusal(new_task())
    assert (refusal.reason_name, "moving house" in str(refusal)) == ("QUEUE_DRAINING", True)


async def test_the_oldest_holder_is_the_same_after_a_restart(live: LiveEngine) -> None:
    agent_id = await live.register(slots=9)
    await limit(live, "k", 2)
    await add(live, "z", "k")
    await add(live, "a", "k")
    assert await take(live, agent_id) == ["z", "a"]
    await limit(live, "k", 2, strategy=CONCURRENCY_STRATEGY_CANCEL_IN_PROGRESS)

    await live.crash()
    await add(live, "new", "k")

    states = [(await live.task(f"task_{name}")).state for name in ("z", "a", "new")]
    assert states == [TASK_STATE_CANCELLING, TASK_STATE_RUNNING, TASK_STATE_QUEUED]


async def test_a_task_that_is_parked_for_an_approval_counts_under_its_key_after_a_restart(live: LiveEngine) -> None:
    agent_id = await live.register()
    await limit(live, "k", 1, strategy=CONCURRENCY_STRATEGY_CANCEL_IN_PROGRESS)
    await add(live, "parked", "k")
    offer = await live.offer(agent_id)
    await live.call(RequestApprovalRequest(lease_token=offer.lease_token, title="Run make", park=True))

    await live.crash()
    await add(live, "new", "k")

    states = [(await live.task(f"task_{name}")).state for name in ("parked", "new")]
    assert states == [TASK_STATE_CANCELLED, TASK_STATE_QUEUED]


async def test_a_skipped_task_is_marked_in_the_database(live: LiveEngine) -> None:
    await limit(live, "k", 1, strategy=CONCURRENCY_STRATEGY_SKIP)
    await add(live, "a", "k")

    created = await live.create(task_id="task_b", concurrency_keys=["k"])

    found = await live.task("task_b")
    assert (created.state, found.state, found.skipped) == (TASK_STATE_QUEUED, TASK_STATE_CANCELLED, True)
    assert "task_a" in found.state_reason


async def test_a_task_that_moved_keeps_its_new_place_after_a_restart(live: LiveEngine) -> None:
    agent_id = await live.register(slots=9)
    for name in "abc":
        await add(live, name)
    for priority in (900, 500):
        moved = Task(task_id="task_a", priority=priority)
        await live.call(UpdateTaskRequest(task=moved, update_mask=FieldMask(paths=["priority"])))

    await live.crash()

    assert await take(live, agent_id) == ["b", "c", "a"]
