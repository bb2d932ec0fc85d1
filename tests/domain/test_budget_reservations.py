"""What callers reserve: room is held until it is settled, released, or its ttl is over."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from kapell.v1.budget_pb2 import (
    BudgetAmount,
    DeleteBudgetRequest,
    ReleaseReservationRequest,
    ReserveBudgetRequest,
    SettleReservationRequest,
)
from kapell.v1.task_pb2 import TASK_STATE_QUEUED, TASK_STATE_RUNNING

from tests.domain.spending import Purse, cents, costing


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
