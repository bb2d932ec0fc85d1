"""Tasks with locks on the real engine and both databases: offers with tokens, restarts, failed commits."""

from __future__ import annotations

from typing import Any

from kapell.v1.lock_pb2 import LOCK_MODE_SHARED, AcquireLocksRequest, CheckFenceRequest, LockItem
from kapell.v1.task_pb2 import (
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    WAIT_KIND_LOCK,
    ExplainTaskRequest,
    ExplainTaskResponse,
)
from kapell.v1.worker_pb2 import Offer

from tests.support.live_engine import USER, LiveEngine


def items(*paths: str) -> list[LockItem]:
    """Locks as "repo", "docs r"."""
    return [
        LockItem(path=path.removesuffix(" r"), mode=LOCK_MODE_SHARED if path.endswith(" r") else 0) for path in paths
    ]


async def declare(live: LiveEngine, name: str, *paths: str, **fields: Any) -> str:
    live.clock.advance(1e-6)
    return (await live.create(task_id=f"task_{name}", locks=items(*paths), **fields)).task_id


async def running(live: LiveEngine, name: str, *paths: str) -> Offer:
    """A task with these locks on an agent of its own, which has spoken of it."""
    agent_id = await live.register(f"for-{name}")
    await declare(live, name, *paths, agent_type=f"for-{name}")
    offer = await live.offer(agent_id)
    await live.beat(agent_id, offer)
    return offer


async def explain(live: LiveEngine, task_id: str) -> ExplainTaskResponse:
    answer: ExplainTaskResponse = await live.call(ExplainTaskRequest(task_id=task_id))
    return answer


async def test_an_offer_has_the_tokens_and_so_has_the_task(live: LiveEngine) -> None:
    offer = await running(live, "a", "repo", "docs r")

    stored = await live.task("task_a")
    assert [one.path for one in offer.task.locks] == ["docs", "repo"]
    assert all(one.fencing_token and one.lock_id for one in offer.task.locks)
    assert list(stored.locks) == list(offer.task.locks)
    await live.complete(offer)
    assert not any(one.fencing_token or one.lock_id for one in (await live.task("task_a")).locks)


async def test_running_attempts_keep_their_locks_and_those_that_wait_are_parked_again(live: LiveEngine) -> None:
    offer = await running(live, "holder", "repo")
    waiting = [await declare(live, name, "repo/src") for name in ("first", "second")]
    free = await declare(live, "free", "docs")
    token = offer.task.locks[0].fencing_token

    await live.restart()

    live.engine.check_fence(CheckFenceRequest(path="repo/a", fencing_token=token), USER)
    assert list((await live.task("task_holder")).locks) == list(offer.task.locks)
    for task_id in waiting:
        blocker = next(one for one in (await explain(live, task_id)).blockers if one.kind == WAIT_KIND_LOCK)
        assert list(blocker.blocked_by) == ["task_holder"]
    agent_id = await live.register(slots=3)
    [other] = await live.lease(agent_id, max_tasks=3)
    assert other.task.task_id == free
    await live.complete(offer)
    [next_one] = await live.lease(agent_id, max_tasks=3)
    assert next_one.task.task_id == waiting[0]
    assert next_one.task.locks[0].fencing_token > token


async def test_a_ticket_does_not_overtake_a_task_over_a_restart(live: LiveEngine) -> None:
    offer = await running(live, "holder", "repo")
    task_id = await declare(live, "early", "repo", "docs")
    ticket = (await live.call(AcquireLocksRequest(items=items("docs"), keep_queued=True))).ticket
    assert ticket.position == 2

    await live.restart()

    assert (await live.call(AcquireLocksRequest(items=items("docs/x"), keep_queued=True))).ticket.position == 3
    agent_id = await live.register()
    await live.complete(offer)
    assert (await live.offer(agent_id)).task.task_id == task_id


async def test_a_crash_with_an_agent_that_never_comes_back_frees_its_locks(live: LiveEngine) -> None:
    await running(live, "holder", "repo")
    waiting = await declare(live, "next", "repo")

    await live.crash()
    agent_id = await live.register()
    assert (await live.task("task_holder")).state == TASK_STATE_RUNNING
    await live.advance(11)

    assert (await live.task("task_holder")).state == TASK_STATE_QUEUED
    assert (await live.offer(agent_id)).task.task_id == waiting
