"""The database is the truth: a new engine on it goes on where the old one was (D1, G2, G3)."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.agent_pb2 import (
    AGENT_STATE_ACTIVE,
    AGENT_STATE_LOST,
    AGENT_STATE_PENDING,
    AGENT_STATE_STARTING,
    AGENT_STATE_TERMINATING,
    DeleteAgentRequest,
    TerminateAgentRequest,
)
from kapell.v1.common_pb2 import ProcessExit
from kapell.v1.task_pb2 import (
    TASK_STATE_CANCELLED,
    TASK_STATE_CANCELLING,
    TASK_STATE_FAILED,
    TASK_STATE_PENDING,
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    TASK_STATE_SUCCEEDED,
    CancelTaskRequest,
    TaskProgress,
    TaskTimeouts,
)
from kapell.v1.worker_pb2 import FailTaskRequest, HeartbeatRequest, RegisterWorkerRequest, ReportProgressRequest
from kapell_server.domain.access import Caller
from kapell_server.domain.times import SECOND, stamp
from kapell_server.engine.facts import AgentProcessExited, AgentProcessStarted

from tests.support.live_engine import LiveEngine, new_task


def agent_itself(live: LiveEngine, agent_id: str, instance: int = 1) -> Caller:
    caller = live.keyring.authenticate(live.keyring.agent_token(agent_id, instance))
    assert caller is not None
    return caller


async def test_log_and_tasks_are_as_they_were(live: LiveEngine) -> None:
    await live.create(prompt="p", labels={"a": "b"})
    [before] = await live.log()
    log_id = live.engine.log_id

    await live.crash()

    [after] = await live.log()
    assert after == before
    assert (live.engine.revision, live.engine.log_id) == (1, log_id)
    assert (await live.task(after.resource_id)).prompt == "p"
    assert (await live.create()).revision == 2


async def test_running_work_survives(live: LiveEngine) -> None:
    agent_id = await live.register()
    await live.create(prompt="p")
    offer = await live.offer(agent_id)
    live.clock.advance(9)

    await live.crash()
    await live.advance(9)

    beat = await live.beat(agent_id, offer)
    assert beat.leases[0].directive == 1, "CONTINUE"
    assert (await live.complete(offer, "r")).state == TASK_STATE_SUCCEEDED
    assert (await live.task(offer.task.task_id)).result.string_value == "r"


async def test_work_of_an_agent_that_died_with_the_server_is_given_to_another(live: LiveEngine) -> None:
    await live.register()
    task = await live.create()
    agent_id = await live.register()
    offer = await live.offer(agent_id)
    await live.beat(agent_id, offer)
    await live.crash()

    await live.advance(10)

    assert (await live.task(task.task_id)).state == TASK_STATE_QUEUED
    assert (await live.agent(agent_id)).state == AGENT_STATE_LOST
    other = await live.register()
    assert (await live.offer(other)).task.task_id == task.task_id
    refusal = await live.refusal(FailTaskRequest(lease_token=offer.lease_token))
    assert refusal.reason_name == "LEASE_LOST"


async def test_queued_tasks_keep_their_order(live: LiveEngine) -> None:
    low, high, second = [
        (await live.create(priority=priority, display_name=name)).display_name
        for priority, name in ((100, "low"), (900, "high"), (900, "second"))
    ]
    agent_id = await live.register(slots=3)

    await live.crash()

    offers = await live.lease(agent_id, max_tasks=3)
    assert [offer.task.display_name for offer in offers] == [high, second, low]
    assert live.engine.diagnostics().ready_tasks == {}


async def test_deadlines_are_kept(live: LiveEngine) -> None:
    later = Timestamp()
    stamp(later, live.clock.now_ns() + 60 * SECOND)
    pending = await live.create("nobody", not_before_time=later)
    doomed = await live.create("nobody", timeouts=TaskTimeouts(queue_timeout=Duration(seconds=30)))

    await live.crash()
    await live.advance(31)
    assert (await live.task(doomed.task_id)).state == TASK_STATE_FAILED
    assert (await live.task(pending.task_id)).state == TASK_STATE_PENDING

    await live.crash()
    await live.advance(30)
    assert (await live.task(pending.task_id)).state == TASK_STATE_QUEUED


async def test_what_was_due_while_the_server_was_down_is_done_at_its_start(live: LiveEngine) -> None:
    doomed = await live.create("nobody", timeouts=TaskTimeouts(queue_timeout=Duration(seconds=30)))
    await live.stop()
    live.clock.advance(3600)

    await live.start()

    await live.engine.ring.wait_beyond(doomed.revision, 30)
    assert (await live.task(doomed.task_id)).state == TASK_STATE_FAILED


async def test_a_cancel_reaches_the_agent_after_the_restart(live: LiveEngine) -> None:
    agent_id = await live.register()
    task = await live.create()
    offer = await live.offer(agent_id)
    await live.call(CancelTaskRequest(task_id=task.task_id))

    await live.crash()

    assert (await live.task(task.task_id)).state == TASK_STATE_CANCELLING
    assert (await live.beat(agent_id, offer)).leases[0].directive == 2, "CANCEL"
    assert (await live.complete(offer)).state == TASK_STATE_CANCELLED


async def test_an_agent_keeps_its_identity(live: LiveEngine) -> None:
    request = RegisterWorkerRequest(instance_key="the-process", agent_types=["shell"])
    first = await live.call(request)
    agent_id = first.agent.agent_id

    await live.crash()

    again = await live.call(request)
    assert (again.agent.agent_id, again.agent_token) == (agent_id, first.agent_token)
    stale = await live.refusal(HeartbeatRequest(agent_id=agent_id), agent_itself(live, agent_id, instance=2))
    assert stale.reason_name == "TOKEN_INVALID"
    await live.call(HeartbeatRequest(agent_id=agent_id), agent_itself(live, agent_id))


async def test_a_started_agent_has_its_time_to_register_anew(live: LiveEngine) -> None:
    agent = await live.spawn()
    await live.call(AgentProcessStarted(agent.agent_id, 4))
    live.clock.advance(29)

    await live.crash()
    await live.advance(29)
    assert (await live.agent(agent.agent_id)).state == AGENT_STATE_STARTING
    await live.advance(2)

    assert (await live.agent(agent.agent_id)).state == AGENT_STATE_TERMINATING


async def test_an_agent_may_wait_for_the_spawner_as_long_as_it_takes(live: LiveEngine) -> None:
    agent = await live.spawn()

    await live.advance(3600)

    assert (await live.agent(agent.agent_id)).state == AGENT_STATE_PENDING


async def test_ended_agents_are_not_loaded_until_they_are_asked_for(live: LiveEngine) -> None:
    agent = await live.spawn("agent_ended")
    await live.call(AgentProcessStarted(agent.agent_id, 4))
    ticket = live.keyring.authenticate(live.keyring.ticket(agent.agent_id))
    assert ticket is not None
    await live.call(RegisterWorkerRequest(instance_key="the-host"), ticket)
    assert (await live.agent(agent.agent_id)).state == AGENT_STATE_ACTIVE
    await live.call(AgentProcessExited(agent.agent_id, ProcessExit(code=1)))

    await live.crash()

    await live.call(DeleteAgentRequest(agent_id=agent.agent_id))
    refusal = await live.refusal(DeleteAgentRequest(agent_id=agent.agent_id))
    assert refusal.reason_name == "AGENT_NOT_FOUND"


async def test_how_an_agent_was_to_be_ended_is_not_known_after_a_restart(live: LiveEngine) -> None:
    agent = await live.spawn()
    await live.call(TerminateAgentRequest(agent_id=agent.agent_id, reason="enough"))
    known = live.engine.termination(agent.agent_id)
    assert known is not None
    assert (known.force, known.grace_seconds, known.reason) == (False, 5.0, "enough")

    await live.crash()

    assert live.engine.termination(agent.agent_id) is None
    assert (await live.agent(agent.agent_id)).state == AGENT_STATE_TERMINATING


async def test_progress_after_the_restart_is_taken(live: LiveEngine) -> None:
    agent_id = await live.register()
    await live.create()
    offer = await live.offer(agent_id)
    await live.crash()

    answer = await live.call(ReportProgressRequest(lease_token=offer.lease_token, progress=TaskProgress(fraction=0.5)))

    assert answer.directive == 1, "CONTINUE"
    assert (await live.task(offer.task.task_id)).progress.fraction == 0.5


async def test_occupancy_is_told_anew(live: LiveEngine) -> None:
    agent_id = await live.register(slots=2)
    await live.together(new_task(), new_task())
    one, two = await live.lease(agent_id, max_tasks=2)
    await live.crash()

    await live.complete(one)

    agent = await live.agent(agent_id)
    assert (agent.slots_used, list(agent.current_task_ids)) == (1, [two.task.task_id])
    assert (await live.task(two.task.task_id)).state == TASK_STATE_RUNNING
