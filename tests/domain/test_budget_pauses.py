"""How pauses end: with room, with an answer, with the time of the question, with the attempt; never not at all."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from kapell.v1.approval_pb2 import CancelApprovalRequest
from kapell.v1.budget_pb2 import (
    BUDGET_ACTION_CANCEL,
    BUDGET_ACTION_REQUIRE_APPROVAL,
    BudgetScope,
    BudgetWindow,
)
from kapell.v1.task_pb2 import (
    ATTEMPT_WAIT_KIND_BUDGET,
    TASK_STATE_CANCELLING,
    TASK_STATE_FAILED,
    TASK_STATE_RUNNING,
    TASK_STATE_SUCCEEDED,
    AttemptWait,
    TaskTimeouts,
)
from kapell.v1.worker_pb2 import HeartbeatRequest, LeaseBeat
from kapell_server.domain.budgets import edges

from tests.domain.asking import ALICE, decide, how, waiting
from tests.domain.spending import Purse, cents, costing, thresholds

ASKS = thresholds(at_100=BUDGET_ACTION_REQUIRE_APPROVAL)
DAY = 86_400


def _paused(**spec: object) -> tuple[Purse, str]:
    """A world in which an attempt waits for room in a budget that asks."""
    world = Purse(lease_duration=10.0 * DAY)
    world.budget(cents(10), display_name="nightly", thresholds=ASKS, **spec)
    task_id = world.running(estimate=costing(10))
    world.use(task_id, 10)
    _wait(world, task_id)
    return world, task_id


def _wait(world: Purse, task_id: str) -> None:
    """The agent says that the attempt waits for room."""
    beat = LeaseBeat(lease_token=world.token(task_id), waiting=AttemptWait(kind=ATTEMPT_WAIT_KIND_BUDGET))
    world.do(HeartbeatRequest(agent_id=world.task(task_id).lease.agent_id, leases=[beat]))


def test_a_question_about_an_attempt_that_nobody_answers_in_time_ends_the_attempt() -> None:
    world, task_id = _paused()
    approval = waiting(world, task_id)
    assert "Not answered in time: it is stopped, too." in world.rows.approval_contents[approval.approval_id].details

    world.advance(DAY + 1)

    assert how(world, approval.approval_id) == "EXPIRED"
    assert world.task(task_id).state == TASK_STATE_CANCELLING
    world.fail(task_id)
    assert world.task(task_id).state == TASK_STATE_FAILED
    assert world.task(task_id).failure.reason == "BUDGET_EXCEEDED"
    assert "nobody has let it use more in time" in world.task(task_id).failure.message
    assert world.status().paused == 0


def test_a_question_about_an_attempt_that_somebody_withdraws_is_asked_again() -> None:
    world, task_id = _paused()
    first = waiting(world, task_id)

    world.do(CancelApprovalRequest(approval_id=first.approval_id))

    assert how(world, first.approval_id) == "CANCELLED"
    second = waiting(world, task_id)
    assert world.task(task_id).pause.approval_id == second.approval_id
    decide(world, second, by=ALICE)
    assert not world.task(task_id).HasField("pause")


def test_who_is_paused_by_one_budget_stays_so_when_another_is_full_too() -> None:
    world = Purse()
    world.budget(cents(20), budget_id="budget_a")
    world.budget(cents(10), budget_id="budget_b", thresholds=ASKS, scope=BudgetScope(label="team=red"))
    task_id = world.running(estimate=costing(10), labels={"team": "red"})
    world.use(task_id, 10)
    _wait(world, task_id)
    approval = waiting(world, task_id)

    world.use(cost=10)
    _wait(world, task_id)

    assert how(world, approval.approval_id) == "PENDING"
    assert world.task(task_id).pause.approval_id == approval.approval_id


@pytest.mark.parametrize("why", ["its time is over", "another budget cancels"])
def test_who_is_stopped_is_asked_about_no_more(why: str) -> None:
    world = Purse(lease_duration=10.0 * DAY)
    world.budget(cents(10), thresholds=ASKS)
    world.budget(cents(40), budget_id="budget_z", thresholds=thresholds(at_100=BUDGET_ACTION_CANCEL))
    task_id = world.running(estimate=costing(10), timeouts=TaskTimeouts(run_timeout=Duration(seconds=60)))
    world.use(task_id, 10)
    _wait(world, task_id)
    approval = waiting(world, task_id)

    if why == "its time is over":
        world.advance(61)
    else:
        world.use(cost=30)

    assert world.task(task_id).state == TASK_STATE_CANCELLING
    assert how(world, approval.approval_id) == "CANCELLED"


def test_what_one_budget_gave_is_in_the_row_though_another_stops_the_attempt() -> None:
    world = Purse()
    world.budget(cents(100), budget_id="budget_a", default_estimate=cents(1))
    cancels = thresholds(at_100=BUDGET_ACTION_CANCEL)
    world.budget(cents(10), budget_id="budget_b", thresholds=cancels, default_estimate=cents(2))
    task_id = world.running(estimate=costing(4))
    world.use(cost=4)

    world.use(task_id, 5)

    assert world.task(task_id).state == TASK_STATE_CANCELLING
    rows = {hold.budget_id: hold for hold in world.attempt(task_id).budget_holds}
    held = {hold.tally.budget_id: hold for hold in world.state.budgets.held(task_id)}
    for budget_id, hold in held.items():
        assert rows[budget_id] == hold.tally.describe_hold(hold.reserved, hold.spent, hold.overrun, hold.let)


def test_people_hear_of_it_when_only_paused_work_is_left() -> None:
    world = Purse()
    world.budget(cents(30), default_estimate=cents(10))
    first, second = world.running(estimate=costing(10)), world.running(estimate=costing(19))
    world.use(first, 10)
    _wait(world, first)
    assert world.percents() == []

    world.use(second, 18)
    world.complete(second)

    assert 100 in world.percents(), "nothing that runs will give anything back"


def test_a_budget_that_a_task_names_and_that_is_of_its_agent_is_drawn_from_once() -> None:
    world = Purse()
    agent_id = world.register()
    world.budget(cents(100), scope=BudgetScope(agent_id=agent_id))
    task_id = world.create(estimate=costing(10), budget_id="budget_b")
    world.poll(agent_id)
    assert world.task(task_id).state == TASK_STATE_RUNNING
    assert world.figures() == (0, 10)

    world.use(task_id, 4)
    world.complete(task_id)

    assert world.task(task_id).state == TASK_STATE_SUCCEEDED
    assert world.figures() == (4, 0)


def test_what_was_let_in_a_window_that_is_over_is_gone_from_the_row_too() -> None:
    world, task_id = _paused(window=BudgetWindow(rolling=Duration(seconds=60)))
    decide(world, waiting(world, task_id), by=ALICE)
    assert world.attempt(task_id).budget_holds[0].HasField("granted")

    world.advance(70)

    assert not world.status().HasField("extended_by")
    assert not world.attempt(task_id).budget_holds[0].HasField("granted")


def test_a_look_that_is_undone_is_looked_at_again() -> None:
    world, task_id = _paused()
    state = world.state
    state.begin(world.now_ns, world.rows)
    state.budgets.at_edge[task_id] = None
    mark = state.mark()
    edges.meet(state, task_id)
    state.rollback(mark)

    assert task_id in state.budgets.at_edge
