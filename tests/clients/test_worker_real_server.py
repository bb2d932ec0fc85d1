"""The worker on the real server: leases, cancels, drains and deaths as the engine decides them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kapell import Client
from kapell._worker.values import from_value
from kapell.discovery import Endpoint
from kapell.v1.agent_pb2 import AGENT_ACTIVITY_WAITING_FOR_APPROVAL, AGENT_STATE_DRAINING, AGENT_STATE_TERMINATED
from kapell.v1.task_pb2 import (
    ATTEMPT_STATE_RELEASED,
    ATTEMPT_STATE_SUCCEEDED,
    ATTEMPT_WAIT_KIND_APPROVAL,
    TASK_STATE_CANCELLED,
    TASK_STATE_FAILED,
    TASK_STATE_QUEUED,
    TASK_STATE_SUCCEEDED,
    Task,
)
from kapell.worker import RateLimited, TaskContext, TaskFailed, Worker
from kapell_server.testing import TestServer, serve

from tests.clients.working import working
from tests.support.server_process import ServerProcess


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[TestServer]:
    async with serve(tmp_path) as running:
        yield running


@pytest.fixture
async def client(server: TestServer) -> AsyncIterator[Client]:
    async with Client(server.address, token=server.admin_token) as connected:
        yield connected


def worker_of(server: TestServer, slots: int = 1) -> Worker:
    return Worker(Endpoint(address=server.address, token=server.admin_token), slots=slots)


async def test_a_rate_limit_of_a_provider_costs_no_attempt(server: TestServer, client: Client) -> None:
    worker = worker_of(server)
    calls = 0

    @worker.task("ask")
    async def ask(ctx: TaskContext, task: Task) -> object:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RateLimited("anthropic", 0.05, "429: come back later")
        return "answered"

    async with working(worker):
        task = await client.tasks.run("ask", "what?", max_attempts=1)
        attempts = (await client.tasks.attempts(task.task_id)).attempts

    assert task.state == TASK_STATE_SUCCEEDED
    assert (task.rate_limited_count, task.attempts_used, task.attempt) == (1, 1, 2)
    assert [attempt.state for attempt in attempts] == [ATTEMPT_STATE_RELEASED, ATTEMPT_STATE_SUCCEEDED]
    assert attempts[0].failure.message == "429: come back later"


async def test_what_the_work_has_used_is_in_the_ledger_before_its_end(server: TestServer, client: Client) -> None:
    worker = worker_of(server)
    response = {
        "id": "chatcmpl-1",
        "model": "gpt-5",
        "choices": [{"message": {"content": "x" * 100_000}}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "prompt_tokens_details": {"cached_tokens": 400}},
    }

    @worker.task("ask")
    async def ask(ctx: TaskContext, task: Task) -> object:
        ctx.usage_from(response)
        ctx.usage_from(response)
        ctx.usage(model="claude-sonnet-4-5", input_tokens=1000, output_tokens=100, record_id="msg_1")
        ctx.usage(record_id="nothing")
        return "answered"

    async with working(worker):
        task = await client.tasks.run("ask", "what?")
        records = [record async for record in client.usage.iterate(task_ids=[task.task_id])]

    assert {(record.record_id, record.attempt) for record in records} == {("chatcmpl-1", 1), ("msg_1", 1)}
    assert all(record.agent_id for record in records)
    found = await client.tasks.get(task.task_id)
    assert found.usage.records == 2
    # 600*1250 + 400*125 + 100*10000, and 1000*3000 + 100*15000
    assert found.usage.cost.nanos == 1_800_000 + 4_500_000


def test_a_rate_limit_names_its_provider_and_stays_within_a_day() -> None:
    assert RateLimited("anthropic", -1).reset_after > 0
    assert RateLimited("anthropic", 1e9).reset_after == 86_400
    with pytest.raises(ValueError, match="names no provider"):
        RateLimited("no provider", 1)


async def test_task_is_done_with_log_progress_and_result(server: TestServer, client: Client) -> None:
    worker = worker_of(server)

    @worker.task("count")
    async def count(ctx: TaskContext, task: Task) -> object:
        ctx.log("counting\nstill counting")
        ctx.progress(1.0, "done", "counted all")
        return {"words": len(task.prompt.split()), "input": ctx.input}

    async with working(worker):
        task = await client.tasks.run("count", "three short words", input={"n": 1, "deep": {"list": [1, "x"]}})
        async with client.tasks.logs(task.task_id) as log:
            lines = [entry.text async for entry in log]

    assert task.state == TASK_STATE_SUCCEEDED
    assert from_value(task.result) == {"words": 3, "input": {"n": 1, "deep": {"list": [1, "x"]}}}
    assert lines == ["counting", "still counting"]
    assert (task.progress.fraction, task.progress.step, task.progress.message) == (1.0, "done", "counted all")


async def test_what_the_work_waits_for_is_shown_while_it_waits(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    async with serve(tmp_path, heartbeat_interval=0.1, lease_duration=5.0) as server:
        worker = worker_of(server)

        @worker.task("review")
        async def review(ctx: TaskContext, task: Task) -> str:
            with ctx.waiting("approval", "merge it?"):
                await go_on.wait()
            return "merged"

        async with (
            Client(server.address, token=server.admin_token) as client,
            client.watch() as events,
            working(worker),
        ):
            task = await client.tasks.create("review")
            shown: list[tuple[str, int]] = []
            async for event in events:
                if event.changed_fields == ["waiting"]:
                    shown.append((event.task.waiting.detail, event.task.waiting.kind))
                if event.agent.activity == AGENT_ACTIVITY_WAITING_FOR_APPROVAL:
                    break
            go_on.set()
            ended = await client.tasks.wait(task.task_id)

    assert shown == [("merge it?", ATTEMPT_WAIT_KIND_APPROVAL)]
    assert (ended.state, ended.HasField("waiting")) == (TASK_STATE_SUCCEEDED, False)


async def test_failure_is_tried_again_as_the_policy_says(server: TestServer, client: Client) -> None:
    worker = worker_of(server)

    @worker.task("flaky")
    async def flaky(ctx: TaskContext, task: Task) -> int:
        if ctx.attempt == 1:
            raise TaskFailed("NOT_YET", "come again", retry_delay=0.05)
        return ctx.attempt

    @worker.task("hopeless")
    async def hopeless(ctx: TaskContext, task: Task) -> None:
        raise TaskFailed("NEVER", "do not come again", details={"k": "v"}, retryable=False)

    async with working(worker):
        second = await client.tasks.run("flaky", max_attempts=2)
        never = await client.tasks.run("hopeless", max_attempts=5)

    assert (second.state, from_value(second.result)) == (TASK_STATE_SUCCEEDED, 2)
    assert (never.state, never.attempt, never.failure.reason) == (TASK_STATE_FAILED, 1, "NEVER")


async def test_cancel_reaches_a_running_handler_faster_than_a_heartbeat(server: TestServer, client: Client) -> None:
    worker = worker_of(server)
    begun = asyncio.Event()

    @worker.task("long")
    async def long(ctx: TaskContext, task: Task) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with working(worker):
        created = await client.tasks.create("long")
        await begun.wait()
        await client.tasks.cancel(created.task_id)
        async with asyncio.timeout(2):
            ended = await client.tasks.wait(created.task_id)

    assert ended.state == TASK_STATE_CANCELLED


async def test_stopped_worker_is_terminated_and_its_unfinished_task_is_queued_again(
    server: TestServer, client: Client
) -> None:
    worker = worker_of(server)
    begun = asyncio.Event()

    @worker.task("long")
    async def long(ctx: TaskContext, task: Task) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with working(worker) as running:
        created = await client.tasks.create("long")
        await begun.wait()
        worker.stop("enough", at_once=True)
        await running
        agent = await client.agents.get(worker.agent_id)
        task = await client.tasks.get(created.task_id)

    assert agent.state == AGENT_STATE_TERMINATED
    assert task.state == TASK_STATE_QUEUED


async def test_drained_worker_takes_nothing_until_it_is_resumed(server: TestServer, client: Client) -> None:
    worker = worker_of(server)

    @worker.task("quick")
    async def quick(ctx: TaskContext, task: Task) -> str:
        return "done"

    async with working(worker):
        await client.tasks.run("quick")
        drained = await client.agents.drain(worker.agent_id)
        waiting = await client.tasks.create("quick")
        still = (await client.tasks.get(waiting.task_id)).state
        await client.agents.resume(worker.agent_id)
        async with asyncio.timeout(20):
            done = await client.tasks.wait(waiting.task_id)

    assert (drained.state, still, done.state) == (AGENT_STATE_DRAINING, TASK_STATE_QUEUED, TASK_STATE_SUCCEEDED)


async def test_terminated_external_worker_ends_by_itself(server: TestServer, client: Client) -> None:
    worker = worker_of(server)

    @worker.task("quick")
    async def quick(ctx: TaskContext, task: Task) -> None: ...

    async with working(worker) as running:
        await client.tasks.run("quick")
        ended = await client.agents.terminate(worker.agent_id)
        async with asyncio.timeout(20):
            await running

    assert ended.state == AGENT_STATE_TERMINATED


async def test_many_tasks_are_each_done_once(server: TestServer, client: Client) -> None:
    worker = worker_of(server, slots=16)
    done: list[str] = []

    @worker.task("quick")
    async def quick(ctx: TaskContext, task: Task) -> str:
        done.append(ctx.task_id)
        return ctx.task_id

    async with working(worker):
        created = [await client.tasks.create("quick") for _ in range(200)]
        tasks = [await client.tasks.wait(task.task_id) for task in created]

    assert [from_value(task.result) for task in tasks] == [task.task_id for task in created]
    assert len(done) == len(set(done)) == 200


async def test_handlers_outlive_kills_of_the_server(server_process: ServerProcess) -> None:
    endpoint = Endpoint(address=server_process.address, token=server_process.admin_token)
    worker = Worker(endpoint, slots=8)
    go = asyncio.Event()

    @worker.task("long")
    async def long(ctx: TaskContext, task: Task) -> str:
        ctx.log("before")
        await go.wait()
        ctx.log("after")
        return task.prompt

    async with Client(endpoint) as client, working(worker):
        created = [await client.tasks.create("long", str(number)) for number in range(8)]
        for task in created:
            async with client.tasks.logs(task.task_id, follow=True) as log:
                assert (await anext(aiter(log))).text == "before"
        await asyncio.to_thread(server_process.kill)
        go.set()
        await asyncio.to_thread(server_process.start)
        ended = [await client.tasks.wait(task.task_id) for task in created]
        logs = []
        for task in created:
            async with client.tasks.logs(task.task_id) as log:
                logs.append([entry.text async for entry in log])

    assert [(task.state, task.attempt) for task in ended] == [(TASK_STATE_SUCCEEDED, 1)] * 8
    assert [from_value(task.result) for task in ended] == [str(number) for number in range(8)]
    assert logs == [["before", "after"]] * 8
