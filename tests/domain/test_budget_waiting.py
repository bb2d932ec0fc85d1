"""Tasks that wait for a budget, when it is not its room that changes: they try as soon as anything else lets them."""

from __future__ import annotations

from kapell.v1.budget_pb2 import BudgetScope, BudgetSpec, DeleteBudgetRequest, UpdateBudgetRequest
from kapell.v1.task_pb2 import Task, UpdateTaskRequest

from tests.domain.spending import Purse, cents, costing


def test_a_budget_that_is_deleted_holds_nobody_back() -> None:
    world = Purse()
    world.budget(cents(1))
    for _ in range(1_100):
        world.create("review", estimate=costing(2))

    world.poll(world.register("review"))
    world.advance(1)
    assert world.state.queues.ready.blocked("review") > 1_000
    world.do(DeleteBudgetRequest(budget_id="budget_b"))

    assert not world.state.queues.ready.blocked("review")


def test_a_lower_estimate_of_a_budget_lets_those_try_that_said_none() -> None:
    world = Purse()
    world.budget(cents(10), default_estimate=cents(20))
    task_id = world.create()
    poll = world.poll(world.register())
    assert not poll.taken

    request = UpdateBudgetRequest(budget_id="budget_b", spec=BudgetSpec(default_estimate=cents(5)))
    request.update_mask.paths.append("default_estimate")
    world.do(request)

    assert [lease.task_id for lease in poll.taken] == [task_id]


def test_other_labels_free_a_task_of_a_budget() -> None:
    world = Purse()
    world.budget(cents(1), scope=BudgetScope(label="team=red"))
    task_id = world.create(estimate=costing(2), labels={"team": "red"})
    poll = world.poll(world.register())
    assert not poll.taken

    world.do(UpdateTaskRequest(task=Task(task_id=task_id), update_mask={"paths": ["labels"]}))

    assert [lease.task_id for lease in poll.taken] == [task_id]
