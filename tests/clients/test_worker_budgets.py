"""Workers and budgets on the real server: told to pause, let go on, refused; and usage of leases that are lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kapell import Client
from kapell.connection import Connection
from kapell.discovery import Endpoint
from kapell.v1.agent_pb2 import AGENT_ACTIVITY_WAITING_FOR_BUDGET
from kapell.v1.approval_pb2 import Approval
from kapell.v1.task_pb2 import (
    ATTEMPT_WAIT_KIND_BUDGET,
    TASK_STATE_FAILED,
    TASK_STATE_SUCCEEDED,
    Task,
    TaskFailure,
)
from kapell.v1.worker_pb2 import FailTaskRequest
from kapell.v1.worker_pb2_grpc import WorkerServiceStub
from kapell.worker import TaskContext, Worker
from kapell_server.testing import TestServer, serve

from tests.clients.working import working


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[TestServer]:
    async with serve(tmp_path, heartbeat_interval=0.1, lease_duration=5.0) as running:
        yield running


@pytest.fixture
async def client(server: TestServer) -> AsyncIterator[Client]:
    async with Client(server.address, token=server.admin_token) as connected:
        yield connected


def caller_of_models(server: TestServer) -> tuple[Worker, list[int]]:
    """A worker whose task calls a model four times, each for ten tokens, and asks for room before each call."""
    worker = Worker(Endpoint(address=server.address, token=server.admin_token))
    called: list[int] = []

    @worker.task("call")
    async def call(ctx: TaskContext, task: Task) -> int:
        for number in range(4):
            await ctx.budget_room()
            called.append(number)
            ctx.usage(record_id=f"call-{number}", model="m", output_tokens=10)
        return len(called)

    return worker, called


async def asked(client: Client) -> Approval:
    """The first approval that waits."""
    async with asyncio.timeout(20), client.approvals.watch() as waiting:
        async for approval in waiting:
            if approval.task_id:
                return approval
    raise AssertionError("nothing was asked")


async def test_a_worker_stops_at_the_edge_and_goes_on_after_a_yes(server: TestServer, client: Client) -> None:
    await client.budgets.create("20 tokens", thresholds={100: "approval"}, default_estimate="20 tokens")
    worker, called = caller_of_models(server)

    async with working(worker), client.watch() as events:
        task = await client.tasks.create("call")
        approval = await asked(client)
        assert called == [0, 1]
        async for event in events:
            if event.agent.activity == AGENT_ACTIVITY_WAITING_FOR_BUDGET:
                break
        waits = await client.tasks.get(task.task_id)
        assert waits.waiting.kind == ATTEMPT_WAIT_KIND_BUDGET
        assert waits.waiting.detail == waits.pause.reason
        assert waits.pause.approval_id == approval.approval_id
        assert "It waits: it has used the 20 tokens" in (await client.tasks.explain(task.task_id)).summary

        await client.approvals.decide(approval)
        ended = await client.tasks.wait(task.task_id)

    assert (ended.state, ended.attempt, called) == (TASK_STATE_SUCCEEDED, 1, [0, 1, 2, 3])
    [budget] = (await client.budgets.list()).budgets
    assert (budget.status.spent.tokens, budget.status.extended_by.tokens) == (40, 20)
    assert not budget.status.HasField("overrun")


async def test_a_no_ends_the_task(server: TestServer, client: Client) -> None:
    await client.budgets.create("20 tokens", thresholds={100: "approval"}, default_estimate="20 tokens")
    worker, called = caller_of_models(server)

    async with working(worker):
        task = await client.tasks.create("call")
        await client.approvals.decide(await asked(client), "deny")
        ended = await client.tasks.wait(task.task_id)

    assert (ended.state, ended.failure.reason) == (TASK_STATE_FAILED, "BUDGET_EXCEEDED")
    assert called == [0, 1]


async def test_a_higher_limit_lets_it_go_on_without_an_answer(server: TestServer, client: Client) -> None:
    budget = await client.budgets.create("20 tokens", default_estimate="20 tokens")
    worker, called = caller_of_models(server)

    async with working(worker), client.tasks.watch() as events:
        task = await client.tasks.create("call")
        async for event in events:
            if event.task.HasField("pause") and event.task.waiting.kind == ATTEMPT_WAIT_KIND_BUDGET:
                break
        assert called == [0, 1]
        await client.budgets.update(budget.budget_id, limit="100 tokens")
        ended = await client.tasks.wait(task.task_id)

    assert (ended.state, called) == (TASK_STATE_SUCCEEDED, [0, 1, 2, 3])


async def test_what_a_handler_has_used_when_its_lease_was_lost_is_in_the_ledger(
    server: TestServer, client: Client
) -> None:
    endpoint = Endpoint(address=server.address, token=server.admin_token)
    worker = Worker(endpoint)
    tokens: list[str] = []
    begun = asyncio.Event()

    @worker.task("call")
    async def call(ctx: TaskContext, task: Task) -> int:
        tokens.append(ctx.lease_token)
        if ctx.attempt == 1:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ctx.usage(record_id="under-way", model="m", output_tokens=7)
        return ctx.attempt

    async with working(worker), Connection(endpoint) as other:
        task = await client.tasks.create("call", max_attempts=3, initial_backoff=0.01)
        await begun.wait()
        # Somebody else with its token has ended the attempt: the worker hears of it by its next heartbeat.
        failure = FailTaskRequest(lease_token=tokens[0], failure=TaskFailure(reason="TAKEN", message="taken away"))
        await other.call(other.stub(WorkerServiceStub).FailTask, failure, timeout=10)
        ended = await client.tasks.wait(task.task_id)
        records = [record async for record in client.usage.iterate(task_ids=[task.task_id])]

    assert (ended.state, ended.attempt) == (TASK_STATE_SUCCEEDED, 2)
    assert [(record.record_id, record.attempt) for record in records] == [("under-way", 1)]
