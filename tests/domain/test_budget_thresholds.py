"""Thresholds: crossed once a window, with an alert, and with what the budget says is to happen."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from kapell.v1.alert_pb2 import ALERT_KIND_BUDGET_THRESHOLD
from kapell.v1.budget_pb2 import (
    BUDGET_ACTION_CANCEL,
    BUDGET_ACTION_REQUIRE_APPROVAL,
    BUDGET_ACTION_STOP_ADMISSION,
    BUDGET_STATE_AWAITING_APPROVAL,
    BUDGET_STATE_OPEN,
    BUDGET_STATE_STOPPED,
    Budget,
    BudgetAmount,
    BudgetWindow,
    DeleteBudgetRequest,
)
from kapell.v1.task_pb2 import (
    TASK_STATE_CANCELLING,
    TASK_STATE_FAILED,
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    TASK_STATE_SUCCEEDED,
)
from kapell.v1.worker_pb2 import LEASE_DIRECTIVE_CANCEL
from kapell_server.domain.state import State

from tests.domain.asking import decide, waiting
from tests.domain.spending import Purse, cents, costing, thresholds


def test_each_threshold_fires_once_in_the_change_that_crosses_it() -> None:
    world = Purse()
    world.budget(cents(100), display_name="nightly")

    world.use(cost=49)
    assert world.percents() == []
    world.use(cost=1)
    assert world.percents() == [50]
    world.use(cost=29)
    world.use(cost=21)

    assert world.percents() == [50, 80, 100]
    [first, *_] = world.alerts()
    assert (first.kind, first.subject) == (ALERT_KIND_BUDGET_THRESHOLD, "budget_b")
    assert first.message == "Budget nightly has spent $0.50 of $1.00."
    world.use(cost=500)
    assert world.events.count("alert.fired") == 3


def test_a_new_window_resolves_the_alerts_and_they_may_fire_again() -> None:
    world = Purse()
    world.budget(cents(100), window=BudgetWindow(rolling=Duration(seconds=3600)))
    world.use(cost=60)
    assert world.percents() == [50]

    world.advance(3700)
    assert world.percents() == []
    world.use(cost=60)

    assert world.percents() == [50]
    assert world.events.count("alert.fired") == 2
    assert world.events.count("alert.resolved") == 1


def test_what_ages_does_not_fire_a_threshold_again_and_again() -> None:
    world = Purse()
    world.budget(cents(100), window=BudgetWindow(rolling=Duration(seconds=3600)))
    for _ in range(25):
        world.use(cost=2)
        world.advance(60)
    for _ in range(60):
        world.use(cost=1)
        world.advance(60)

    assert world.events.count("alert.fired") <= 3


def test_the_limit_is_reached_where_what_is_left_is_too_little_and_nobody_gives_back() -> None:
    world = Purse()
    world.budget(cents(100))
    agent_id = world.register(slots=2)
    first, second = world.create(estimate=costing(70)), world.create(estimate=costing(40))
    world.poll(agent_id, max_tasks=2)
    assert world.percents() == []

    world.use(first, 65)
    world.complete(first)

    assert world.percents() == [50, 100]
    assert world.alerts()[-1].message.endswith("$0.65 of $1.00; the rest is too little for any task that waits.")
    assert world.status().state == BUDGET_STATE_STOPPED
    assert world.task(second).state == TASK_STATE_QUEUED


def test_a_breach_that_asks_holds_new_work_until_it_is_answered() -> None:
    world = Purse()
    world.budget(cents(5), thresholds=thresholds(at_100=BUDGET_ACTION_REQUIRE_APPROVAL))
    agent_id = world.register()
    tasks = [world.create(estimate=costing(1)) for _ in range(12)]

    def work_on() -> int:
        world.poll(agent_id)
        while leases := world.state.leases.of_agent(agent_id):
            world.use(leases[0].task_id, 1)
            world.complete(leases[0].task_id)
            world.poll(agent_id)
        return sum(world.task(one).state == TASK_STATE_SUCCEEDED for one in tasks)

    assert work_on() == 5
    assert world.figures() == (5, 0)
    assert waiting(world).budget_id == "budget_b"
    assert world.status().state == BUDGET_STATE_AWAITING_APPROVAL
    assert "waits for somebody" in world.explain(tasks[-1]).blockers[0].message

    decide(world, waiting(world))
    assert world.status().state == BUDGET_STATE_OPEN
    assert world.status().extended_by == cents(5)
    assert work_on() == 10
    assert waiting(world).budget_id == "budget_b"


def test_a_no_leaves_new_work_waiting() -> None:
    world = Purse()
    world.budget(cents(5), thresholds=thresholds(at_100=BUDGET_ACTION_REQUIRE_APPROVAL))
    world.use(cost=5)

    decide(world, waiting(world), "deny")

    assert world.status().state == BUDGET_STATE_AWAITING_APPROVAL


def test_a_budget_that_cancels_tells_all_that_draw_from_it_to_stop() -> None:
    world = Purse()
    world.budget(cents(100), thresholds=thresholds(at_80=BUDGET_ACTION_CANCEL))
    agent_id = world.register(slots=2)
    first, second = world.create(estimate=costing(50)), world.create(estimate=costing(50))
    world.poll(agent_id, max_tasks=2)

    world.use(first, 80)

    told = world.beat(agent_id, first, second)
    assert [one.directive for one in told.leases] == [LEASE_DIRECTIVE_CANCEL] * 2
    world.complete(first)
    world.fail(second)
    assert world.task(first).state == TASK_STATE_SUCCEEDED
    assert world.task(second).state == TASK_STATE_FAILED
    assert world.task(second).failure.reason == "BUDGET_EXCEEDED"


def test_work_at_the_edge_of_its_reservation_stops_where_there_is_no_room_for_more() -> None:
    world = Purse()
    world.budget(cents(100), thresholds=thresholds(at_100=BUDGET_ACTION_CANCEL), default_estimate=cents(20))
    agent_id = world.register(slots=5)
    tasks = [world.create() for _ in range(5)]
    world.poll(agent_id, max_tasks=5)

    world.use(tasks[0], 21)

    assert world.task(tasks[0]).state == TASK_STATE_CANCELLING
    assert all(world.task(one).state == TASK_STATE_RUNNING for one in tasks[1:])


def test_a_refused_change_undoes_crossings_and_alerts() -> None:
    world = Purse()
    world.budget(cents(100))

    def refuse(state: State, _: object) -> None:
        state.budgets.settle(world_usage)
        state.task("task_nothing")

    from kapell_server.domain.budgets.budgets import Settlement

    world_usage = Settlement(cost=1_000_000_000, tokens=0)
    world.deciders[int] = refuse
    with world.refuses("TASK_NOT_FOUND"):
        world.do(7)

    assert world.figures() == (0, 0)


def test_a_lower_limit_crosses_and_a_higher_one_leaves() -> None:
    world = Purse()
    world.budget(cents(100))
    world.use(cost=40)

    world.set_limit(cents(50))
    assert world.percents() == [50, 80]
    world.set_limit(cents(1000))
    assert world.percents() == []


def test_a_deleted_budget_takes_its_alerts_along() -> None:
    world = Purse()
    world.budget(cents(100))
    world.use(cost=100)

    world.do(DeleteBudgetRequest(budget_id="budget_b"))

    assert world.alerts() == []


@pytest.mark.parametrize("limit", [cents(0), BudgetAmount(tokens=0)])
def test_a_limit_of_nothing_lets_nothing_start(limit: BudgetAmount) -> None:
    world = Purse()
    world.budget(limit, thresholds=thresholds(at_100=BUDGET_ACTION_STOP_ADMISSION), default_estimate=limit)
    agent_id = world.register()
    estimate = costing(1)
    estimate.tokens = 1
    task_id = world.create(estimate=estimate)

    assert not world.poll(agent_id).taken
    assert world.task(task_id).state == TASK_STATE_QUEUED


def test_events_tell_of_the_figures_every_two_seconds_while_they_change() -> None:
    world = Purse()
    world.budget(cents(100))
    seen = len(world.events)

    for _ in range(5):
        world.use(cost=1)
    assert "budget.spent" not in world.events[seen:]
    world.advance(2)
    assert world.events[seen:] == ["budget.spent"]
    world.advance(600)

    assert world.events[seen:] == ["budget.spent"]
    stored = world.rows.standing["budget", "budget_b"]
    assert isinstance(stored, Budget)
    assert stored.status.spent == cents(5)


def test_a_threshold_that_is_left_is_so_in_what_a_start_finds() -> None:
    world = Purse()
    world.budget(cents(100), thresholds=thresholds(at_60=BUDGET_ACTION_STOP_ADMISSION))
    world.use(cost=60)

    assert not world.set_limit(cents(1000)).status.crossed_percents


def test_a_correction_opens_what_the_wrong_figure_has_stopped() -> None:
    world = Purse()
    world.budget(cents(100), thresholds=thresholds(at_60=BUDGET_ACTION_STOP_ADMISSION))
    agent_id = world.register()
    world.use(cost=80)
    task_id = world.create(estimate=costing(1))
    assert not world.poll(agent_id).taken

    world.use(cost=-79)

    assert world.task(task_id).state == TASK_STATE_RUNNING
    assert not world.alerts()
