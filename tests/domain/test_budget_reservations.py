"""What callers reserve: room is held until it is settled, released, or its ttl is over."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.type.money_pb2 import Money
from kapell.v1.budget_pb2 import (
    BUDGET_ACTION_NOTIFY,
    BudgetAmount,
    DeleteBudgetRequest,
    ReleaseReservationRequest,
    ReserveBudgetRequest,
    SettleReservationRequest,
)
from kapell.v1.task_pb2 import TASK_STATE_QUEUED, TASK_STATE_RUNNING
from kapell_server.domain.budgets.amounts import amount, measure_of, most_of_callers, units_of

from tests.domain.spending import Purse, cents, costing, thresholds


def _reserve(world: Purse, number: int, **fields: object) -> str:
    request = ReserveBudgetRequest(budget_id="budget_b", amount=cents(number), **fields)  # type: ignore[arg-type]
    found: str = world.do(request).reservation.reservation_id
    return found


def test_a_reservation_takes_room_and_settling_it_gives_the_rest_back() -> None:
    world = Purse()
    world.budget(cents(100))

    reservation_id = _reserve(world, 60)
    assert world.figures() == (0, 60)
    assert world.rows.budgets.reservations.keys() == {reservation_id}
    world.do(SettleReservationRequest(reservation_id=reservation_id, amount=cents(45)))

    assert world.figures() == (45, 0)
    assert world.rows.budgets.reservations == {}
    with world.refuses("RESERVATION_NOT_FOUND"):
        world.do(ReleaseReservationRequest(reservation_id=reservation_id))


def test_more_than_there_is_room_for_is_refused_with_the_figures() -> None:
    world = Purse()
    world.budget(cents(100))
    world.use(cost=10)
    _reserve(world, 60)

    with world.refuses("BUDGET_EXCEEDED") as caught:
        _reserve(world, 31)

    assert caught[0].metadata == {"budget_id": "budget_b", "spent": "$0.10", "reserved": "$0.60", "limit": "$1.00"}


def test_a_reservation_ends_with_its_ttl_and_wakes_who_waits() -> None:
    world = Purse()
    world.budget(cents(100))
    agent_id = world.register()
    _reserve(world, 60, ttl=Duration(seconds=5))
    task_id = world.create(estimate=costing(50))
    world.poll(agent_id)

    world.advance(4)
    world.beat(agent_id)
    assert world.task(task_id).state == TASK_STATE_QUEUED
    world.advance(1)

    assert world.task(task_id).state == TASK_STATE_RUNNING
    assert world.figures() == (0, 50)


def test_a_reservation_that_is_released_spends_nothing() -> None:
    world = Purse()
    world.budget(cents(100))

    world.do(ReleaseReservationRequest(reservation_id=_reserve(world, 60)))

    assert world.figures() == (0, 0)


@pytest.mark.parametrize("amount", [BudgetAmount(tokens=1), BudgetAmount(tasks=1)])
def test_it_must_be_of_what_the_budget_measures(amount: BudgetAmount) -> None:
    world = Purse()
    world.budget(cents(100))
    reservation_id = _reserve(world, 1)

    with world.refuses("REQUEST_INVALID"):
        world.do(ReserveBudgetRequest(budget_id="budget_b", amount=amount))
    with world.refuses("REQUEST_INVALID"):
        world.do(SettleReservationRequest(reservation_id=reservation_id, amount=amount))


def test_a_deleted_budget_takes_its_reservations_along() -> None:
    world = Purse()
    world.budget(cents(100))
    reservation_id = _reserve(world, 1)

    world.do(DeleteBudgetRequest(budget_id="budget_b"))

    assert world.rows.budgets.reservations == {}
    with world.refuses("RESERVATION_NOT_FOUND"):
        world.do(ReleaseReservationRequest(reservation_id=reservation_id))
    world.advance(400)


@pytest.mark.parametrize(
    "huge",
    [
        BudgetAmount(cost=Money(currency_code="USD", units=1_000_000_000)),
        BudgetAmount(wall_time=Duration(seconds=9_000_000_000)),
    ],
)
def test_what_cannot_be_summed_is_refused_and_changes_nothing(huge: BudgetAmount) -> None:
    world = Purse()
    world.budget(huge, thresholds=thresholds(at_100=BUDGET_ACTION_NOTIFY))
    measure = measure_of(huge)
    settled = most_of_callers(measure) // units_of(huge)
    made = [ReserveBudgetRequest(budget_id="budget_b", amount=amount(measure, 1)) for _ in range(settled + 1)]
    *ids, last = [world.do(request).reservation.reservation_id for request in made]
    for reservation_id in ids:
        world.do(SettleReservationRequest(reservation_id=reservation_id, amount=huge))
    before = world.picture()

    with world.refuses("USAGE_LIMIT"):
        world.do(SettleReservationRequest(reservation_id=last, amount=huge))
    with world.refuses("BUDGET_EXCEEDED"):
        world.do(ReserveBudgetRequest(budget_id="budget_b", amount=huge))

    assert world.picture() == before
    assert units_of(world.status().spent) == settled * units_of(huge)
    for _ in range(settled + 1):
        world.resume_budget(extend_by=huge)
    assert "extendedBy" in MessageToDict(world.status()), "it can still be shown"
    assert world.state.budgets.tallies["budget_b"].extended == most_of_callers(measure)


def test_usage_that_a_budget_cannot_sum_on_top_of_what_was_settled_is_refused() -> None:
    world = Purse()
    dollars = BudgetAmount(cost=Money(currency_code="USD", units=1_000_000_000))
    world.budget(dollars, thresholds=thresholds(at_100=BUDGET_ACTION_NOTIFY))
    for _ in range(4):
        reserved = world.do(ReserveBudgetRequest(budget_id="budget_b", amount=cents(1))).reservation
        world.do(SettleReservationRequest(reservation_id=reserved.reservation_id, amount=dollars))

    world.use(cost=5 * 10**11)
    with world.refuses("USAGE_LIMIT"):
        world.use(cost=10**11)

    assert world.figures() == (9 * 10**11, 0)
