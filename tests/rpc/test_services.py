"""Every service on a real server, over a real connection: what is asked, done and refused."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from kapell.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    agent_pb2,
    agent_pb2_grpc,
    event_pb2,
    event_pb2_grpc,
    task_pb2,
    task_pb2_grpc,
    watch_pb2,
    worker_pb2,
    worker_pb2_grpc,
)
from kapell.v1.common_pb2 import LogEntry
from kapell_server.testing import TestServer, serve

from tests.rpc.conftest import bearer, failure

pytestmark = pytest.mark.timeout(60)


class Services:
    """The stubs of one caller."""

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self._token = token
        self.tasks: Any = task_pb2_grpc.TaskServiceStub(channel)
        self.agents: Any = agent_pb2_grpc.AgentServiceStub(channel)
        self.workers: Any = worker_pb2_grpc.WorkerServiceStub(channel)
        self.events: Any = event_pb2_grpc.EventServiceStub(channel)
        self.admin: Any = admin_pb2_grpc.AdminServiceStub(channel)

    def __call__(self, method: Any, request: Any, timeout: float | None = 20) -> Any:
        return method(request, metadata=bearer(self._token), timeout=timeout)


@dataclass
class Worker:
    """A registered external agent."""

    agent_id: str
    call: Services

    async def lease(self, wait: int = 10) -> worker_pb2.Offer:
        request = worker_pb2.LeaseTasksRequest(agent_id=self.agent_id, wait={"seconds": wait})
        answer = await self.call(self.call.workers.LeaseTasks, request)
        assert len(answer.offers) == 1
        return answer.offers[0]

    async def log(self, offer: worker_pb2.Offer, offset: int, *lines: str) -> Any:
        request = worker_pb2.AppendTaskLogsRequest(
            lease_token=offer.lease_token, offset=offset, entries=[LogEntry(text=line) for line in lines]
        )
        return await self.call(self.call.workers.AppendTaskLogs, request)

    async def complete(self, offer: worker_pb2.Offer) -> Any:
        request = worker_pb2.CompleteTaskRequest(lease_token=offer.lease_token, result={"string_value": "ok"})
        return await self.call(self.call.workers.CompleteTask, request)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[TestServer]:
    async with serve(tmp_path) as running:
        yield running


@pytest.fixture
async def channel(server: TestServer) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(server.address) as opened:
        yield opened


@pytest.fixture
def owner(server: TestServer, channel: grpc.aio.Channel) -> Services:
    return Services(channel, server.admin_token)


async def register(owner: Services, channel: grpc.aio.Channel, slots: int = 4) -> Worker:
    request = worker_pb2.RegisterWorkerRequest(instance_key=uuid.uuid4().hex, agent_types=["test"], slots=slots)
    answer = await owner(owner.workers.RegisterWorker, request)
    return Worker(answer.agent.agent_id, Services(channel, answer.agent_token))


async def create(owner: Services, **spec: Any) -> task_pb2.Task:
    spec.setdefault("agent_type", "test")
    answer = await owner(owner.tasks.CreateTask, task_pb2.CreateTaskRequest(task=spec))
    return answer.task


async def wait(owner: Services, task_id: str, seconds: int = 10) -> task_pb2.Task:
    request = task_pb2.WaitTaskRequest(task_id=task_id, wait={"seconds": seconds})
    return (await owner(owner.tasks.WaitTask, request)).task


async def test_a_created_task_is_read_listed_counted_and_updated(owner: Services) -> None:
    task = await create(owner, task_id="task_a", prompt="do it", input={"n": 1}, labels={"a": "b"})

    read = (await owner(owner.tasks.GetTask, task_pb2.GetTaskRequest(task_id="task_a"))).task
    listed = await owner(owner.tasks.ListTasks, task_pb2.ListTasksRequest())
    counted = await owner(owner.tasks.CountTasks, task_pb2.CountTasksRequest())
    update = task_pb2.UpdateTaskRequest(
        task={"task_id": "task_a", "priority": 900}, update_mask={"paths": ["priority"]}, etag=task.etag
    )
    updated = (await owner(owner.tasks.UpdateTask, update)).task

    assert (read.prompt, dict(read.input)) == ("do it", {"n": 1.0})
    assert [(t.task_id, t.prompt) for t in listed.tasks] == [("task_a", "")]
    assert listed.revision >= task.revision
    assert [(c.state, c.count) for c in counted.counts] == [(task_pb2.TASK_STATE_QUEUED, 1)]
    assert (updated.priority, updated.state) == (900, task_pb2.TASK_STATE_QUEUED)
    stale = await failure(owner(owner.tasks.UpdateTask, update))
    assert (stale.code, stale.info.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")


async def test_a_batch_is_created_whole_and_its_request_id_gives_the_same_answer(owner: Services) -> None:
    request = task_pb2.BatchCreateTasksRequest(
        tasks=[{"agent_type": "test"}, {"agent_type": "test"}], request_id="once"
    )
    first = await owner(owner.tasks.BatchCreateTasks, request)
    again = await owner(owner.tasks.BatchCreateTasks, request)

    assert [t.task_id for t in again.tasks] == [t.task_id for t in first.tasks]
    assert (first.replayed, again.replayed) == (False, True)
    request.tasks[0].prompt = "other"
    reused = await failure(owner(owner.tasks.BatchCreateTasks, request))
    assert (reused.code, reused.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")


async def test_unknown_ids_are_not_found_with_the_resource_named(owner: Services) -> None:
    missing = {"task_id": "task_none"}
    for method, request in [
        (owner.tasks.GetTask, task_pb2.GetTaskRequest(**missing)),
        (owner.tasks.WaitTask, task_pb2.WaitTaskRequest(**missing)),
        (owner.tasks.CancelTask, task_pb2.CancelTaskRequest(**missing)),
        (owner.tasks.ListTaskAttempts, task_pb2.ListTaskAttemptsRequest(**missing)),
    ]:
        failed = await failure(owner(method, request))
        assert (failed.code, failed.info.reason) == (grpc.StatusCode.NOT_FOUND, "TASK_NOT_FOUND")
        assert "ResourceInfo" in failed.details
    failed = await failure(owner(owner.agents.GetAgent, agent_pb2.GetAgentRequest(agent_id="agent_none")))
    assert (failed.code, failed.info.reason) == (grpc.StatusCode.NOT_FOUND, "AGENT_NOT_FOUND")


async def test_cancel_retry_and_delete_walk_the_states(owner: Services) -> None:
    await create(owner, task_id="task_a")

    cancelled = await owner(owner.tasks.CancelTask, task_pb2.CancelTaskRequest(task_id="task_a"))
    retried = await owner(owner.tasks.RetryTask, task_pb2.RetryTaskRequest(task_id="task_a"))
    conflict = await failure(owner(owner.tasks.RetryTask, task_pb2.RetryTaskRequest(task_id="task_a")))
    first = await owner(owner.tasks.DeleteTask, task_pb2.DeleteTaskRequest(task_id="task_a"))
    second = await owner(owner.tasks.DeleteTask, task_pb2.DeleteTaskRequest(task_id="task_a"))

    assert cancelled.task.state == task_pb2.TASK_STATE_CANCELLED
    assert retried.task.state == task_pb2.TASK_STATE_QUEUED
    assert (conflict.code, conflict.info.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "TASK_STATE_CONFLICT",
    )
    assert (first.deleted, second.deleted) == (False, True)


async def test_waiting_ends_when_the_task_does_and_not_before(owner: Services, channel: grpc.aio.Channel) -> None:
    worker = await register(owner, channel)
    await create(owner, task_id="task_a", prompt="do it")
    waiting = asyncio.ensure_future(wait(owner, "task_a", 30))
    offer = await worker.lease()
    assert offer.task.prompt == "do it"

    await worker.complete(offer)

    ended = await waiting
    assert (ended.state, ended.result.string_value) == (task_pb2.TASK_STATE_SUCCEEDED, "ok")
    assert ended.prompt == "do it"


async def test_a_wait_longer_than_its_deadline_answers_before_it(owner: Services) -> None:
    await create(owner, task_id="task_a")

    request = task_pb2.WaitTaskRequest(task_id="task_a", wait={"seconds": 60})
    answer = await owner(owner.tasks.WaitTask, request, timeout=1)

    assert answer.task.state == task_pb2.TASK_STATE_QUEUED


async def test_a_lease_poll_longer_than_its_deadline_answers_empty(owner: Services, channel: grpc.aio.Channel) -> None:
    worker = await register(owner, channel)

    request = worker_pb2.LeaseTasksRequest(agent_id=worker.agent_id, wait={"seconds": 60})
    answer = await worker.call(worker.call.workers.LeaseTasks, request, timeout=1)

    assert not answer.offers


async def read_logs(owner: Services, **request: Any) -> list[tuple[int, int, list[str]]]:
    call = owner(owner.tasks.StreamTaskLogs, task_pb2.StreamTaskLogsRequest(**request))
    return [(m.attempt, m.offset, [e.text for e in m.entries]) async for m in call]


async def test_logs_are_read_from_an_offset(owner: Services, channel: grpc.aio.Channel) -> None:
    worker = await register(owner, channel)
    await create(owner, task_id="task_a")
    assert await read_logs(owner, task_id="task_a") == [(0, 0, [])]
    offer = await worker.lease()
    assert await read_logs(owner, task_id="task_a") == [(1, 0, [])]

    answer = await worker.log(offer, 0, "one", "two")

    assert (answer.next_offset, answer.directive) == (2, worker_pb2.LEASE_DIRECTIVE_CONTINUE)
    assert (await worker.log(offer, 1, "two", "three")).next_offset == 3
    assert await read_logs(owner, task_id="task_a") == [(1, 0, ["one", "two", "three"])]
    assert await read_logs(owner, task_id="task_a", attempt=1, offset=2) == [(1, 2, ["three"])]
    gap = await failure(worker.log(offer, 9, "ten"))
    assert (gap.code, gap.info.reason, gap.info.metadata["expected"]) == (
        grpc.StatusCode.OUT_OF_RANGE,
        "LOG_OFFSET_GAP",
        "3",
    )
    assert (await failure(read_logs(owner, task_id="task_a", offset=4))).info.reason == "LOG_OFFSET_GAP"
    none = await failure(read_logs(owner, task_id="task_a", attempt=2))
    assert none.info.reason == "ATTEMPT_NOT_FOUND"


async def test_followed_logs_go_on_over_all_attempts_until_the_task_has_ended(
    owner: Services, channel: grpc.aio.Channel
) -> None:
    worker = await register(owner, channel)
    policy = {"max_attempts": 2, "initial_backoff": {"nanos": 1_000_000}}
    await create(owner, task_id="task_a", retry_policy=policy)
    following = asyncio.ensure_future(read_logs(owner, task_id="task_a", follow=True))

    first = await worker.lease()
    await worker.log(first, 0, "first try")
    failed = worker_pb2.FailTaskRequest(lease_token=first.lease_token, failure={"reason": "BROKEN"})
    await worker.call(worker.call.workers.FailTask, failed)
    second = await worker.lease()
    await worker.log(second, 0, "second try")
    await worker.complete(second)

    said = await following
    assert [(attempt, text) for attempt, _, texts in said for text in texts] == [
        (1, "first try"),
        (2, "second try"),
    ]


async def test_logs_of_one_attempt_end_with_it(owner: Services, channel: grpc.aio.Channel) -> None:
    worker = await register(owner, channel)
    await create(owner, task_id="task_a")
    first = await worker.lease()
    await worker.log(first, 0, "first try")
    following = asyncio.ensure_future(read_logs(owner, task_id="task_a", attempt=1, follow=True))

    release = worker_pb2.ReleaseTaskRequest(lease_token=first.lease_token)
    await worker.call(worker.call.workers.ReleaseTask, release)

    assert [texts for _, _, texts in await following] == [["first try"]]


async def test_deleting_a_task_deletes_its_logs(server: TestServer, owner: Services, channel: grpc.aio.Channel) -> None:
    worker = await register(owner, channel)
    await create(owner, task_id="task_a")
    offer = await worker.lease()
    await worker.log(offer, 0, "old")
    await worker.complete(offer)

    await owner(owner.tasks.DeleteTask, task_pb2.DeleteTaskRequest(task_id="task_a"))

    assert not [path for path in server.app.directory.logs.rglob("*") if path.is_file()]


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


@pytest.mark.parametrize("name", ["tasks", "agents", "events"])
async def test_a_watch_begins_with_a_bookmark_and_goes_on_with_what_happens(
    owner: Services, channel: grpc.aio.Channel, name: str
) -> None:
    method, request = {
        "tasks": (owner.tasks.WatchTasks, task_pb2.WatchTasksRequest()),
        "agents": (owner.agents.WatchAgents, agent_pb2.WatchAgentsRequest()),
        "events": (owner.events.Watch, event_pb2.WatchRequest()),
    }[name]
    stream = owner(method, request)
    assert (await stream.read()).bookmark.log_id.startswith("log_")

    await register(owner, channel)
    await create(owner, task_id="task_a")

    event = (await stream.read()).events[0]
    expected = watch_pb2.EVENT_KIND_TASK_CREATED if name == "tasks" else watch_pb2.EVENT_KIND_AGENT_SPAWNED
    assert event.kind == expected
    stream.cancel()


async def test_a_watch_from_the_future_or_another_log_is_refused(owner: Services) -> None:
    future = event_pb2.WatchRequest(options={"start_after_revision": 10_000})
    other = event_pb2.WatchRequest(options={"log_id": "log_other", "start_after_revision": 1})

    for request, reason in [(future, "REVISION_IN_FUTURE"), (other, "REVISION_COMPACTED")]:
        failed = await failure(owner(owner.events.Watch, request).read())
        assert (failed.code, failed.info.reason) == (grpc.StatusCode.OUT_OF_RANGE, reason)


async def test_events_are_listed_and_the_log_described(owner: Services) -> None:
    task = await create(owner, task_id="task_a")

    listed = await owner(owner.events.ListEvents, event_pb2.ListEventsRequest())
    info = await owner(owner.events.GetLogInfo, event_pb2.GetLogInfoRequest())

    assert [event.kind for event in listed.events] == [watch_pb2.EVENT_KIND_TASK_CREATED]
    assert listed.events[0].actor.id == "admin"
    assert (info.revision, listed.revision) == (task.revision, task.revision)
    bad = await failure(owner(owner.events.ListEvents, event_pb2.ListEventsRequest(page_token="x")))
    assert (bad.code, bad.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")


async def test_the_server_tells_what_it_is_and_how_it_feels(owner: Services, channel: grpc.aio.Channel) -> None:
    worker = await register(owner, channel)
    await create(owner, task_id="task_a", agent_type="nobody")
    stream = owner(owner.events.Watch, event_pb2.WatchRequest())
    await stream.read()

    info = await owner(owner.admin.GetServerInfo, admin_pb2.GetServerInfoRequest())
    now = await owner(owner.admin.GetDiagnostics, admin_pb2.GetDiagnosticsRequest())
    seen_by_agent = await worker.call(owner.admin.GetServerInfo, admin_pb2.GetServerInfoRequest())

    assert (info.database, info.principal) == ("sqlite", "admin")
    assert info.log_id.startswith("log_")
    assert info.limits.max_message_bytes == 1024 * 1024
    assert seen_by_agent.principal == worker.agent_id
    assert (now.open_watches, dict(now.ready_tasks)) == (1, {"nobody": 1})
    assert now.commits > 0
    assert now.resident_bytes > 10_000_000
    stream.cancel()


async def test_profiles_are_listed(owner: Services) -> None:
    answer = await owner(owner.agents.ListAgentProfiles, agent_pb2.ListAgentProfilesRequest())

    assert [(p.profile, list(p.spec.agent_types)) for p in answer.profiles] == [("shell", ["shell"])]


async def test_a_spawned_agent_does_a_task_and_ends_when_told(owner: Services) -> None:
    spawn = agent_pb2.SpawnAgentRequest(agent_id="agent_a", profile="shell", wait={"seconds": 20})
    spawned = (await owner(owner.agents.SpawnAgent, spawn)).agent
    assert (spawned.state, spawned.profile, spawned.runtime) == (
        agent_pb2.AGENT_STATE_ACTIVE,
        "shell",
        "command",
    )

    await create(owner, task_id="task_a", agent_type="shell", prompt="echo hello; echo done")
    done = await wait(owner, "task_a", 20)
    said = await read_logs(owner, task_id="task_a", follow=True)
    ended = await owner(owner.agents.TerminateAgent, agent_pb2.TerminateAgentRequest(agent_id="agent_a"))

    assert done.state == task_pb2.TASK_STATE_SUCCEEDED
    assert "hello" in [text for _, _, texts in said for text in texts]
    assert ended.agent.state == agent_pb2.AGENT_STATE_TERMINATED
    logs = owner(owner.agents.StreamAgentLogs, agent_pb2.StreamAgentLogsRequest(agent_id="agent_a", follow=True))
    assert [message.offset async for message in logs][:1] == [0]
    listed = await owner(owner.agents.ListAgents, agent_pb2.ListAgentsRequest())
    assert [agent.agent_id for agent in listed.agents] == ["agent_a"]
    await owner(owner.agents.DeleteAgent, agent_pb2.DeleteAgentRequest(agent_id="agent_a"))
    gone = await failure(owner(owner.agents.GetAgent, agent_pb2.GetAgentRequest(agent_id="agent_a")))
    assert gone.info.reason == "AGENT_NOT_FOUND"


async def test_followed_agent_logs_end_when_the_agent_does(owner: Services) -> None:
    spawn = agent_pb2.SpawnAgentRequest(agent_id="agent_a", profile="shell")
    await owner(owner.agents.SpawnAgent, spawn)
    request = agent_pb2.StreamAgentLogsRequest(agent_id="agent_a", follow=True)
    stream = owner(owner.agents.StreamAgentLogs, request)
    assert (await stream.read()).offset == 0

    force = agent_pb2.TerminateAgentRequest(agent_id="agent_a", mode=agent_pb2.TERMINATE_MODE_FORCE)
    await owner(owner.agents.TerminateAgent, force)

    while (message := await stream.read()) is not grpc.aio.EOF:
        assert message.entries


async def test_what_cannot_be_spawned_is_refused(owner: Services) -> None:
    nobody = agent_pb2.SpawnAgentRequest(profile="shel")
    nowhere = agent_pb2.SpawnAgentRequest(
        spec={"agent_types": ["x"], "command": {"argv": ["no-such-program-anywhere"]}}
    )

    profile = await failure(owner(owner.agents.SpawnAgent, nobody))
    program = await failure(owner(owner.agents.SpawnAgent, nowhere))

    assert (profile.code, profile.info.reason) == (grpc.StatusCode.NOT_FOUND, "PROFILE_NOT_FOUND")
    assert profile.info.metadata["known"] == "shell"
    assert (program.code, program.info.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "PROGRAM_NOT_FOUND",
    )
    listed = await owner(owner.agents.ListAgents, agent_pb2.ListAgentsRequest())
    assert not listed.agents


async def test_an_agents_labels_are_updated(owner: Services, channel: grpc.aio.Channel) -> None:
    worker = await register(owner, channel)

    request = agent_pb2.UpdateAgentRequest(
        agent={"agent_id": worker.agent_id, "labels": {"room": "blue"}}, update_mask={"paths": ["labels"]}
    )
    updated = await owner(owner.agents.UpdateAgent, request)

    assert dict(updated.agent.labels) == {"room": "blue"}
    read = await owner(owner.agents.GetAgent, agent_pb2.GetAgentRequest(agent_id=worker.agent_id))
    assert dict(read.agent.labels) == {"room": "blue"}
    assert read.agent.HasField("last_heartbeat_time")


async def test_a_task_survives_the_server(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, grpc.aio.insecure_channel(server.address) as channel:
        await create(Services(channel, server.admin_token), task_id="task_a")

    async with serve(tmp_path) as server, grpc.aio.insecure_channel(server.address) as channel:
        owner = Services(channel, server.admin_token)
        read = await owner(owner.tasks.GetTask, task_pb2.GetTaskRequest(task_id="task_a"))

    assert read.task.state == task_pb2.TASK_STATE_QUEUED


async def test_a_watch_is_ended_by_a_stop_and_says_so(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, grpc.aio.insecure_channel(server.address) as channel:
        owner = Services(channel, server.admin_token)
        stream = owner(owner.events.Watch, event_pb2.WatchRequest(), timeout=None)
        await stream.read()

        await server.app.stop(terminate_agents=False)

        ended = await failure(stream.read())
        assert (ended.code, ended.info.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING")


async def test_a_part_that_dies_is_reported_by_name(tmp_path: Path) -> None:
    async def die() -> None:
        raise RuntimeError("out of strings")

    with pytest.raises(AssertionError, match="the part `harp` of the server died: out of strings"):
        async with serve(tmp_path) as server:
            server.app.supervisor.spawn(die(), name="harp")
            await server.app.failed
