"""WorkerService on a real server."""

from __future__ import annotations

import grpc
import pytest
from kapell.v1 import (
    admin_pb2,
    agent_pb2,
    task_pb2,
    worker_pb2,
)

from tests.rpc.conftest import failure
from tests.rpc.services import Services, create, register

pytestmark = pytest.mark.timeout(60)


async def test_a_lease_poll_longer_than_its_deadline_answers_empty(owner: Services, channel: grpc.aio.Channel) -> None:
    worker = await register(owner, channel)

    request = worker_pb2.LeaseTasksRequest(agent_id=worker.agent_id, wait={"seconds": 60})
    answer = await worker.call(worker.call.workers.LeaseTasks, request, timeout=1)

    assert not answer.offers


async def test_a_lost_lease_is_aborted_and_changes_nothing(owner: Services, channel: grpc.aio.Channel) -> None:
    worker = await register(owner, channel)
    await create(owner, task_id="task_a")
    offer = await worker.lease()
    await worker.call(worker.call.workers.ReleaseTask, worker_pb2.ReleaseTaskRequest(lease_token=offer.lease_token))
    await worker.lease()

    for late in (worker.complete(offer), worker.log(offer, 0, "late")):
        failed = await failure(late)
        assert (failed.code, failed.info.reason) == (grpc.StatusCode.ABORTED, "LEASE_LOST")
    batch = worker_pb2.BatchCompleteTasksRequest(completions=[{"lease_token": offer.lease_token}])
    answer = await worker.call(worker.call.workers.BatchCompleteTasks, batch)
    assert [outcome.lease_lost for outcome in answer.outcomes] == [True]
    beat = worker_pb2.HeartbeatRequest(agent_id=worker.agent_id, leases=[{"lease_token": offer.lease_token}])
    answer = await worker.call(worker.call.workers.Heartbeat, beat)
    assert answer.leases[0].directive == worker_pb2.LEASE_DIRECTIVE_LOST


async def test_the_token_of_an_ended_agent_reads_nothing(owner: Services, channel: grpc.aio.Channel) -> None:
    worker = await register(owner, channel)
    request = admin_pb2.GetServerInfoRequest()
    await worker.call(worker.call.admin.GetServerInfo, request)

    await worker.call(worker.call.workers.Deregister, worker_pb2.DeregisterRequest(agent_id=worker.agent_id))

    failed = await failure(worker.call(worker.call.admin.GetServerInfo, request))
    assert (failed.code, failed.info.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
    await owner(owner.admin.GetServerInfo, request)


async def test_progress_is_seen_by_readers(owner: Services, channel: grpc.aio.Channel) -> None:
    worker = await register(owner, channel)
    await create(owner, task_id="task_a")
    offer = await worker.lease()

    report = worker_pb2.ReportProgressRequest(lease_token=offer.lease_token, progress={"fraction": 0.5, "step": "half"})
    await worker.call(worker.call.workers.ReportProgress, report)

    task = (await owner(owner.tasks.GetTask, task_pb2.GetTaskRequest(task_id="task_a"))).task
    assert (task.progress.fraction, task.progress.step) == (0.5, "half")
    attempts = await owner(owner.tasks.ListTaskAttempts, task_pb2.ListTaskAttemptsRequest(task_id="task_a"))
    assert [(a.attempt, a.agent_id) for a in attempts.attempts] == [(1, worker.agent_id)]


async def test_an_agent_may_not_act_for_another(owner: Services, channel: grpc.aio.Channel) -> None:
    one, other = await register(owner, channel), await register(owner, channel)

    for method, request in [
        (one.call.workers.LeaseTasks, worker_pb2.LeaseTasksRequest(agent_id=other.agent_id)),
        (one.call.workers.Heartbeat, worker_pb2.HeartbeatRequest(agent_id=other.agent_id)),
        (one.call.workers.Deregister, worker_pb2.DeregisterRequest(agent_id=other.agent_id)),
    ]:
        failed = await failure(one.call(method, request))
        assert (failed.code, failed.info.reason) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_OWNER")
    request = worker_pb2.WatchDirectivesRequest(agent_id=other.agent_id)
    failed = await failure(one.call(one.call.workers.WatchDirectives, request).read())
    assert failed.info.reason == "NOT_OWNER"


async def test_directives_come_at_once_and_as_things_change(owner: Services, channel: grpc.aio.Channel) -> None:
    worker = await register(owner, channel)
    await create(owner, task_id="task_a")
    await worker.lease()
    request = worker_pb2.WatchDirectivesRequest(agent_id=worker.agent_id)
    stream = worker.call(worker.call.workers.WatchDirectives, request)
    agent = {"agent_id": worker.agent_id}

    assert (await stream.read()).directive == worker_pb2.AGENT_DIRECTIVE_NONE
    await owner(owner.tasks.CancelTask, task_pb2.CancelTaskRequest(task_id="task_a"))
    assert list((await stream.read()).cancel_task_ids) == ["task_a"]
    again = worker.call(worker.call.workers.WatchDirectives, request)
    assert list((await again.read()).cancel_task_ids) == ["task_a"]
    again.cancel()
    await owner(owner.agents.DrainAgent, agent_pb2.DrainAgentRequest(**agent))
    assert (await stream.read()).directive == worker_pb2.AGENT_DIRECTIVE_DRAIN
    await owner(owner.agents.ResumeAgent, agent_pb2.ResumeAgentRequest(**agent))
    assert (await stream.read()).directive == worker_pb2.AGENT_DIRECTIVE_NONE
    await worker.call(worker.call.workers.Deregister, worker_pb2.DeregisterRequest(**agent))
    assert (await stream.read()).directive == worker_pb2.AGENT_DIRECTIVE_STOP
    assert await stream.read() is grpc.aio.EOF
    ended = await failure(worker.call(worker.call.workers.WatchDirectives, request).read())
    assert ended.info.reason == "TOKEN_INVALID"
