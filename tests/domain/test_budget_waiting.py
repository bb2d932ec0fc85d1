"""Tasks that wait for a budget, when it is not its room that changes: they try as soon as anything else lets them."""

from __future__ import annotations

from kapell.v1.budget_pb2 import BudgetScope, BudgetSpec, DeleteBudgetRequest, UpdateBudgetRequest
from kapell.v1.task_pb2 import TASK_STATE_QUEUED, Task, UpdateTaskRequest

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


def test_an_agents_own_budget_does_not_keep_it_from_tasks_that_fit() -> None:
    world = Purse()
    poor = world.register()
    world.budget(cents(10), scope=BudgetScope(agent_id=poor))
    large = [world.create(estimate=costing(50), priority=900) for _ in range(80)]
    small = world.create(estimate=costing(5))
    limited = world.create(estimate=costing(5), concurrency_keys=["one"], priority=600)
    world.limit("one", 0)

    assert world.lease(poor) == small

    assert world.poll(world.register()).taken[0].task_id == large[0]
    assert any("may not take it" in one.message for one in world.explain(large[1]).blockers)
    assert world.task(limited).state == TASK_STATE_QUEUED


def test_an_agent_whose_own_budget_is_spent_gets_on_once_there_is_room() -> None:
    world = Purse()
    poor = world.register()
    world.budget(cents(10), scope=BudgetScope(agent_id=poor))
    world.use(agent_id=poor, cost=10)
    task_id = world.create(estimate=costing(5))
    assert not world.poll(poor).taken

    world.set_limit(cents(20))

    assert world.task(task_id).lease.agent_id == poor
