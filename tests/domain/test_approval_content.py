"""What the approval of a start is about: all that the card shows is bound by its hash."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.type.money_pb2 import Money
from kapell.v1.budget_pb2 import BudgetAmount, BudgetSpec, CreateBudgetRequest, TaskEstimate
from kapell.v1.lock_pb2 import LOCK_MODE_SHARED, LockItem, TaskLock
from kapell.v1.task_pb2 import CreateTaskRequest, RetryTaskRequest, Task, TaskSpec, UpdateTaskRequest
from kapell.v1.template_pb2 import TemplateLock
from kapell_server.domain.approvals.start import start_hash
from kapell_server.domain.copied import copied

from tests.domain.asking import ASK, decide, how, state_of, waiting
from tests.domain.test_approval_starts import struct, template
from tests.domain.world import World

PATHS = ["repo/src", "repo/doc"]


def locked(*paths: str) -> list[LockItem]:
    return [LockItem(path=path) for path in paths]


def update(world: World, task_id: str, **fields: Any) -> None:
    changed = Task(task_id=task_id, **fields)
    world.do(UpdateTaskRequest(task=changed, update_mask=FieldMask(paths=[*fields])))


def test_all_that_a_start_takes_is_shown() -> None:
    world = World()
    estimate = TaskEstimate(cost=Money(currency_code="USD", units=12), tokens=1000)

    task_id = world.create("shell", prompt="p", approval=ASK, locks=locked(*PATHS), estimate=estimate)

    content = world.rows.approval_contents[waiting(world, task_id).approval_id]
    assert content.start.agent_type == "shell"
    assert [lock.path for lock in content.start.locks] == sorted(PATHS)
    assert content.start.estimate == estimate
    assert content.estimated_cost == estimate.cost
    assert "cost" in [reason.code for reason in waiting(world, task_id).risk.reasons]


@pytest.mark.parametrize("other", ["locks", "mode", "none", "prompt", "input"])
def test_whatever_is_shown_is_asked_for_anew_once_it_changes(other: str) -> None:
    world = World()
    task_id = world.create("shell", prompt="p", approval=ASK, locks=locked(*PATHS))
    before = waiting(world, task_id)

    match other:
        case "locks":
            update(world, task_id, locks=[TaskLock(path="repo")])
        case "mode":
            update(world, task_id, locks=[TaskLock(path=path, mode=LOCK_MODE_SHARED) for path in PATHS])
        case "none":
            world.do(UpdateTaskRequest(task=Task(task_id=task_id), update_mask=FieldMask(paths=["locks"])))
        case "prompt":
            update(world, task_id, prompt="q")
        case "input":
            update(world, task_id, input=struct(a=1))

    assert how(world, before.approval_id) == "SUPERSEDED"
    with world.refuses("APPROVAL_CHANGED"):
        decide(world, before)
    decide(world, waiting(world, task_id))
    assert state_of(world, task_id) == "QUEUED"


def test_other_locks_of_an_approved_task_ask_again() -> None:
    world = World()
    task_id = world.create("shell", prompt="p", approval=ASK, locks=locked("repo/doc"))
    decide(world, waiting(world, task_id))

    update(world, task_id, locks=[TaskLock(path="repo")])

    assert state_of(world, task_id) == "AWAITING_APPROVAL"


def test_the_same_locks_in_another_order_ask_nobody() -> None:
    world = World()
    task_id = world.create("shell", prompt="p", approval=ASK, locks=locked(*PATHS))
    before = waiting(world, task_id)

    update(world, task_id, locks=[TaskLock(path=path) for path in reversed(PATHS)])

    assert waiting(world, task_id) == before


def test_a_retry_of_what_ran_with_locks_asks_nobody_again() -> None:
    world = World()
    agent_id = world.register("shell")
    task_id = world.create("shell", prompt="p", approval=ASK, locks=locked(*PATHS))
    decide(world, waiting(world, task_id))
    assert world.lease(agent_id) == task_id
    world.fail(task_id, retryable=False)

    world.do(RetryTaskRequest(task_id=task_id))

    assert state_of(world, task_id) == "QUEUED", "tokens of locks are not of what was approved"


@pytest.mark.parametrize("field", ["agent_type", "template_version", "secrets", "budget_id", "estimate"])
def test_no_field_of_a_start_is_left_out_of_the_hash(field: str) -> None:
    world = World()
    task_id = world.create("shell", prompt="p", approval=ASK)
    task = copied(world.task(task_id))
    shown = waiting(world, task_id)
    match field:
        case "agent_type":
            task.agent_type = "other"
        case "template_version":
            task.template_version = 7
        case "secrets":
            task.secrets["TOKEN"] = "deploy-key"
        case "budget_id":
            task.budget_id = "budget_x"
        case "estimate":
            task.estimate.tokens = 1

    assert start_hash(world.state, task) != shown.content_hash


def test_the_parameters_of_a_template_and_what_they_lock_are_shown() -> None:
    world = World()
    template(world, approval=ASK, locks=[TemplateLock(path="greetings/{name}")])

    task: Task = world.do(CreateTaskRequest(task=TaskSpec(template="greet", parameters=struct(name="Ann"))))

    content = world.rows.approval_contents[waiting(world, task.task_id).approval_id]
    assert (content.template_id, content.start.template_version) == ("greet", 1)
    assert dict(content.input) == {"name": "Ann"}
    assert [lock.path for lock in content.start.locks] == ["greetings/Ann"]


def test_a_named_budget_is_shown() -> None:
    world = World()
    limit = BudgetAmount(tokens=100)
    world.do(CreateBudgetRequest(budget_id="budget_a", spec=BudgetSpec(display_name="a", limit=limit)))

    task_id = world.create("shell", prompt="p", approval=ASK, budget_id="budget_a")

    content = world.rows.approval_contents[waiting(world, task_id).approval_id]
    assert content.start.budget_id == "budget_a"
