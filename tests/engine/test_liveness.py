"""Liveness over a real engine: what passes the writer by, what a restart forgets, and what it must not."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from kapell.v1.agent_pb2 import (
    AGENT_ACTIVITY_IDLE,
    AGENT_ACTIVITY_NOT_POLLING,
    AGENT_ACTIVITY_STALLED,
    AGENT_ACTIVITY_WAITING_FOR_LOCK,
    AGENT_ACTIVITY_WORKING,
)
from kapell.v1.task_pb2 import (
    ATTEMPT_WAIT_KIND_LOCK,
    TASK_STATE_CANCELLING,
    TASK_STATE_RUNNING,
    AttemptWait,
    TaskTimeouts,
)
from kapell.v1.worker_pb2 import HeartbeatRequest, Offer

from tests.support.live_engine import USER, LiveEngine


async def live_on(live: LiveEngine, agent_id: str, *offers: Offer, seconds: int) -> None:
    """Lets time pass while the agent sends heartbeats."""
    for _ in range(seconds // 5):
        live.clock.advance(5)
        await live.beat(agent_id, *offers)


async def test_logs_are_news(live: LiveEngine) -> None:
    agent_id = await live.register()
    task = await live.create(timeouts=TaskTimeouts(stall_timeout=Duration(seconds=30)))
    offer = await live.offer(agent_id)

    for _ in range(3):
        await live_on(live, agent_id, offer, seconds=25)
        live.engine.check_lease(offer.lease_token, USER)
    assert (await live.task(task.task_id)).state == TASK_STATE_RUNNING
    await live_on(live, agent_id, offer, seconds=35)

    assert (await live.task(task.task_id)).state == TASK_STATE_CANCELLING


async def test_an_agent_that_logs_again_is_not_shown_as_stalled_any_more(live: LiveEngine) -> None:
    agent_id = await live.register()
    await live.create()
    offer = await live.offer(agent_id)
    await live_on(live, agent_id, offer, seconds=610)
    assert (await live.agent(agent_id)).activity == AGENT_ACTIVITY_STALLED

    live.engine.check_lease(offer.lease_token, USER)
    await live_on(live, agent_id, offer, seconds=10)

    assert (await live.agent(agent_id)).activity == AGENT_ACTIVITY_WORKING


async def test_after_a_restart_every_time_begins_anew(live: LiveEngine) -> None:
    agent_id = await live.register()
    idle = await live.register("other")
    task = await live.create(timeouts=TaskTimeouts(stall_timeout=Duration(seconds=30)))
    offer = await live.offer(agent_id)
    await both(live, agent_id, offer, idle, seconds=25)

    await live.crash()
    await both(live, agent_id, offer, idle, seconds=25)
    assert (await live.task(task.task_id)).state == TASK_STATE_RUNNING
    await both(live, agent_id, offer, idle, seconds=10)
    assert (await live.task(task.task_id)).state == TASK_STATE_CANCELLING
    await both(live, agent_id, offer, idle, seconds=75)
    assert (await live.agent(idle)).activity == AGENT_ACTIVITY_IDLE
    await both(live, agent_id, offer, idle, seconds=15)

    assert (await live.agent(idle)).activity == AGENT_ACTIVITY_NOT_POLLING


async def both(live: LiveEngine, agent_id: str, offer: Offer, idle: str, *, seconds: int) -> None:
    """Lets time pass while both agents send heartbeats."""
    for _ in range(seconds // 5):
        live.clock.advance(5)
        await live.beat(agent_id, offer)
        await live.beat(idle)


async def test_a_wait_is_told_again_after_a_restart_or_is_over(live: LiveEngine) -> None:
    agent_id = await live.register()
    task = await live.create()
    offer = await live.offer(agent_id)
    says = HeartbeatRequest(agent_id=agent_id)
    says.leases.add(lease_token=offer.lease_token, waiting=AttemptWait(kind=ATTEMPT_WAIT_KIND_LOCK, detail="repo/src"))
    await live.call(says)

    await live.crash()
    assert (await live.task(task.task_id)).waiting.detail == "repo/src"
    await live.call(says)
    assert (await live.agent(agent_id)).activity == AGENT_ACTIVITY_WAITING_FOR_LOCK
    await live.crash()
    await live.beat(agent_id, offer)

    assert not (await live.task(task.task_id)).HasField("waiting")
    assert (await live.agent(agent_id)).activity == AGENT_ACTIVITY_WORKING
