"""Workers that ask people: answers, questions, parking, and a server that is killed while they wait."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from kapell import Client, errors
from kapell._worker.values import from_value
from kapell.approvals import approval_policy
from kapell.v1.approval_pb2 import RISK_LEVEL_CRITICAL, Approval
from kapell.v1.task_pb2 import (
    ATTEMPT_STATE_RELEASED,
    ATTEMPT_STATE_SUCCEEDED,
    TASK_STATE_AWAITING_APPROVAL,
    TASK_STATE_CANCELLED,
    TASK_STATE_SUCCEEDED,
    Task,
)
from kapell.worker import TaskContext, Worker
from kapell_server.testing import serve

from tests.clients.working import working
from tests.support.server_process import ServerProcess

pytestmark = pytest.mark.timeout(60)


async def next_approval(client: Client, task_id: str) -> Approval:
    """What the task waits for, with what it shows."""
    async with client.approvals.watch(task_ids=[task_id]) as approvals:
        found = await anext(approvals)
    return await client.approvals.get(found.approval_id)


async def test_an_answer_reaches_the_handler_with_its_reason(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, Client(server.address, token=server.admin_token) as client:
        worker = Worker(server.address, token=server.admin_token)

        @worker.task("deploy")
        async def deploy(ctx: TaskContext, task: Task) -> object:
            verdict = await ctx.approve(
                "Delete everything", details={"because": "it is old"}, command="rm -rf /", input={"path": "/"}
            )
            return [bool(verdict), verdict.state, verdict.comment, verdict.decided_by, verdict.input]

        async with working(worker):
            denied = await client.tasks.create("deploy")
            shown = await next_approval(client, denied.task_id)
            await client.approvals.decide(shown, "deny", comment="are you mad?")
            first = await client.tasks.wait(denied.task_id)
            edited = await client.tasks.create("deploy")
            await client.approvals.decide(
                await next_approval(client, edited.task_id), comment="only this", edited_input={"path": "/old"}
            )
            second = await client.tasks.wait(edited.task_id)

    assert (shown.content.command, shown.content.details) == ("rm -rf /", "because: it is old")
    assert shown.risk.level == RISK_LEVEL_CRITICAL
    assert from_value(first.result) == [False, "rejected", "are you mad?", "admin", {"path": "/"}]
    assert from_value(second.result) == [True, "approved", "only this", "admin", {"path": "/old"}]


async def test_questions_have_answers(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, Client(server.address, token=server.admin_token) as client:
        worker = Worker(server.address, token=server.admin_token)

        @worker.task("quiz")
        async def quiz(ctx: TaskContext, task: Task) -> object:
            colour = await ctx.ask("Which colour?", options={"red": "Red", "blue": "Blue"})
            name = await ctx.ask("Which name?")
            return [colour.option, name.comment]

        async with working(worker):
            task = await client.tasks.create("quiz")
            await client.approvals.decide(await next_approval(client, task.task_id), "blue")
            await client.approvals.decide(await next_approval(client, task.task_id), comment="Ada")
            ended = await client.tasks.wait(task.task_id)

    assert from_value(ended.result) == ["blue", "Ada"]


async def test_a_parked_handler_frees_its_slot_and_runs_again(tmp_path: Path) -> None:
    seen: list[object] = []
    async with serve(tmp_path) as server, Client(server.address, token=server.admin_token) as client:
        worker = Worker(server.address, token=server.admin_token)

        @worker.task("park")
        async def park(ctx: TaskContext, task: Task) -> object:
            seen.append(ctx.resume_data)
            ctx.log("asking")
            verdict = await ctx.approve("Go on?", park=True, resume={"step": 3})
            return [verdict.approved, verdict.comment]

        @worker.task("other")
        async def other(ctx: TaskContext, task: Task) -> str:
            return "done"

        async with working(worker):
            task = await client.tasks.create("park")
            approval = await next_approval(client, task.task_id)
            parked = await client.tasks.get(task.task_id)
            meanwhile = await client.tasks.run("other")
            await client.approvals.decide(approval, comment="yes")
            ended = await client.tasks.wait(task.task_id)
            attempts = (await client.tasks.attempts(task.task_id)).attempts
            async with client.tasks.logs(task.task_id, attempt=1) as log:
                lines = [entry.text async for entry in log]

    assert parked.state == TASK_STATE_AWAITING_APPROVAL
    assert meanwhile.state == TASK_STATE_SUCCEEDED, "the only slot is free"
    assert from_value(ended.result) == [True, "yes"]
    assert [attempt.state for attempt in attempts] == [ATTEMPT_STATE_RELEASED, ATTEMPT_STATE_SUCCEEDED]
    assert ended.attempts_used == 1
    assert seen == [None, {"step": 3}]
    assert lines == ["asking"]


async def test_a_cancel_ends_the_wait(tmp_path: Path) -> None:
    async with serve(tmp_path) as server, Client(server.address, token=server.admin_token) as client:
        worker = Worker(server.address, token=server.admin_token)

        @worker.task("ask")
        async def ask(ctx: TaskContext, task: Task) -> object:
            return bool(await ctx.approve("Go on?"))

        async with working(worker):
            task = await client.tasks.create("ask")
            approval = await next_approval(client, task.task_id)
            await client.tasks.cancel(task.task_id)
            ended = await client.tasks.wait(task.task_id)
            with pytest.raises(errors.AlreadyExists):
                await client.approvals.decide(approval)

    assert ended.state == TASK_STATE_CANCELLED


async def test_the_wait_outlives_kill_9_of_the_server(server_process: ServerProcess) -> None:
    worker = Worker(server_process.address, token=server_process.admin_token)
    runs: list[int] = []

    @worker.task("ask")
    async def ask(ctx: TaskContext, task: Task) -> object:
        runs.append(ctx.attempt)
        verdict = await ctx.approve("Go on?", command="make deploy", key="deploy")
        return [verdict.approved, verdict.comment]

    async with Client(server_process.address, token=server_process.admin_token) as client, working(worker):
        task = await client.tasks.create("ask")
        held = await client.tasks.create("ask", approval=approval_policy())
        approval = await next_approval(client, task.task_id)

        await asyncio.to_thread(server_process.restart)
        start = await next_approval(client, held.task_id)
        await client.approvals.decide(await client.approvals.get(approval.approval_id), comment="after all")
        ended = await client.tasks.wait(task.task_id)
        await client.approvals.decide(start, "deny", comment="one is enough")
        refused = await client.tasks.wait(held.task_id)

    assert from_value(ended.result) == [True, "after all"]
    assert runs == [1], "the same attempt went on"
    assert refused.failure.reason == "APPROVAL_REJECTED"
    assert refused.failure.details["comment"] == "one is enough"
