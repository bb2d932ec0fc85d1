"""Budgets that are changed, and figures that are corrected: what counts from then on, and who is woken."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from kapell.v1.budget_pb2 import (
    BudgetAmount,
    BudgetScope,
    BudgetSpec,
    BudgetWindow,
    UpdateBudgetRequest,
)
from kapell.v1.task_pb2 import (
    TASK_STATE_RUNNING,
)
from kapell.v1.usage_pb2 import RecordUsageRequest, UsageRecord
from kapell_server.domain.budgets.budgets import Budgets
from kapell_server.domain.state import State

from tests.domain.spending import Purse, cents, costing


def test_what_a_budget_measures_and_whose_it_is_cannot_be_changed() -> None:
    world = Purse()
    world.budget(cents(100))

    with world.refuses("REQUEST_INVALID"):
        world.set_limit(BudgetAmount(tokens=5))
    with world.refuses("REQUEST_INVALID"):
        world.budget(cents(1), budget_id="budget_c", default_estimate=BudgetAmount(tokens=1))
    with world.refuses("ID_TAKEN"):
        world.budget(cents(1))
    with world.refuses("BUDGET_NOT_FOUND"):
        world.create(budget_id="budget_nothing")
    world.create(task_id="task_root")
    world.create(task_id="task_below", parent_task_id="task_root")
    with world.refuses("REQUEST_INVALID"):
        world.budget(cents(1), budget_id="budget_c", scope=BudgetScope(root_task_id="task_below"))


def test_a_raised_limit_raises_the_guess_of_a_tasks_need_with_it() -> None:
    world = Purse()
    world.budget(cents(100))

    assert world.set_limit(cents(1000)).spec.default_estimate == cents(50)


def test_a_guess_that_changes_counts_for_what_starts_from_then_on_and_for_who_waits() -> None:
    world = Purse()
    world.budget(cents(1000))
    agent_id = world.register(slots=8)
    world.complete(_started(world, agent_id))

    world.set_limit(cents(20))
    _started(world, agent_id)
    assert world.figures() == (0, 1)
    _guess(world, cents(40))
    waiting = world.create()
    assert not world.poll(agent_id, max_tasks=1).taken
    _guess(world, cents(2))

    assert world.task(waiting).state == TASK_STATE_RUNNING
    assert world.figures() == (0, 3)


def _started(world: Purse, agent_id: str) -> str:
    task_id = world.create()
    assert [lease.task_id for lease in world.poll(agent_id, max_tasks=1).taken] == [task_id]
    return task_id


def _guess(world: Purse, amount: BudgetAmount) -> None:
    request = UpdateBudgetRequest(budget_id="budget_b", spec=BudgetSpec(default_estimate=amount))
    request.update_mask.paths.append("default_estimate")
    world.do(request)


def test_usage_that_was_recorded_as_another_tasks_is_taken_back_there() -> None:
    world = Purse()
    wrong, right = world.create(), world.create()
    for name, task_id in (("budget_wrong", wrong), ("budget_right", right)):
        world.budget(cents(1000), budget_id=name, scope=BudgetScope(root_task_id=task_id))
    world.budget(cents(1000), budget_id="budget_all")
    used = UsageRecord(record_id="msg_1", task_id=wrong, cost=cents(100).cost)
    world.do(RecordUsageRequest(records=[used]))
    used.task_id, used.correction = right, True

    for _ in range(2):
        world.do(RecordUsageRequest(records=[used]))

    assert [world.figures(f"budget_{name}")[0] for name in ("wrong", "right", "all")] == [0, 100, 100]


def test_a_start_finds_all_figures_as_they_were() -> None:
    world = Purse()
    world.budget(cents(100), window=BudgetWindow(rolling=Duration(seconds=3600)))
    agent_id = world.register(slots=2)
    first, second = world.create(estimate=costing(30)), world.create(estimate=costing(20))
    world.poll(agent_id, max_tasks=2)
    world.use(first, 35)
    world.advance(2)

    again = _restarted(world)

    before, after = world.state.budgets.tallies["budget_b"], again.tallies["budget_b"]
    assert (after.spent, after.reserved, after.crossed) == (before.spent, before.reserved, before.crossed)
    assert after.slices == before.slices
    assert after.holds.keys() == {first, second}


def _restarted(world: Purse) -> Budgets:
    """The budgets of a server that starts with the rows of this one."""
    state = State(settings=world.state.settings, keyring=world.keyring, random=world.state.random, log_id="log")
    state.begin(world.now_ns, world.rows)
    state.standing.load(world.rows.standing.values())
    for lease in world.state.leases.by_task.values():
        lease.record = world.rows.attempts[lease.task_id, lease.attempt]
        state.leases.add(lease)
    spend = [(*key, units) for key, units in world.rows.budgets.spend.items()]
    state.budgets.load(spend, world.rows.budgets.reservations.values())
    return state.budgets
