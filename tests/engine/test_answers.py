"""D3: the same request_id gives the same answer and has one effect."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from kapell.v1 import agent_pb2, task_pb2, worker_pb2
from kapell.v1.agent_pb2 import Agent, DeleteAgentRequest, DrainAgentRequest, SpawnAgentRequest, UpdateAgentRequest
from kapell.v1.approval_policy_pb2 import ApprovalPolicy
from kapell.v1.common_pb2 import ProcessExit
from kapell.v1.task_pb2 import (
    BatchCreateTasksRequest,
    CancelTaskRequest,
    CancelTasksRequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    RecordTaskMergeRequest,
    ReprioritizeTasksRequest,
    RetryTaskRequest,
    RetryTasksRequest,
    Task,
    TaskFilter,
    TaskSpec,
    UpdateTaskRequest,
)
from kapell.v1.workspace_pb2 import MERGE_OUTCOME_REFUSED, TaskWorkspace, WorkspaceMerge
from kapell_server.domain.access import user
from kapell_server.domain.tasks.bulk_job import RESPONSES
from kapell_server.engine.commands import DECIDERS
from kapell_server.engine.facts import AgentProcessExited, SpawnCommand

from tests.support.live_engine import SPEC, LiveEngine, new_task

REFUSED = WorkspaceMerge(outcome=MERGE_OUTCOME_REFUSED)


def mutators() -> list[Any]:
    """One of each request that takes a request_id, on a stage where each can be done once."""
    task, agent = Task(task_id="task_queued", priority=3), Agent(agent_id="agent_live", display_name="x")
    return [
        new_task(prompt="p"),
        BatchCreateTasksRequest(tasks=[TaskSpec(agent_type="shell"), TaskSpec(agent_type="shell")]),
        UpdateTaskRequest(task=task, update_mask=FieldMask(paths=["priority"])),
        CancelTaskRequest(task_id="task_queued"),
        task_pb2.ApproveTaskRequest(task_id="task_asking"),
        RetryTaskRequest(task_id="task_ended"),
        CancelTasksRequest(filter=TaskFilter(task_ids=["task_queued"])),
        RetryTasksRequest(all=True),
        ReprioritizeTasksRequest(all=True, priority=1),
        RecordTaskMergeRequest(task_id="task_left", name="shop", head_commit="abc", merge=REFUSED),
        DeleteTaskRequest(task_id="task_ended"),
        SpawnCommand(SpawnAgentRequest(spec=SPEC), "", SPEC),
        UpdateAgentRequest(agent=agent, update_mask=FieldMask(paths=["display_name"])),
        agent_pb2.TerminateAgentRequest(agent_id="agent_live"),
        DrainAgentRequest(agent_id="agent_live"),
        agent_pb2.ResumeAgentRequest(agent_id="agent_live"),
        DeleteAgentRequest(agent_id="agent_ended"),
        worker_pb2.CreateChildTasksRequest(tasks=[TaskSpec(agent_type="shell"), TaskSpec(agent_type="shell")]),
    ]


MUTATORS = {(getattr(one, "request", one)).DESCRIPTOR.name: one for one in mutators()}


@pytest.fixture
async def stage(on_sqlite: LiveEngine) -> LiveEngine:
    live = on_sqlite
    await live.create(task_id="task_queued")
    await live.create(task_id="task_asking", approval=ApprovalPolicy())
    await live.create(task_id="task_ended")
    await live.call(CancelTaskRequest(task_id="task_ended"))
    await live.spawn("agent_live")
    await live.spawn("agent_ended")
    await live.call(AgentProcessExited("agent_ended", ProcessExit()))
    await live.call(worker_pb2.RegisterWorkerRequest(instance_key="process-0"), ticket_of(live, "agent_live"))
    return live


def ticket_of(live: LiveEngine, agent_id: str) -> Any:
    return live.keyring.authenticate(live.keyring.ticket(agent_id))


def with_id(request: Any, request_id: str) -> Any:
    message = type(getattr(request, "request", request))()
    message.CopyFrom(getattr(request, "request", request))
    message.request_id = request_id
    return SpawnCommand(message, "", SPEC) if isinstance(request, SpawnCommand) else message


@pytest.mark.parametrize("name", MUTATORS)
async def test_a_repeat_gets_the_first_answer_and_changes_nothing(stage: LiveEngine, name: str) -> None:
    request = with_id(MUTATORS[name], "r1")
    if isinstance(request, worker_pb2.CreateChildTasksRequest):
        await stage.create("parent")
        request.lease_token = (await stage.offer(await stage.register("parent"))).lease_token
    if isinstance(request, RecordTaskMergeRequest):
        await stage.create("git", task_id=request.task_id)
        left = TaskWorkspace(name=request.name, head_commit=request.head_commit)
        offer = await stage.offer(await stage.register("git"))
        await stage.call(worker_pb2.ReportWorkspacesRequest(lease_token=offer.lease_token, workspaces=[left]))
    first = await stage.call(request)
    events = len(await stage.log())

    again = await stage.call(request)

    assert again.replayed
    assert not first.replayed
    again.ClearField("replayed")
    assert again == first
    assert len(await stage.log()) == events


def test_every_request_with_a_request_id_is_tried_here() -> None:
    requests = [
        message
        for module in (task_pb2, agent_pb2, worker_pb2)
        for message in module.DESCRIPTOR.message_types_by_name.values()
        if "request_id" in message.fields_by_name
    ]

    assert {message.name for message in requests} == set(MUTATORS)
    for message in requests:
        response = message.file.message_types_by_name[message.name.removesuffix("Request") + "Response"]
        assert response.fields_by_name["replayed"].number == 3


def test_every_decider_takes_a_request_of_the_api_or_a_fact() -> None:
    names = {request.__name__ for request in DECIDERS}

    looked_up = {"SpawnAgentRequest", *(request.__name__ for request in RESPONSES)}
    assert set(MUTATORS) - looked_up <= names
    assert {
        "BulkCommand",
        "BulkStep",
        "SpawnCommand",
        "AgentProcessStarted",
        "AgentProcessExited",
        "AgentStartFailed",
    } <= names


async def test_an_answer_outlives_the_server(live: LiveEngine) -> None:
    first = await live.call(new_task(request_id="r1"))

    await live.crash()

    again = await live.call(new_task(request_id="r1"))
    assert (again.task, again.replayed) == (first.task, True)


async def test_repeats_in_one_batch_have_one_effect(live: LiveEngine) -> None:
    answers = await live.together(*[new_task(request_id="r1")] * 3)

    assert [answer.replayed for answer in answers] == [False, True, True]
    assert len({answer.task.task_id for answer in answers}) == 1
    assert await live.event_names() == ["task.created"]


async def test_the_same_id_with_another_body_is_refused(live: LiveEngine) -> None:
    await live.call(new_task(prompt="one", request_id="r1"))

    refusal = await live.refusal(new_task(prompt="two", request_id="r1"))

    assert (refusal.reason_name, refusal.metadata) == ("REQUEST_ID_REUSED", {"request_id": "r1"})


async def test_the_same_id_with_another_body_is_refused_in_one_batch(on_sqlite: LiveEngine) -> None:
    created, refused = await on_sqlite.together(
        new_task(prompt="one", request_id="r1"), new_task(prompt="two", request_id="r1")
    )

    assert created.task.display_name == "one"
    assert refused.reason_name == "REQUEST_ID_REUSED"


async def test_the_same_id_on_another_method_is_refused(on_sqlite: LiveEngine) -> None:
    task = await on_sqlite.create(request_id="r1")

    refusal = await on_sqlite.refusal(CancelTaskRequest(task_id=task.task_id, request_id="r1"))

    assert refusal.reason_name == "REQUEST_ID_REUSED"


async def test_ids_of_two_callers_do_not_meet(on_sqlite: LiveEngine) -> None:
    one = await on_sqlite.call(new_task(request_id="r1"))
    other = await on_sqlite.call(new_task(request_id="r1"), user("somebody"))

    assert one.task.task_id != other.task.task_id


async def test_a_refusal_is_not_remembered(live: LiveEngine) -> None:
    retry = RetryTaskRequest(task_id="task_x", request_id="r1")
    assert (await live.refusal(retry)).reason_name == "TASK_NOT_FOUND"
    await live.create(task_id="task_x")
    await live.call(CancelTaskRequest(task_id="task_x"))

    assert not (await live.call(retry)).replayed


async def test_what_was_checked_only_is_answered_without_being_done(on_sqlite: LiveEngine) -> None:
    request = CreateTaskRequest(task=TaskSpec(agent_type="shell", prompt="p"), validate_only=True)

    answer = await on_sqlite.call(request)

    assert (answer.task.prompt, answer.task.retry_policy.max_attempts, answer.revision) == ("p", 3, 0)
    assert await on_sqlite.log() == []


async def test_answers_are_forgotten_after_a_day(live: LiveEngine) -> None:
    first = await live.call(new_task(request_id="r1"))
    live.clock.advance(86_399)
    await live.engine.forget_answers()
    assert (await live.call(new_task(request_id="r1"))).task == first.task

    live.clock.advance(2)
    await live.engine.forget_answers()

    assert (await live.call(new_task(request_id="r1"))).task != first.task


async def test_answers_are_forgotten_however_many_they_are(
    on_sqlite: LiveEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kapell_server.engine.engine._FORGET_CHUNK", 2)
    firsts = [await on_sqlite.create(request_id=f"r{number}") for number in range(5)]
    on_sqlite.clock.advance(86_401)

    await on_sqlite.engine.forget_answers()

    seconds = [await on_sqlite.create(request_id=f"r{number}") for number in range(5)]
    assert {task.task_id for task in firsts}.isdisjoint(task.task_id for task in seconds)
