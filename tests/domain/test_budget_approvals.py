"""Budgets that ask: what is shown, what a yes does, and when nothing is asked any more."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from kapell.v1.alert_pb2 import ALERT_KIND_APPROVAL_OLD, ALERT_STATE_RESOLVED, Alert
from kapell.v1.approval_pb2 import RISK_LEVEL_HIGH
from kapell.v1.approval_policy_pb2 import EXPIRY_ACTION_DENY
from kapell.v1.budget_pb2 import (
    BUDGET_ACTION_NOTIFY,
    BUDGET_ACTION_REQUIRE_APPROVAL,
    BUDGET_STATE_AWAITING_APPROVAL,
    BUDGET_STATE_OPEN,
    BudgetSpec,
    BudgetWindow,
    DeleteBudgetRequest,
    UpdateBudgetRequest,
)

from tests.domain.asking import ALICE, ASK, decide, get, how, lasting, waiting
from tests.domain.spending import Purse, cents, thresholds
from tests.domain.world import World

ASKS = BUDGET_ACTION_REQUIRE_APPROVAL


def _asking(limit: int = 500, *, rolling: int = 0, **actions: int) -> Purse:
    """A budget that has come to its threshold, and asks."""
    world = Purse()
    said = {"window": BudgetWindow(rolling=Duration(seconds=rolling))} if rolling else {}
    world.budget(cents(limit), display_name="nightly", thresholds=thresholds(**(actions or {"at_100": ASKS})), **said)
    world.use(cost=limit)
    return world


def test_what_a_yes_would_do_is_shown_and_is_what_it_does() -> None:
    world = _asking(1200)
    approval = waiting(world)
    shown = world.rows.approval_contents[approval.approval_id]

    assert approval.title == "Spend more than budget nightly allows"
    assert "has come to 100 % of $12.00" in shown.details
    assert "grows by $12.00" in shown.details
    assert shown.estimated_cost.units == 12
    assert approval.risk.level == RISK_LEVEL_HIGH
    decide(world, approval, by=ALICE)

    assert world.status().state == BUDGET_STATE_OPEN
    assert world.status().extended_by == cents(1200)
    assert how(world, approval.approval_id) == "APPROVED"


def test_a_threshold_below_the_limit_asks_for_no_more_money() -> None:
    world = Purse()
    world.budget(cents(100), thresholds=thresholds(at_80=ASKS, at_100=BUDGET_ACTION_NOTIFY))
    world.use(cost=80)
    approval = waiting(world)

    assert not world.rows.approval_contents[approval.approval_id].HasField("estimated_cost")
    decide(world, approval)

    assert world.status().state == BUDGET_STATE_OPEN
    assert not world.status().HasField("extended_by")


def test_a_further_threshold_takes_the_place_of_the_first_question() -> None:
    world = Purse()
    world.budget(cents(100), thresholds=thresholds(at_80=ASKS, at_100=ASKS))
    world.use(cost=80)
    first = waiting(world)
    world.use(cost=20)
    second = waiting(world)

    assert how(world, first.approval_id) == "SUPERSEDED"
    assert get(world, first.approval_id).superseded_by == second.approval_id
    with world.refuses("APPROVAL_CHANGED"):
        decide(world, first)
    assert world.status().state == BUDGET_STATE_AWAITING_APPROVAL


def test_a_resumed_budget_asks_no_more() -> None:
    world = _asking()
    approval = waiting(world)

    world.resume_budget()

    assert how(world, approval.approval_id) == "CANCELLED"
    with world.refuses("APPROVAL_ALREADY_DECIDED"):
        decide(world, approval)
    assert world.status().extended_by == cents(500)


def test_a_raised_limit_withdraws_the_question_and_one_too_low_asks_anew() -> None:
    world = _asking()
    first = waiting(world)

    world.set_limit(cents(400))
    second = waiting(world)
    assert how(world, first.approval_id) == "SUPERSEDED"
    assert "grows by $4.00" in world.rows.approval_contents[second.approval_id].details
    world.set_limit(cents(2000))

    assert how(world, second.approval_id) == "CANCELLED"
    assert world.status().state == BUDGET_STATE_OPEN


def test_a_threshold_that_only_notifies_by_now_withdraws_the_question() -> None:
    world = _asking()
    approval = waiting(world)
    spec = BudgetSpec(thresholds=thresholds(at_100=BUDGET_ACTION_NOTIFY))
    request = UpdateBudgetRequest(budget_id="budget_b", spec=spec)
    request.update_mask.paths.append("thresholds")

    world.do(request)

    assert how(world, approval.approval_id) == "CANCELLED"


def test_the_end_of_a_window_withdraws_the_question_and_the_next_may_ask() -> None:
    world = _asking(rolling=3600)
    approval = waiting(world)

    world.advance(3700)
    assert how(world, approval.approval_id) == "CANCELLED"
    world.use(cost=500)

    assert waiting(world).approval_id != approval.approval_id


def test_a_deleted_budget_withdraws_its_question() -> None:
    world = _asking()
    approval = waiting(world)

    world.do(DeleteBudgetRequest(budget_id="budget_b"))

    assert how(world, approval.approval_id) == "CANCELLED"
    assert get(world, approval.approval_id).state_reason == "the budget was deleted"


def test_a_refusal_is_not_asked_about_again_in_the_same_window() -> None:
    world = _asking()
    decide(world, waiting(world), "deny")

    world.use(cost=10)
    world.set_limit(cents(450))

    assert list(world.state.approvals.pending()) == []
    assert world.status().state == BUDGET_STATE_AWAITING_APPROVAL


def test_a_question_that_nobody_answers_in_time_waits_on() -> None:
    world = _asking()
    approval = waiting(world)

    world.advance(86_401)

    assert waiting(world).approval_id == approval.approval_id
    assert waiting(world).overdue
    decide(world, waiting(world))
    assert world.status().state == BUDGET_STATE_OPEN


# -- alerts about approvals ------------------------------------------------------------------


def _old(world: World) -> list[Alert]:
    found = [one for one in world.state.standing.all(Alert) if one.kind == ALERT_KIND_APPROVAL_OLD]
    return [one for one in found if one.state != ALERT_STATE_RESOLVED]


def test_an_approval_that_waits_too_long_fires_an_alert_until_it_is_decided() -> None:
    world = World(approval_old_alert=60.0)
    world.create("shell", approval=ASK)
    approval = waiting(world)

    world.advance(59)
    assert _old(world) == []
    world.advance(2)
    [alert] = _old(world)
    assert alert.subject == approval.approval_id
    assert alert.message == f"An approval has been waiting for a decision for more than 1 min: {approval.title}"
    world.advance(600)
    assert _old(world) == [alert]
    decide(world, approval)

    assert _old(world) == []
    assert world.events.count("alert.fired") == 1


def test_an_approval_that_is_withdrawn_in_time_fires_no_alert() -> None:
    world = World(approval_old_alert=60.0)
    task_id = world.create("shell", approval=ASK)
    world.cancel(task_id)

    world.advance(600)

    assert _old(world) == []
    assert "alert.fired" not in world.events


def test_an_expired_approval_resolves_its_alert() -> None:
    world = World(approval_old_alert=60.0)
    policy = lasting(120, on_expiry=EXPIRY_ACTION_DENY)
    world.create("shell", approval=policy)

    world.advance(61)
    assert len(_old(world)) == 1
    world.advance(60)

    assert _old(world) == []
