"""What callers may reserve of a budget for work that is no task, and for how long."""

from __future__ import annotations

from kapell.v1.budget_pb2 import (
    Budget,
    ReleaseReservationRequest,
    Reservation,
    ReserveBudgetRequest,
    ReserveBudgetResponse,
    SettleReservationRequest,
)
from kapell.v1.error_pb2 import ERROR_REASON_BUDGET_EXCEEDED, ERROR_REASON_RESERVATION_NOT_FOUND
from kapell.v1.watch_pb2 import EVENT_KIND_BUDGET_SPENT

from kapell_server.domain.budgets.amounts import most_of_callers, set_amount, words
from kapell_server.domain.budgets.budget import checked, tally_of
from kapell_server.domain.budgets.tally import Tally
from kapell_server.domain.errors import KapellError
from kapell_server.domain.state import State
from kapell_server.domain.times import SECOND, duration_ns, stamp, timestamp_ns

_DEFAULT_TTL_NS = 300 * SECOND


def reserve_budget(state: State, request: ReserveBudgetRequest) -> ReserveBudgetResponse:
    """Reserves an amount where there is room for it."""
    tally = tally_of(state, request.budget_id)
    units = checked(request.amount, tally.measure, "amount")
    state.budgets.turn(tally)
    if tally.blocks(units) or tally.spent + tally.reserved + units > most_of_callers(tally.measure):
        raise _exceeded(tally, units)
    reservation = Reservation(
        reservation_id=state.new_id("reservation"),
        budget_id=tally.budget_id,
        reason=request.reason,
        creator=state.caller.actor(),
    )
    set_amount(reservation.amount, tally.measure, units)
    ttl_ns = duration_ns(request.ttl) if request.HasField("ttl") else _DEFAULT_TTL_NS
    stamp(reservation.expire_time, state.now_ns + ttl_ns)
    state.budgets.keep_reservation(reservation)
    budget = state.budgets.put(tally, EVENT_KIND_BUDGET_SPENT, ("status",))
    return ReserveBudgetResponse(reservation=reservation, revision=budget.revision)


def settle_reservation(state: State, request: SettleReservationRequest) -> Budget:
    """Spends what was used, and releases the rest."""
    tally = _tally(state, request.reservation_id)
    units = checked(request.amount, tally.measure, "amount")
    state.budgets.turn(tally)
    if units:
        tally.use(tally.holds[request.reservation_id], units)
        tally.spend(units, most_of_callers(tally.measure))
    return _end(state, tally, request.reservation_id)


def release_reservation(state: State, request: ReleaseReservationRequest) -> Budget:
    """Releases all of it."""
    return _end(state, _tally(state, request.reservation_id), request.reservation_id)


def look_at_reservation(state: State, reservation_id: str) -> None:
    """Releases a reservation whose ttl is over."""
    reservation = state.budgets.reservations.get(reservation_id)
    if reservation is None:
        return
    expire_ns = timestamp_ns(reservation.expire_time)
    if expire_ns > state.now_ns:
        state.schedule(expire_ns, reservation_id)
        return
    _end(state, state.budgets.tallies[reservation.budget_id], reservation_id)


def _tally(state: State, reservation_id: str) -> Tally:
    reservation = state.budgets.reservations.get(reservation_id)
    if reservation is None:
        raise KapellError(
            ERROR_REASON_RESERVATION_NOT_FOUND,
            f"Reservation {reservation_id} was not found: it was settled or released, or its ttl is over. "
            "Reserve again, with a longer ttl where the work takes longer.",
            metadata={"reservation_id": reservation_id},
        )
    return state.budgets.tallies[reservation.budget_id]


def _end(state: State, tally: Tally, reservation_id: str) -> Budget:
    state.budgets.drop_reservation(reservation_id)
    state.budgets.note(tally)
    return state.budgets.put(tally, EVENT_KIND_BUDGET_SPENT, ("status",))


def _exceeded(tally: Tally, units: int) -> KapellError:
    """There is no room for so much."""
    measure, limit = tally.measure, tally.limit + tally.extended
    told = {"spent": tally.spent, "reserved": tally.reserved, "limit": limit}
    metadata = {"budget_id": tally.budget_id} | {name: words(measure, value) for name, value in told.items()}
    if next_ns := tally.next_ns():
        reset = Reservation()
        stamp(reset.expire_time, next_ns)
        metadata["reset_time"] = reset.expire_time.ToJsonString()
    return KapellError(
        ERROR_REASON_BUDGET_EXCEEDED,
        f"Budget {tally.budget_id} has no room for {words(measure, units)}: {metadata['spent']} are spent and "
        f"{metadata['reserved']} reserved of {metadata['limit']}. Wait, raise its limit, or resume it.",
        metadata=metadata,
    )
