"""`client.queues`, `client.limits` and `client.tasks.explain`, on the real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from kapell import Client, SyncClient, errors
from kapell.queues import KEEP
from kapell.v1 import queue_pb2, task_pb2
from kapell_server.testing import TestServer, serve

from tests.clients.every_method import Recorder, recording
from tests.support.server_process import ServerProcess


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[TestServer]:
    async with serve(tmp_path) as server:
        yield server


@pytest.fixture
async def client(server: TestServer) -> AsyncIterator[Client]:
    async with Client(server.address, token=server.admin_token) as client:
        yield client


@pytest.fixture
async def recorded() -> AsyncIterator[tuple[Client, Recorder]]:
    async with recording() as (address, recorder), Client(address, token="secret-token") as client:
        yield client, recorder


async def test_a_queue_is_paused_resumed_and_drained(client: Client) -> None:
    paused = await client.queues.pause("build", reason="the runner is being moved")
    task = await client.tasks.create("build", "true")
    explained = await client.tasks.explain(task.task_id)
    resumed = await client.queues.resume("build")
    drained = await client.queues.drain("build", reason="replaced")
    with pytest.raises(errors.PreconditionFailed) as caught:
        await client.tasks.create("build", "true")

    assert (paused.state, paused.state_reason) == (queue_pb2.QUEUE_STATE_PAUSED, "the runner is being moved")
    assert task_pb2.WAIT_KIND_QUEUE_PAUSED in [blocker.kind for blocker in explained.blockers]
    assert resumed.state == queue_pb2.QUEUE_STATE_OPEN
    assert drained.state == queue_pb2.QUEUE_STATE_DRAINING
    assert (caught.value.reason, caught.value.metadata["agent_type"]) == ("QUEUE_DRAINING", "build")


async def test_no_type_is_all_types(client: Client) -> None:
    queue = await client.queues.pause()
    stats = await client.queues.stats()

    assert queue.agent_type == "*"
    assert [entry.queue.agent_type for entry in stats.queues] == ["*"]


async def test_limits_of_a_queue_are_set_kept_and_lifted_one_by_one(client: Client) -> None:
    both = await client.queues.update("build", max_running=4, start_rate=(10, timedelta(minutes=1)))
    lifted = await client.queues.update("build", max_running=None)
    closed = await client.queues.update("build", max_running=0, start_rate=KEEP)
    with pytest.raises(errors.Aborted) as caught:
        await client.queues.update("build", max_running=1, etag=both.etag)

    assert (both.max_running, both.start_rate.count, both.start_rate.period.seconds) == (4, 10, 60)
    assert (lifted.HasField("max_running"), lifted.start_rate.count) == (False, 10)
    assert closed.HasField("max_running")
    assert closed.start_rate.count == 10
    assert caught.value.reason == "ETAG_MISMATCH"


async def test_an_update_names_exactly_what_was_given(recorded: tuple[Client, Recorder]) -> None:
    client, recorder = recorded

    await client.queues.update("build", start_rate=None)

    request = recorder.requests["UpdateQueue"]
    assert list(request.update_mask.paths) == ["start_rate"]
    assert not request.queue.HasField("start_rate")


async def test_limits_are_set_listed_and_forgotten(client: Client) -> None:
    made = await client.limits.set(
        "repo:web", max_running=2, strategy="cancel-in-progress", start_rate=(30, 3600), description="one checkout"
    )
    await client.limits.set("repo:api", strategy="skip")
    for _ in range(2):
        await client.tasks.create("build", "true", concurrency_keys=["repo:api"])
    page = await client.limits.list(page_size=1)
    keys = [limit.key async for limit in client.limits.iterate(page_size=1)]
    await client.limits.delete("repo:web")
    with pytest.raises(errors.NotFound) as caught:
        await client.limits.delete("repo:web")

    assert made.strategy == queue_pb2.CONCURRENCY_STRATEGY_CANCEL_IN_PROGRESS
    assert (made.start_rate.count, made.start_rate.period.seconds, made.description) == (30, 3600, "one checkout")
    assert [limit.key for limit in page.limits] == ["repo:api"]
    assert page.next_page_token
    assert keys == ["repo:api", "repo:web"]
    assert (caught.value.reason, caught.value.metadata["key"]) == ("LIMIT_NOT_FOUND", "repo:web")


async def test_a_task_carries_its_keys(client: Client) -> None:
    task = await client.tasks.create("build", "true", fairness_key="team-a", concurrency_keys=["repo:web", "gpu"])

    read = await client.tasks.get(task.task_id)
    assert (read.fairness_key, list(read.concurrency_keys)) == ("team-a", ["repo:web", "gpu"])


async def test_a_strategy_that_is_none_is_refused_with_advice(recorded: tuple[Client, Recorder]) -> None:
    client, _ = recorded

    with pytest.raises(errors.InvalidRequest, match="did you mean 'cancel-newest'"):
        await client.limits.set("repo:web", strategy="cancel-news")


async def test_changes_of_queues_and_limits_are_watched_by_name(client: Client) -> None:
    async with client.watch(kinds=["queue.updated", "limit.updated", "limit.deleted"]) as events:
        await client.queues.pause("build")
        await client.limits.set("repo:web", max_running=2)
        await client.limits.delete("repo:web")
        found = [await anext(events) for _ in range(3)]

    assert found[0].queue.agent_type == "build"
    assert [event.limit.key for event in found[1:]] == ["repo:web", "repo:web"]


def test_the_blocking_client_has_the_same_verbs(server_process: ServerProcess) -> None:
    with SyncClient(server_process.address, token=server_process.admin_token) as client:
        client.queues.update("build", max_running=3)
        client.queues.pause("build")
        client.limits.set("repo:web", max_running=2)
        task = client.tasks.create("build", "true", concurrency_keys=["repo:web"])
        [entry] = client.queues.stats("build").queues
        [limit] = client.limits.iterate()

        assert (entry.depth, entry.queue.max_running) == (1, 3)
        assert (limit.key, limit.queued) == ("repo:web", 1)
        assert client.tasks.explain(task.task_id).blockers
        assert client.queues.resume("build").state == queue_pb2.QUEUE_STATE_OPEN
        assert client.queues.drain("build").state == queue_pb2.QUEUE_STATE_DRAINING
        assert client.limits.delete("repo:web").revision > limit.revision
