"""LeaseTasks waits for work, and loses nothing: not the call, not the answer, not the caller."""

from __future__ import annotations

import asyncio

import pytest
from google.protobuf.duration_pb2 import Duration
from kapell.v1.agent_pb2 import DrainAgentRequest, ResumeAgentRequest
from kapell.v1.task_pb2 import TASK_STATE_QUEUED, TASK_STATE_RUNNING, CancelTaskRequest, RetryPolicy
from kapell.v1.worker_pb2 import LeaseTasksRequest
from kapell_server.domain.errors import KapellError

from tests.support.live_engine import NO_WAIT, LiveEngine, new_task, settled


async def test_a_waiting_call_is_answered_by_the_commit_that_has_work_for_it(live: LiveEngine) -> None:
    agent_id = await live.register()
    poll = await settled(live.call(LeaseTasksRequest(agent_id=agent_id)))
    await live.pulse()
    assert live.engine.diagnostics().open_polls == 1

    created = (await live.call(new_task(prompt="say hello"))).task

    [offer] = (await poll).offers
    assert (offer.task.task_id, offer.task.prompt, offer.attempt) == (created.task_id, "say hello", 1)
    assert offer.task.state == TASK_STATE_RUNNING
    assert offer.ttl_remaining.seconds == 10
    assert live.engine.diagnostics().open_polls == 0


async def test_a_call_without_patience_gets_what_there_is(on_sqlite: LiveEngine) -> None:
    agent_id = await on_sqlite.register(slots=3)
    await on_sqlite.together(*[new_task() for _ in range(2)])

    offers = await on_sqlite.lease(agent_id, max_tasks=3)

    assert len(offers) == 2


async def test_a_call_without_patience_gets_what_its_own_batch_makes_ready(on_sqlite: LiveEngine) -> None:
    agent_id = await on_sqlite.register()

    _, answer = await on_sqlite.together(new_task(), LeaseTasksRequest(agent_id=agent_id, wait=NO_WAIT))

    assert len(answer.offers) == 1


async def test_a_call_that_found_nothing_answers_empty(on_sqlite: LiveEngine) -> None:
    agent_id = await on_sqlite.register()

    answer = await on_sqlite.call(LeaseTasksRequest(agent_id=agent_id, wait=Duration(nanos=1_000_000)))

    assert list(answer.offers) == []
    assert answer.revision == on_sqlite.engine.revision


async def test_the_same_poll_id_gets_the_same_offers(live: LiveEngine) -> None:
    agent_id = await live.register(slots=2)
    await live.create(prompt="p")
    first = await live.lease(agent_id, poll_id="poll-1")

    again = await live.lease(agent_id, poll_id="poll-1")

    assert [(offer.lease_token, offer.task) for offer in again] == [(offer.lease_token, offer.task) for offer in first]
    assert (await live.task(first[0].task.task_id)).attempt == 1


async def test_a_repeated_call_takes_the_place_of_the_one_that_still_waits(live: LiveEngine) -> None:
    agent_id = await live.register()
    request = LeaseTasksRequest(agent_id=agent_id, poll_id="poll-1")
    lost = await settled(live.call(request))
    await live.pulse()
    repeated = await settled(live.call(request))
    await live.pulse()
    assert list((await lost).offers) == []
    assert live.engine.diagnostics().open_polls == 1

    task = await live.create()

    [offer] = (await repeated).offers
    assert offer.task.task_id == task.task_id


async def test_calls_without_a_poll_id_wait_side_by_side(live: LiveEngine) -> None:
    agent_id = await live.register(slots=2)
    request = LeaseTasksRequest(agent_id=agent_id)
    polls = [await settled(live.call(request)) for _ in range(2)]
    await live.pulse()

    await live.together(new_task(), new_task())

    assert [len((await poll).offers) for poll in polls] == [1, 1]


async def test_the_same_poll_id_gets_the_same_offers_after_a_crash(live: LiveEngine) -> None:
    agent_id = await live.register()
    await live.create(prompt="p")
    [first] = await live.lease(agent_id, poll_id="poll-1")

    await live.crash()

    [again] = await live.lease(agent_id, poll_id="poll-1")
    assert (again.lease_token, again.task.prompt) == (first.lease_token, "p")


async def test_another_poll_id_gets_other_tasks(live: LiveEngine) -> None:
    agent_id = await live.register(slots=2)
    await live.together(new_task(), new_task())

    [one], [other] = await live.lease(agent_id, poll_id="poll-1"), await live.lease(agent_id, poll_id="poll-2")

    assert one.task.task_id != other.task.task_id


async def test_offers_that_ended_are_not_offered_again(on_sqlite: LiveEngine) -> None:
    agent_id = await on_sqlite.register()
    await on_sqlite.create()
    [offer] = await on_sqlite.lease(agent_id, poll_id="poll-1")
    await on_sqlite.complete(offer)

    assert await on_sqlite.lease(agent_id, poll_id="poll-1") == []


async def test_a_caller_that_left_gets_nothing(live: LiveEngine) -> None:
    agent_id = await live.register()
    poll = await settled(live.call(LeaseTasksRequest(agent_id=agent_id)))
    await live.pulse()
    poll.cancel()
    await asyncio.wait([poll])

    task = await live.create()

    assert (await live.task(task.task_id)).state == TASK_STATE_QUEUED
    assert live.engine.diagnostics().open_polls == 0


async def test_a_caller_that_left_with_the_answer_on_its_way_hands_the_offer_back(on_sqlite: LiveEngine) -> None:
    agent_id = await on_sqlite.register()
    poll = await settled(on_sqlite.call(LeaseTasksRequest(agent_id=agent_id)))
    await on_sqlite.pulse()
    ring, before = on_sqlite.engine.ring, on_sqlite.engine.revision

    async def leave_between_commit_and_answer() -> None:
        await ring.wait_resource(agent_id, before, 30)
        poll.cancel()

    leaving = await settled(leave_between_commit_and_answer())
    task = await on_sqlite.create(retry_policy=RetryPolicy(max_attempts=1))
    await leaving
    await asyncio.wait([poll])
    assert poll.cancelled()

    await on_sqlite.pulse()

    found = await on_sqlite.task(task.task_id)
    assert (found.state, found.attempt, found.attempts_used) == (TASK_STATE_QUEUED, 1, 0)


async def test_more_slots_get_more_tasks_and_no_more_than_asked_for(live: LiveEngine) -> None:
    agent_id = await live.register(slots=4)
    await live.together(*[new_task() for _ in range(9)])

    first = await live.lease(agent_id, max_tasks=3)
    second = await live.lease(agent_id, max_tasks=64)

    assert (len(first), len(second)) == (3, 1)
    assert await live.lease(agent_id) == []


async def test_a_draining_agent_waits_and_is_served_when_it_resumes(live: LiveEngine) -> None:
    agent_id = await live.register()
    await live.call(DrainAgentRequest(agent_id=agent_id))
    poll = await settled(live.call(LeaseTasksRequest(agent_id=agent_id)))
    await live.create()
    assert not poll.done()

    await live.call(ResumeAgentRequest(agent_id=agent_id))

    assert len((await poll).offers) == 1


async def test_a_freed_slot_is_used_at_once(live: LiveEngine) -> None:
    agent_id = await live.register()
    await live.together(new_task(), new_task())
    offer = await live.offer(agent_id)
    poll = await settled(live.call(LeaseTasksRequest(agent_id=agent_id)))

    await live.complete(offer)

    assert len((await poll).offers) == 1


async def test_an_offer_of_a_cancelled_task_is_offered_as_cancelling_to_a_repeated_call(on_sqlite: LiveEngine) -> None:
    agent_id = await on_sqlite.register()
    task = await on_sqlite.create()
    await on_sqlite.lease(agent_id, poll_id="poll-1")
    await on_sqlite.call(CancelTaskRequest(task_id=task.task_id))

    [offer] = await on_sqlite.lease(agent_id, poll_id="poll-1")

    assert (await on_sqlite.beat(agent_id, offer)).leases[0].directive == 2, "CANCEL"


async def test_waiting_calls_are_refused_when_the_server_stops(on_sqlite: LiveEngine) -> None:
    agent_id = await on_sqlite.register()
    poll = await settled(on_sqlite.call(LeaseTasksRequest(agent_id=agent_id)))
    await on_sqlite.pulse()

    await on_sqlite.engine.stop()

    with pytest.raises(KapellError, match="stopping"):
        await poll


async def test_an_unknown_agent_cannot_wait(on_sqlite: LiveEngine) -> None:
    refusal = await on_sqlite.refusal(LeaseTasksRequest(agent_id="agent_unknown"))

    assert refusal.reason_name == "AGENT_NOT_FOUND"
    assert on_sqlite.engine.diagnostics().open_polls == 0
