"""Watches, the log, and the server itself."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from kapell.v1 import (
    admin_pb2,
    agent_pb2,
    event_pb2,
    task_pb2,
    watch_pb2,
)
from kapell_server.testing import serve

from tests.rpc.conftest import failure
from tests.rpc.services import Services, create, register

pytestmark = pytest.mark.timeout(60)


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


async def test_events_are_listed_and_the_log_described(owner: Services) -> None:
    task = await create(owner, task_id="task_a")

    # Not those of the templates that came with Kapell.
    kinds = event_pb2.EventFilter(kinds=[watch_pb2.EVENT_KIND_TASK_CREATED, watch_pb2.EVENT_KIND_TASK_UPDATED])
    listed = await owner(owner.events.ListEvents, event_pb2.ListEventsRequest(filter=kinds))
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
    assert info.limits.max_batch_tasks == 2500
    assert seen_by_agent.principal == worker.agent_id
    assert (now.open_watches, dict(now.ready_tasks)) == (1, {"nobody": 1})
    assert now.commits > 0
    assert now.resident_bytes > 10_000_000
    stream.cancel()


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


async def test_a_watch_from_the_future_or_another_log_is_refused(owner: Services) -> None:
    future = event_pb2.WatchRequest(options={"start_after_revision": 10_000})
    other = event_pb2.WatchRequest(options={"log_id": "log_other", "start_after_revision": 1})

    for request, reason in [(future, "REVISION_IN_FUTURE"), (other, "REVISION_COMPACTED")]:
        failed = await failure(owner(owner.events.Watch, request).read())
        assert (failed.code, failed.info.reason) == (grpc.StatusCode.OUT_OF_RANGE, reason)
