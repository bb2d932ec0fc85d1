"""The rows of budgets in a world, and a picture of all that budgets and alerts know."""

from __future__ import annotations

from kapell.v1.budget_pb2 import Reservation
from kapell_server.domain.pending import Pending
from kapell_server.domain.state import State


class BudgetRows:
    """What was spent in which slices, and what callers have reserved."""

    def __init__(self) -> None:
        self.spend: dict[tuple[str, int], int] = {}
        self.reservations: dict[str, Reservation] = {}

    def take(self, pending: Pending) -> None:
        """Commits what a batch has written."""
        for slice_key, units in pending.budget_spend.items():
            self.spend.pop(slice_key, None)
            if units:
                self.spend[slice_key] = units
        for reservation_id, reservation in pending.reservations.items():
            self.reservations.pop(reservation_id, None)
            if reservation is not None:
                self.reservations[reservation_id] = reservation

    def picture(self, state: State) -> object:
        """What is spent, reserved and crossed of each budget, who holds what, and the live alerts."""
        budgets = state.budgets
        return (
            {
                key: (one.limit, one.extended, one.spent, one.reserved, dict(one.slices), one.crossed, one.lifted)
                for key, one in budgets.tallies.items()
            },
            {
                key: [(hold.tally.budget_id, hold.granted, hold.reserved, hold.spent) for hold in held]
                for key, held in budgets._held.items()
            },
            sorted(budgets.reservations),
            dict(budgets._used),
            dict(state.alerts._live),
            dict(self.spend),
            sorted(self.reservations),
        )
