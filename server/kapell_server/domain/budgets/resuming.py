"""Lifting what holds new work back: by a request, or by the answer to an approval that the budget has asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.v1.budget_pb2 import Budget
from kapell.v1.watch_pb2 import EVENT_KIND_BUDGET_UPDATED

from kapell_server.domain.budgets.amounts import most_of_callers
from kapell_server.domain.budgets.tally import FULL, Tally
from kapell_server.domain.budgets.windows import Rolling
from kapell_server.domain.copied import copied
from kapell_server.domain.times import stamp

if TYPE_CHECKING:
    from kapell_server.domain.state import State


def usual_extension(tally: Tally) -> int:
    """By how much a limit grows where nobody says it: by itself, where it was reached and holds work back."""
    return tally.limit if FULL in tally.crossed and tally.hard else 0


def resume(state: State, tally: Tally, extend_by: int) -> Budget:
    """Lifts every threshold that was crossed, and extends the limit by so much."""
    if tally.crossed <= tally.lifted and not extend_by:
        return _found(state, tally)
    if extend_by:
        extend(state, tally, extend_by)
    tally.set(lifted=tally.crossed, spent=tally.spent)
    current = copied(_found(state, tally))
    stamp(current.update_time, state.tick_ns())
    current.status.CopyFrom(state.budgets.status(tally))
    state.standing.put(current, EVENT_KIND_BUDGET_UPDATED, ("status",))
    state.budgets.review(tally)
    return _found(state, tally)


def extend(state: State, tally: Tally, by: int) -> None:
    """The limit grows by so much, for this window, as far as can be summed."""
    ends_ns = state.now_ns + tally.window.length_ns if isinstance(tally.window, Rolling) else tally.end_ns
    most = most_of_callers(tally.measure)
    tally.set(extended=min(tally.extended + by, most), extension_end_ns=ends_ns)


def answer(state: State, budget_id: str, *, approved: bool) -> None:
    """An approval of the kind BUDGET was decided. A no leaves the budget as it is: new work goes on waiting."""
    tally = state.budgets.tallies.get(budget_id)
    if approved and tally is not None:
        resume(state, tally, usual_extension(tally))


def _found(state: State, tally: Tally) -> Budget:
    budget = state.standing.find(Budget, tally.budget_id)
    assert budget is not None, "a tally is of a budget"
    return budget
