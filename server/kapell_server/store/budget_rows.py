"""Rows of what was spent of budgets, and of what callers have reserved."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from kapell.v1.budget_pb2 import Reservation
from sqlalchemy import bindparam
from sqlalchemy.engine import Connection

from kapell_server.store.bulk import Bulk
from kapell_server.store.schema import budget_reservations, budget_spend

BudgetRows = tuple[list[tuple[str, int, int]], list[Reservation]]

_delete_spend = Bulk(
    sa.delete(budget_spend).where(
        budget_spend.c.budget_id == bindparam("of_budget"), budget_spend.c.slice_ns == bindparam("of_slice")
    ),
    *("of_budget", "of_slice"),
)
_insert_spend = Bulk(sa.insert(budget_spend), "budget_id", "slice_ns", "units")
_delete_reservation = Bulk(
    sa.delete(budget_reservations).where(budget_reservations.c.reservation_id == bindparam("key")), "key"
)
_insert_reservation = Bulk(sa.insert(budget_reservations), "reservation_id", "data")


def load_budget_rows(connection: Connection) -> BudgetRows:
    """(budget, slice, units) of all that was spent, and all reservations."""
    spend = [(budget_id, slice_ns, units) for budget_id, slice_ns, units in connection.execute(sa.select(budget_spend))]
    data = connection.scalars(sa.select(budget_reservations.c.data).order_by(budget_reservations.c.reservation_id))
    return spend, [Reservation.FromString(one) for one in data]


def write_budget_rows(
    connection: Connection, spend: Mapping[tuple[str, int], int], reservations: Mapping[str, Reservation | None]
) -> None:
    """Puts each in the place of what was there; a sum of 0 and a reservation of None go."""
    _delete_spend.execute(connection, list(spend))
    _insert_spend.execute(connection, [(*key, units) for key, units in spend.items() if units])
    _delete_reservation.execute(connection, [(reservation_id,) for reservation_id in reservations])
    kept = [(key, found.SerializeToString()) for key, found in reservations.items() if found is not None]
    _insert_reservation.execute(connection, kept)
