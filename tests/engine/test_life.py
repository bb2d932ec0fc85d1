"""The engine starts, refuses when it must, tells how it is, and stops without losing what it took."""

from __future__ import annotations

import asyncio

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from kapell.v1.agent_pb2 import (
    AGENT_STATE_ACTIVE,
    AGENT_STATE_LOST,
    TERMINATE_MODE_FORCE,
    Agent,
    DeleteAgentRequest,
    TerminateAgentRequest,
    UpdateAgentRequest,
)
from kapell.v1.common_pb2 import ProcessExit
from kapell.v1.error_pb2 import ERROR_REASON_STORAGE_FULL
from kapell.v1.event_pb2 import Event
from kapell.v1.queue_pb2 import GetQueueStatsRequest
from kapell.v1.task_pb2 import CancelTaskRequest
from kapell.v1.worker_pb2 import (
    LEASE_DIRECTIVE_CANCEL,
    LEASE_DIRECTIVE_CONTINUE,
    DeregisterRequest,
    LeaseTasksRequest,
    RegisterWorkerRequest,
)
from kapell_server.domain import access
from kapell_server.domain.errors import KapellError
from kapell_server.engine.facts import AgentProcessExited, AgentStartFailed

from tests.support.live_engine import USER, LiveEngine, new_task, settled


async def test_accepted_commands_are_finished_before_the_stop(live: LiveEngine) -> None:
    accepted = await settled(live.together(*[new_task() for _ in range(20)]))

    await live.engine.stop()

    assert [answer.task.revision for answer in await accepted] == list(range(1, 21))
    assert (await live.refusal(new_task())).reason_name == "SERVER_DRAINING"


async def test_what_a_batch_entails_is_not_the_doing_of_who_only_asked(live: LiveEngine) -> None:
    agent_id = await live.register()
    await live.create()
    begun = live.engine.revision

    polling = live.call(LeaseTasksRequest(agent_id=agent_id))
    await asyncio.gather(polling, live.call(GetQueueStatsRequest(), caller=access.user("curious")))

    events = [Event.FromString(record.data) for record in await live.log() if record.revision > begun]
    assert events[-1].agent.current_task_ids, "the agent is told to be busy in this batch"
    assert "curious" not in {event.actor.id for event in events}


async def test_stopping_twice_is_stopping_once(on_sqlite: LiveEngine) -> None:
    await on_sqlite.engine.stop()

    await on_sqlite.engine.stop()


async def test_a_full_mailbox_refuses_at_once(on_sqlite: LiveEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kapell_server.engine.engine._MAILBOX", 5)

    answers = await on_sqlite.together(*[new_task() for _ in range(8)])

    refused = [answer for answer in answers if isinstance(answer, KapellError)]
    assert [error.reason_name for error in refused] == ["QUEUE_FULL"] * 3
    assert refused[0].retry_after == 0.5
    assert (await on_sqlite.create()).revision == 6


async def test_more_commands_than_a_batch_takes_are_all_answered(on_sqlite: LiveEngine) -> None:
    answers = await on_sqlite.together(*[new_task() for _ in range(700)])

    assert [answer.task.revision for answer in answers] == list(range(1, 701))


async def test_a_caller_that_gives_up_does_not_take_its_command_back(on_sqlite: LiveEngine) -> None:
    creation = await settled(on_sqlite.call(new_task(task_id="task_kept")))
    creation.cancel()
    await asyncio.wait([creation])

    await on_sqlite.pulse()

    assert (await on_sqlite.task("task_kept")).revision == 1


async def test_diagnostics_tell_what_is_going_on(on_sqlite: LiveEngine) -> None:
    live = on_sqlite
    assert live.engine.diagnostics().commit_p99 == 0.0
    agent_id = await live.register("shell")
    poll = await settled(live.call(LeaseTasksRequest(agent_id=agent_id)))
    await live.together(*[new_task("other") for _ in range(3)])

    found = live.engine.diagnostics()

    assert (found.mailbox_depth, found.mailbox_capacity, found.open_polls) == (0, 8192, 1)
    assert found.ready_tasks == {"other": 3}
    assert found.commands == 5
    assert 0 < found.commits <= 5
    assert 0 < found.commit_p50 <= found.commit_p99
    poll.cancel()
    await asyncio.wait([poll])


async def test_watchers_are_told_after_the_commit_and_in_order(live: LiveEngine) -> None:
    waiting = await settled(live.engine.ring.wait_beyond(0, 30))

    await live.together(*[new_task() for _ in range(5)])

    assert await waiting
    records = live.engine.ring.after(0, 100)
    assert records is not None
    assert [record.revision for record in records] == [1, 2, 3, 4, 5]
    assert [record.data for record in records] == [record.data for record in await live.log()]


async def test_a_lease_is_checked_without_the_writer(on_sqlite: LiveEngine) -> None:
    live = on_sqlite
    agent_id = await live.register()
    task = await live.create()
    offer = await live.offer(agent_id)
    assert live.engine.check_lease(offer.lease_token, USER) == (task.task_id, 1, LEASE_DIRECTIVE_CONTINUE)
    live.clock.advance(9)
    live.engine.check_lease(offer.lease_token, USER)
    await live.advance(9)

    await live.call(CancelTaskRequest(task_id=task.task_id))
    assert live.engine.check_lease(offer.lease_token, USER) == (task.task_id, 1, LEASE_DIRECTIVE_CANCEL)

    await live.complete(offer)
    with pytest.raises(KapellError, match="lease is lost"):
        live.engine.check_lease(offer.lease_token, USER)


async def test_how_an_agent_is_to_be_ended_is_known_until_it_has(on_sqlite: LiveEngine) -> None:
    agent = await on_sqlite.spawn()
    assert on_sqlite.engine.termination(agent.agent_id) is None

    graceful = TerminateAgentRequest(agent_id=agent.agent_id, grace_period=Duration(seconds=60), reason="slowly")
    await on_sqlite.call(graceful)
    known = on_sqlite.engine.termination(agent.agent_id)
    assert known is not None
    assert (known.force, known.grace_seconds, known.reason) == (False, 60.0, "slowly")

    await on_sqlite.call(TerminateAgentRequest(agent_id=agent.agent_id, mode=TERMINATE_MODE_FORCE))
    await on_sqlite.call(graceful)
    forced = on_sqlite.engine.termination(agent.agent_id)
    assert forced is not None
    assert (forced.force, forced.grace_seconds) == (True, 0.0)

    await on_sqlite.call(AgentProcessExited(agent.agent_id, ProcessExit(signal=9)))
    assert on_sqlite.engine.termination(agent.agent_id) is None


async def test_agents_that_have_ended_take_no_memory(live: LiveEngine) -> None:
    state = live.engine._state
    kept = await live.register()
    for _ in range(3):
        await live.call(DeregisterRequest(agent_id=await live.register()))
    spawned = (await live.spawn()).agent_id
    await live.call(AgentStartFailed(spawned, "no program"))

    assert set(state.agents) == set(state.instance_keys) == set(state.agent_seen_ns) == {kept}


async def test_an_ended_agent_can_still_be_renamed_and_deleted(live: LiveEngine) -> None:
    agent_id = await live.register()
    await live.call(DeregisterRequest(agent_id=agent_id))
    before = (await live.agent(agent_id)).revision

    renamed = Agent(agent_id=agent_id, display_name="the late one")
    await live.call(UpdateAgentRequest(agent=renamed, update_mask=FieldMask(paths=["display_name"])))
    assert (await live.agent(agent_id)).display_name == "the late one"
    assert (await live.log())[-1].revision == before + 1
    await live.call(DeleteAgentRequest(agent_id=agent_id))

    assert live.engine._state.agents == {}
    with pytest.raises(KapellError, match="was not found"):
        await live.agent(agent_id)


async def test_terminating_what_has_ended_is_not_remembered(on_sqlite: LiveEngine) -> None:
    agent = await on_sqlite.spawn()
    await on_sqlite.call(AgentProcessExited(agent.agent_id, ProcessExit()))

    await on_sqlite.call(TerminateAgentRequest(agent_id=agent.agent_id, mode=TERMINATE_MODE_FORCE))

    assert on_sqlite.engine.termination(agent.agent_id) is None


async def test_a_lost_worker_that_registers_again_and_dies_is_lost_again(on_sqlite: LiveEngine) -> None:
    registration = RegisterWorkerRequest(instance_key="the same process", agent_types=["shell"], slots=1)
    agent_id = (await on_sqlite.call(registration)).agent.agent_id
    for _ in range(2):
        await on_sqlite.advance(8)
    assert (await on_sqlite.agent(agent_id)).state == AGENT_STATE_LOST

    again = await on_sqlite.call(registration)
    assert (again.agent.agent_id, again.agent.state) == (agent_id, AGENT_STATE_ACTIVE)
    for _ in range(2):
        await on_sqlite.advance(8)

    assert (await on_sqlite.agent(agent_id)).state == AGENT_STATE_LOST


async def test_housekeeping_survives_a_database_that_cannot(
    on_sqlite: LiveEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kapell_server.engine.engine._MAINTENANCE_SECONDS", 0.0)
    refused, done = asyncio.Event(), asyncio.Event()

    async def maintain() -> None:
        if not refused.is_set():
            refused.set()
            raise KapellError(ERROR_REASON_STORAGE_FULL, "Nothing was changed: the disk is full.")
        done.set()

    await on_sqlite.restart()
    on_sqlite.database.maintain = maintain  # type: ignore[method-assign]
    await on_sqlite.create()
    await refused.wait()
    await on_sqlite.create()

    await done.wait()


async def test_an_agent_lives_in_its_instance_until_it_ends(on_sqlite: LiveEngine) -> None:
    def lives(agent_id: str, instance: int) -> bool:
        caller = on_sqlite.keyring.authenticate(on_sqlite.keyring.agent_token(agent_id, instance))
        assert caller is not None
        return on_sqlite.engine.lives(caller)

    agent_id = await on_sqlite.register()
    assert lives(agent_id, 1)
    assert not lives(agent_id, 2)
    assert not lives("agent_unknown", 1)

    await on_sqlite.call(DeregisterRequest(agent_id=agent_id))

    assert not lives(agent_id, 1)
